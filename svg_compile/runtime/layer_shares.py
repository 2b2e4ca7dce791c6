"""How the layers of a model share the pairs that a density pays for (`share_layers`).

Each layer profiles what its heads would lose by narrower and wider bands. From what all layers found in a step follow
their shares of the next one (kernels.widths.shares_of_layers): the mean over the layers stays the density. In the first
sparse step of a run, and for a layer that did not run before, a layer has the density itself. A layer that a cache
leaves out of a step takes part by what it found last. Where heads are spread over processes the heads of all take part,
and all processes find the same shares.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from svg_compile.kernels.spread import Spread
from svg_compile.kernels.widths import everywhere, shares_of_layers
from svg_compile.layout import VideoLayout

# Runs of one model that are under way at once.
_MOST_RUNS = 16


@dataclass(frozen=True)
class Profiles:
    """The profiles of one graph's layers: errors [B, H, 2] and missing mass [B, H, 2, rungs] of each.

    layouts: the grid of each layer; density: the one that they were profiled for; spreads: the processes that a layer's
    heads are spread over, if any: then these are the profiles of this process's heads.
    """

    errors: tuple[Tensor, ...]
    missing: tuple[Tensor, ...]
    layouts: tuple[VideoLayout, ...]
    density: float
    spreads: tuple[Spread | None, ...]


@dataclass
class _Call:
    """The n-th forward of each step: the step at hand, what its graphs found last, and their shares in this step."""

    step: int
    found: dict[Hashable, Profiles] = field(default_factory=dict)
    shares: dict[Hashable, Tensor] = field(default_factory=dict)


class LayerShares:
    """The shares of one run of one model. Guidance calls a model several times per step, each with its own shares."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}
        # Of each graph: the step at hand, and how often it ran in it.
        self._counts: dict[Hashable, tuple[int, int]] = {}

    def enter(self, step: int, graph: Hashable, *, exact: bool = True) -> tuple[int, Tensor | None]:
        """(the number of the call, the shares of the graph's layers, float32 [layers, B]) of a forward in a step.

        None where nothing is known of the graph. exact: the step is not counted.
        """
        before, count = self._counts.get(graph, (step, 0))
        # A warm-up at the first timestep of a counted run looks like a call of step 0.
        if step < before or (not exact and before == 0 and step > 0):
            self._calls.clear()
            self._counts.clear()
        call = count if step == before else 0
        self._counts[graph] = step, call + 1
        now = self._calls.setdefault(call, _Call(step))
        if step != now.step:
            now.step, now.shares = step, _shared_out(now.found)
        return call, now.shares.get(graph)

    def note(self, call: int, graph: Hashable, profiles: Profiles) -> None:
        """Keep what the layers of a graph found in a call."""
        self._calls[call].found[graph] = profiles

    def release(self, call: int, graph: Hashable) -> None:
        """Let go of what is kept of a graph: the run's last step has used it."""
        self._calls[call].found.pop(graph, None)
        self._calls[call].shares.pop(graph, None)


def _shared_out(found: dict[Hashable, Profiles]) -> dict[Hashable, Tensor]:
    """The shares of all graphs: layers of one grid, batch and density share with each other."""
    groups: dict[Any, list[tuple[Hashable, int]]] = {}
    for graph, profiles in found.items():
        for layer, layout in enumerate(profiles.layouts):
            shown = profiles.errors[layer]
            spread = profiles.spreads[layer]
            alike = (layout, shown.shape[0], shown.device, profiles.density, spread)
            groups.setdefault(alike, []).append((graph, layer))
    rows: dict[tuple[Hashable, int], Tensor] = {}
    for (layout, _, _, density, spread), members in groups.items():
        errors = [found[graph].errors[layer] for graph, layer in members]
        missing = [found[graph].missing[layer] for graph, layer in members]
        if spread is not None:
            errors, missing = _of_all_processes(errors, missing, spread)
        rows.update(zip(members, shares_of_layers(errors, missing, layout, density), strict=True))
    return {graph: torch.stack([rows[graph, n] for n in range(len(p.layouts))]) for graph, p in found.items()}


def _of_all_processes(
    errors: Sequence[Tensor], missing: Sequence[Tensor], spread: Spread
) -> tuple[list[Tensor], list[Tensor]]:
    """The profiles of the heads of all processes, layer by layer, from those of this process: gathered at once."""
    heads = [each.shape[1] for each in errors]
    every = everywhere(torch.cat(tuple(errors), dim=1), torch.cat(tuple(missing), dim=1), spread)
    errors, missing = (
        [layer.flatten(1, 2) for layer in part.unflatten(1, (spread.ranks, -1)).split(heads, dim=2)] for part in every
    )
    return errors, missing


_POOLS: WeakKeyDictionary[Any, OrderedDict[int, LayerShares]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def shares_of(owner: Any, run: int) -> LayerShares:
    """The shares of a run of a model. owner: what stands for the model, held weakly."""
    with _LOCK:
        runs = _POOLS.setdefault(owner, OrderedDict())
        shares = runs.setdefault(run, LayerShares())
        runs.move_to_end(run)
        while len(runs) > _MOST_RUNS:
            runs.popitem(last=False)
        return shares
