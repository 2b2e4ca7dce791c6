"""Which values the elements of a tensor can have, where they are few: what an additive mask is proven by.

    text_mask            int64 [B, 11], an input      {0, 1}
    (text_mask - 1) * max                             {0, -max}
    zeros, that written into a part of it             {0, -max}: it hides keys, and does nothing else

Positions play no part, so views and copies have the values of what they show, and a tensor that is written has those
that it had and those that were written. Nothing is known of what has no rule here.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
Values = frozenset[float]

_BOOL: Values = frozenset({0.0, 1.0})
_MOST = 8
# At and below it the weight of a key in a softmax is 0.
_HIDDEN = -1e4

_SAME = {
    *(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.permute, aten.transpose, aten.t),
    *(aten.unsqueeze, aten.squeeze, aten.expand, aten.slice, aten.select, aten.unbind, aten.split, aten.chunk),
    *(aten.split_with_sizes, aten.cat, aten.stack, aten.repeat, aten.tile, aten.flip, aten.roll, aten.clone),
    *(aten.alias, aten.detach, aten.lift_fresh, aten.lift_fresh_copy, aten._to_copy, aten.index, aten.index_select),
    *(aten.repeat_interleave, aten.narrow, aten.expand_as, aten.contiguous),
}
_ARITHMETIC: dict[Any, Callable[[float, float], float]] = {
    aten.add: operator.add,
    aten.sub: operator.sub,
    aten.mul: operator.mul,
    aten.rsub: lambda left, right: right - left,
}
_IN_PLACE = {aten.add_: aten.add, aten.sub_: aten.sub, aten.mul_: aten.mul}
_ZEROS = (aten.zeros, aten.zeros_like, aten.new_zeros)
_ONES = (aten.ones, aten.ones_like, aten.new_ones)
_FULL = (aten.full, aten.full_like, aten.new_full, aten.scalar_tensor)


class KnownValues:
    """The values of the tensors of one run of a graph."""

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()

    def of(self, value: Any) -> Values | None:
        """The values of a tensor or a number; None where they are not known, or many."""
        if isinstance(value, (bool, int, float)):
            return frozenset({float(value)})
        if not isinstance(value, Tensor):
            return None
        known: Values | None = self._known.get(value)
        return _BOOL if known is None and value.dtype is torch.bool else known

    def set(self, tensor: Tensor, values: Values | None) -> None:
        """Say what a tensor's values are."""
        if values is not None and len(values) <= _MOST and not any(map(math.isnan, values)):
            self._known[tensor] = values
        else:
            self._known.pop(tensor, None)

    def carry(self, packet: Any, bound: Mapping[str, Any], leaves: Iterable[Tensor]) -> None:
        """Derive the values of an operator's results from those of its arguments."""
        values = self._derived(packet, bound)
        if values is not None:
            for leaf in leaves:
                self.set(leaf, values)

    def write(self, packet: Any, bound: Mapping[str, Any], sharing: Iterable[Tensor]) -> None:
        """An operator that writes its first argument wrote into the storage of all tensors `sharing`."""
        written = self._written(packet, bound)
        for tensor in sharing:
            before = self.of(tensor)
            self.set(tensor, None if before is None or written is None else before | written)

    def _derived(self, packet: Any, a: Mapping[str, Any]) -> Values | None:
        first = a.get("self", a.get("tensors", a.get("input")))
        if packet in _SAME:
            values = self._union(first if isinstance(first, (list, tuple)) else [first])
            return _cast(values, a["dtype"], packet) if a.get("dtype") is not None else values
        if packet in _ARITHMETIC:
            return self._pairs(_ARITHMETIC[packet], first, a.get("other")) if a.get("alpha", 1) == 1 else None
        if packet is aten.neg:
            return self._pairs(operator.mul, first, -1)
        if packet is aten.log:
            known = self.of(first)
            # Of a mask: 0 where it is 1, minus infinity where it is 0.
            return frozenset(-math.inf if value == 0 else 0.0 for value in known) if known and known <= _BOOL else None
        if packet is aten.where:
            return self._union([first, a.get("other")]) if "other" in a else None
        if packet is aten.masked_fill:
            return self._union([first, a["value"]])
        if packet is aten.constant_pad_nd:
            return self._union([first, a.get("value", 0)])
        if packet in _FULL:
            return self.of(a.get("fill_value", a.get("s")))
        return frozenset({0.0}) if packet in _ZEROS else frozenset({1.0}) if packet in _ONES else None

    def _written(self, packet: Any, a: Mapping[str, Any]) -> Values | None:
        if packet is aten.copy_:
            return self.of(a["src"])
        if packet is aten.zero_:
            return frozenset({0.0})
        if packet in (aten.fill_, aten.masked_fill_):
            return self.of(a["value"])
        if packet in (aten.index_put_, aten._index_put_impl_):
            return None if a.get("accumulate") else self.of(a["values"])
        return self._derived(_IN_PLACE[packet], a) if packet in _IN_PLACE else None

    def _union(self, parts: Iterable[Any]) -> Values | None:
        sets = [self.of(part) for part in parts]
        known = [values for values in sets if values is not None]
        return frozenset().union(*known) if known and len(known) == len(sets) else None

    def _pairs(self, function: Callable[[float, float], float], left: Any, right: Any) -> Values | None:
        x, y = self.of(left), self.of(right)
        if x is None or y is None:
            return None
        return frozenset(function(a, b) for a, b in itertools.product(x, y))


def _cast(values: Values | None, dtype: Any, packet: Any) -> Values | None:
    """Values as another dtype; None where it need not hold them, and for a view, which reads their bits."""
    if packet is aten._to_copy and values is not None and (dtype.is_floating_point or values <= _BOOL):
        return values
    return None


def hide_keys_alone(values: Values | None) -> bool:
    """True if a bias of these values hides some keys and does not change the others."""
    return values is not None and all(value == 0 or value <= _HIDDEN for value in values)
