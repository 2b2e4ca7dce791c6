"""The results of one model's traces, by kind of call: one trace serves all calls of a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from svg_compile.regional.call_guards import CallFacts, CallKey
from svg_compile.regional.traced_grids import ModelGrids, trace_grids

_MOST_CALLS = 32


class KnownCalls:
    """The grids of a model's calls.

    on_found: called with the blocks and the paths of the sparse attentions of each new kind.
    """

    def __init__(self, on_found: Callable[[Mapping[str, nn.Module], tuple[str, ...]], object]) -> None:
        self._on_found = on_found
        # By what decides the grids of a call; None after a warning.
        self._known: dict[CallKey, ModelGrids | None] = {}
        self._facts = CallFacts()
        self._last: CallKey | None = None

    def grids(
        self,
        model: nn.Module,
        blocks: Mapping[str, nn.Module],
        arguments: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> ModelGrids | None:
        """The grids for calls like this one; traces the model at the first such call."""
        key = self._facts.key(model, arguments)
        if self._last is not None and self._last.modules != key.modules:
            # The ids of modules that are gone may be taken again, and places shift: nothing that was learned holds.
            self._known, self._facts, self._last = {}, CallFacts(), None
            key = self._facts.key(model, arguments)
        if key not in self._known:
            before = None if self._last is None else self._known.get(self._last)
            found = trace_grids(model, blocks, args, kwargs)
            if found is not None:
                self._facts.reads_values |= found.reads_values
                self._facts.reads |= found.reads
                self._on_found(blocks, found.sparse)
            # If the previous trace marked nothing, equal markers prove nothing about attributes.
            if self._last is not None and before is not None and before.markers:
                self._facts.learn(self._last, key, same=before == found)
            # The trace may have taught that there is more to look at, or less.
            key = self._facts.key(model, arguments)
            if len(self._known) >= _MOST_CALLS:
                self._known.clear()
            self._known[key] = found
        self._last = key
        return self._known[key]
