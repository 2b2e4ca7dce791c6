"""The dispatch mode that sees every ATen operator and keeps the axes of every tensor right, also when it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from svg_compile.passes import compute_rules, view_rules  # noqa: F401  (they fill RULES)
from svg_compile.passes.align import Meaning, aligned_with
from svg_compile.passes.axes import (
    Axis,
    Concat,
    Kind,
    atoms_of,
    axis_of,
    free_axis,
    is_opaque,
    is_plain,
    is_table,
    length,
    opaque_axis,
    resolve,
    same_axis,
)
from svg_compile.passes.axis_rules import RULES, aligned, same_size
from svg_compile.passes.compute_rules import in_place, pointwise

# Pointwise operators that torch does not tag as such in their in-place form.
_IN_PLACE = ("add_", "sub_", "mul_", "div_", "clamp_", "masked_fill_", "addcmul_", "pow_", "exp_", "neg_", "sigmoid_")


@dataclass(frozen=True)
class AttentionAxes:
    """The axes of one visit to one attention, each a list over dimensions [B, H, N, D]; None where not a tensor."""

    query: tuple[Axis, ...]
    key: tuple[Axis, ...]
    value: tuple[Axis, ...]


class AxisTracker(TorchDispatchMode):
    """Knows the axes of every tensor seen, and keeps them right when a tensor is written."""

    def __init__(self) -> None:
        super().__init__()
        self.visits: dict[fx.Node, list[AttentionAxes]] = {}
        self.without_rule: Counter[str] = Counter()
        self._axes: Any = WeakIdKeyDictionary()
        # Parameters, buffers and constants, by storage: they have no axes of their own until they are written.
        self._weights: dict[int, list[Tensor]] = {}
        # Storages whose content no longer follows any tensor's axes; kept alive, for their identity is the key.
        self._spoiled: dict[int, Any] = {}

    def of(self, tensor: Tensor) -> list[Axis]:
        if self._spoiled and _storage(tensor) in self._spoiled:
            return [opaque_axis(size) for size in tensor.shape]
        if tensor not in self._axes:
            # A weight or a constant: a table, anew at each use.
            return [free_axis(size) for size in tensor.shape]
        axes: list[Axis] = self._axes[tensor]
        return axes

    def name(self, tensor: Tensor, axes: list[Axis]) -> None:
        if len(axes) != tensor.dim():
            raise AssertionError(f"an axis rule gave {len(axes)} axes for a tensor of {tensor.dim()} dimensions")
        self._axes[tensor] = list(axes)

    def weight(self, tensor: Tensor) -> None:
        self._weights.setdefault(_storage(tensor), []).append(tensor)

    def written(self, target: Tensor, operands: list[Tensor]) -> None:
        """`target`, the first of the operands, takes the values of a pointwise operator of all of them."""
        storage = _storage(target)
        if storage in self._spoiled:
            return
        for weight in self._weights.pop(storage, ()):
            self.name(weight, self.of(weight))
        before = self.of(target)
        self.name(target, before)
        meaning: Meaning = {}
        after = aligned(self, operands, tuple(target.shape), meaning)
        changed: Meaning = {}
        untouched = True
        for old, new in zip(before, after):
            if same_axis(old, new):
                continue
            untouched = False
            for atom in atoms_of(old):
                if is_opaque(new) or (atom not in meaning and atom not in set(atoms_of(new))):
                    changed[atom] = opaque_axis(atom.size)
                elif atom in meaning:
                    changed[atom] = meaning[atom]
        aliases = [tensor for tensor in self._axes if _storage(tensor) == storage]
        # What an in-place operator wrote already, Python assigns to itself once more.
        others = [operand for operand in operands[1:] if not _same_place(operand, target)]
        tables = all(is_table(axis) for operand in others for axis in self.of(operand))
        if untouched and (tables or all(_covers(before, self.of(alias)) for alias in aliases)):
            return
        for alias in aliases:
            self.name(alias, after if alias is target else _rewritten(self.of(alias), before, after, changed))

    def spoil(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._spoiled[storage._cdata] = storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._carry(func, args, kwargs, out)
        return out

    def _carry(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        schema = func._schema
        bound = {argument.name: value for argument, value in zip(schema.arguments, args)}
        bound.update(kwargs)
        rule = RULES.get(func.overloadpacket)
        if rule is None and not schema.is_mutable and torch.Tag.pointwise in func.tags:
            rule = pointwise
        if schema.is_mutable:
            return self._write(func, bound, rule, out)
        leaves = leaves_of(out)
        if not leaves:
            return
        if rule is not None:
            rule(self, bound, out)
        elif "scaled_dot_product" in schema.name:
            query, value = self.of(bound["query"]), self.of(bound["value"])
            self.name(leaves[0], [*query[:3], value[3]])
        else:
            self.without_rule[str(func)] += 1
        # What a rule says nothing of is no table: it was made of data.
        self.give_up(leaf for leaf in leaves if leaf not in self._axes)

    def _write(self, func: Any, bound: Mapping[str, Any], rule: Any, out: Any) -> None:
        """An operator that writes arguments: pointwise into its first one, by its rule, or in an unknown way."""
        schema = func._schema
        written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        if rule is None and written == ["self"] and schema.name.endswith("_"):
            if torch.Tag.pointwise in func.tags or schema.name.removeprefix("aten::") in _IN_PLACE:
                rule = in_place
        if rule is not None and written == ["self"] and schema.name.endswith("_"):
            return rule(self, bound, out)
        self.without_rule[str(func)] += 1
        for leaf in [leaf for name in written for leaf in leaves_of(bound.get(name))]:
            self.spoil(leaf)
        self.give_up(leaves_of(out))

    def give_up(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self.name(tensor, [opaque_axis(size) for size in tensor.shape])

    def record(self, node: fx.Node, query: Tensor, key: Tensor, value: Tensor) -> None:
        axes = AttentionAxes(tuple(self.of(query)), tuple(self.of(key)), tuple(self.of(value)))
        self.visits.setdefault(node, []).append(axes)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _same_place(left: Tensor, right: Tensor) -> bool:
    """Whether two views show the same elements in the same order."""
    if _storage(left) != _storage(right) or left.dim() != right.dim():
        return False
    pairs = zip((*left.shape, *left.stride()), (*right.shape, *right.stride()))
    return same_size(left.storage_offset(), right.storage_offset()) and all(same_size(*pair) for pair in pairs)


def _rewritten(axes: list[Axis], before: list[Axis], after: list[Axis], meaning: Meaning) -> list[Axis]:
    """The axes of a tensor after another view of its storage was written, whose axes were `before` and are `after`.

    Atoms that both have change alike. An axis that the written view has no part in was cut by it in a way that is not
    followed: afterwards its positions hold whatever was written to some of them.
    """
    shared = {atom for axis in before for atom in atoms_of(axis)}
    own = {atom for axis in axes for atom in atoms_of(axis)}
    extra = [new for old, new in zip(before, after) if not own.issuperset(atoms_of(old))]
    plain = all(is_plain(axis) for axis in extra)
    out = []
    for axis in axes:
        if all(atom in shared for atom in atoms_of(axis)) or _whole_segments(axis, before):
            out.append(aligned_with(axis, meaning))
        else:
            out.append(axis_of(length(axis), Kind.MIXED if plain and is_plain(axis) else Kind.OPAQUE))
    return out


def _covers(view: list[Axis], axes: list[Axis]) -> bool:
    """Whether a view has part in every token axis of its storage, so that what it holds has its place along each.

    Else it stands at one position of an axis that it does not show, and what is written there may come from another.
    """
    seen = {atom for axis in view for atom in atoms_of(axis)}
    seen |= {atom for piece in seen if piece.whole is not None for atom in atoms_of((piece.whole,))}
    named = (atom for axis in axes for atom in atoms_of(axis) if atom.kind is Kind.NAMED)
    # Samples of a batch may change places: nothing is claimed of their order.
    return all(atom in seen for atom in named if atom.origin is None or atom.origin.path[0] != 0)


def _whole_segments(axis: Axis, written: list[Axis]) -> bool:
    """Whether the written view holds whole segments of the axis, so that the others are untouched."""
    parts = resolve(axis)
    if len(parts) != 1 or not isinstance(parts[0], Concat):
        return False
    segments = list(parts[0].segments)
    for other in map(resolve, written):
        pieces = other[0].segments if len(other) == 1 and isinstance(other[0], Concat) else (other,)
        if pieces and all(piece and any(same_axis(piece, segment) for segment in segments) for piece in pieces):
            return True
    return False


def leaves_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in leaves_of(item)]
    return []
