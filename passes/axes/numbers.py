"""The values of whole-number tensors that a graph computes from constants, or from inputs whose values were read.

    frames       [1, 2, 3, 4], an input, read by its values
    flat         (frames[:, None] * 6 + arange(6)).flatten(): 6, 7, 8, ... 29

A value is computed where a rule asks for it, on real tensors, while the graph runs on fake ones. The value of a tensor
that is written is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from svg_compile._compat.operators import mutates
from svg_compile._compat.pytree import tree_leaves, tree_map_only
from svg_compile._compat.real_values import beside_modes
from svg_compile._compat.sizes import equal, holds, size_hint
from svg_compile._compat.storages import storage_of
from svg_compile.passes.index_runs import WHOLE

aten = torch.ops.aten
# Views need no memory, whatever their size.
_VIEWS = {
    *(aten.view, aten._unsafe_view, aten._reshape_alias, aten.unsqueeze, aten.squeeze, aten.expand, aten.slice),
    *(aten.select, aten.permute, aten.transpose, aten.t, aten.alias, aten.detach),
}
_COMPUTED = {
    *(aten.arange, aten.add, aten.sub, aten.mul, aten.rsub, aten.floor_divide, aten.remainder, aten.neg),
    *(aten.cat, aten.clone, aten._to_copy, aten.lift_fresh, aten.lift_fresh_copy, aten.flip, aten.roll),
    *(aten.index_select, aten.index, aten.full, aten.zeros, aten.ones, aten.repeat),
}
_MOST_NUMBERS = 2**22
# Where a result stands, which is of no interest here.
_PLACE = ("device", "layout", "pin_memory", "memory_format")


@dataclass(frozen=True)
class Numbers:
    """The values of one tensor. sources: the inputs that they were computed from; symbolic: sizes took part in it."""

    compute: Callable[[], Tensor | None]
    sources: frozenset[Any] = frozenset()
    symbolic: bool = False

    @property
    def of_sizes_alone(self) -> bool:
        """True if they follow from sizes that are symbolic, and from no input that was read: asking would fix these."""
        return self.symbolic and not self.sources

    @cached_property
    def values(self) -> Tensor | None:
        """The real tensor, on the CPU; None where it cannot be computed."""
        return self.compute()


class KnownNumbers:
    """The whole numbers that are known in one run of a graph."""

    def __init__(self, is_lost: Callable[[Tensor], bool]) -> None:
        self._known: Any = WeakIdKeyDictionary()
        # Of tensors that something unknown may have written.
        self._is_lost = is_lost

    def enter(self, tensor: Tensor, source: Any, values: Tensor) -> None:
        """An input holds these values, which were read."""
        self._known[tensor] = Numbers(lambda: values, frozenset({source}))

    def of(self, tensor: Tensor) -> Numbers | None:
        """The numbers of a tensor; None where they are not known."""
        known: Numbers | None = self._known.get(tensor)
        return None if known is None or self._is_lost(tensor) else known

    def carry(self, operator: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        """Note what an operator has computed, where it has from numbers that are known."""
        packet = operator.overloadpacket
        if (packet not in _VIEWS and packet not in _COMPUTED) or mutates(operator):
            return
        if not isinstance(out, Tensor) or out.dtype not in WHOLE:
            return
        if packet not in _VIEWS and size_hint(out.numel()) > _MOST_NUMBERS:
            return
        leaves = tree_leaves((args, dict(kwargs)))
        known = [self.of(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        found = [numbers for numbers in known if numbers is not None]
        if len(found) == len(known):
            sources = frozenset().union(*(numbers.sources for numbers in found))
            sized = any(isinstance(leaf, torch.SymInt) for leaf in leaves)
            given = tree_map_only(Tensor, self.of, (args, dict(kwargs)))
            symbolic = sized or any(numbers.symbolic for numbers in found)
            self._known[out] = Numbers(partial(_computed, operator, *given), sources, symbolic)

    def forget(self, written: Tensor) -> None:
        """A tensor was written: of it, and of all that share its storage, nothing is known any more."""
        storage = storage_of(written)
        for tensor in [tensor for tensor in self._known if storage_of(tensor) == storage]:
            del self._known[tensor]


def _computed(operator: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    kwargs = {name: value for name, value in kwargs.items() if name not in _PLACE}
    numbers = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Numbers)]
    sizes = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.SymInt)]
    # A size that is symbolic is guarded: the numbers are those of this one.
    if any(each.values is None for each in numbers) or not all(holds(equal, size, size_hint(size)) for size in sizes):
        return None
    args, kwargs = tree_map_only(Numbers, lambda each: each.values, (args, kwargs))
    args, kwargs = tree_map_only(torch.SymInt, size_hint, (args, kwargs))
    result: Tensor | None = beside_modes(partial(operator, *args, **kwargs))
    return result
