"""Updates the axes of all tensors that share the storage of an in-place write."""

from __future__ import annotations

import enum
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from svg_compile._compat.operators import qualified_name
from svg_compile._compat.storages import storage_of
from svg_compile.passes.axes.axis import (
    Atom,
    Axis,
    Concat,
    Kind,
    atoms_of,
    is_opaque,
    is_plain,
    is_table,
    length,
    resolve,
    same_axis,
)
from svg_compile.passes.axes.filled import apart, filled
from svg_compile.passes.axes.merge import aligned_with
from svg_compile.passes.axes.naming import Meaning
from svg_compile.passes.axes.new_axes import axis_of, free_axis, opaque_axis
from svg_compile.passes.axes.rules.call import AxesOf
from svg_compile.passes.axes.rules.registry import aligned, same_size, shown_axes
from svg_compile.passes.axes.selections import of_samples, whole_of

# Pointwise operators that torch does not tag as such in their in-place form.
_IN_PLACE = ("add_", "sub_", "mul_", "div_", "clamp_", "masked_fill_", "addcmul_", "pow_", "exp_", "neg_", "sigmoid_")


class Write(enum.Enum):
    """The kind of data that an in-place operator writes to its first operand."""

    CONSTANT = "one value everywhere"
    COPY = "the values of another operand"
    POINTWISE = "a function of its own values and those of the other operands, element by element"


def kind_of_write(operator: Any) -> Write | None:
    """The kind of write of an overload that mutates only its first operand; None if unknown."""
    aten, name = torch.ops.aten, (qualified_name(operator) or "").removeprefix("aten::")
    if operator.overloadpacket in (aten.fill_, aten.zero_):
        return Write.CONSTANT
    if operator.overloadpacket is aten.copy_:
        return Write.COPY
    in_place = name.endswith("_") and (torch.Tag.pointwise in operator.tags or name in _IN_PLACE)
    return Write.POINTWISE if in_place else None


def written_axes(
    of: AxesOf, target: Tensor, operands: list[Tensor], aliases: list[Tensor], over: bool
) -> list[tuple[Tensor, list[Axis]]]:
    """The new axes of all tensors of a storage, `aliases`, of which `target` took a pointwise operator's values.

    operands: of that operator, `target` first; over: its own values do not enter.
    """
    before = of(target)
    meaning: Meaning = {}
    after = aligned(of, operands, tuple(target.shape), meaning)
    # After `x[...] += y` Python assigns the updated view to itself.
    others = [operand for operand in operands[1:] if not same_place(operand, target)]
    tables = all(is_table(axis) for operand in others for axis in of(operand))
    if over and not tables:
        after = _replaced(of, before, after, others[0], target)
    changed: Meaning = {}
    untouched = True
    # An atom along two dimensions cannot be renamed differently in each.
    dims = Counter(atom for axis in before for atom in set(atoms_of(axis)))
    for old, new in zip(before, after):
        if same_axis(old, new):
            continue
        untouched = False
        for atom in atoms_of(old):
            if is_opaque(new) or dims[atom] > 1 or (atom not in meaning and atom not in set(atoms_of(new))):
                changed[atom] = opaque_axis(atom.size, (atom,), new)
            elif atom in meaning:
                changed[atom] = meaning[atom]
    if untouched and (tables or all(_covers(before, of(alias)) for alias in aliases)):
        return []
    out = []
    for alias in aliases:
        if alias is not target and apart(alias, target):
            continue
        axes = after if alias is target else filled(of, alias, target, after)
        out.append((alias, axes or _rewritten(of(alias), before, after, changed, tables)))
    return out


def _replaced(of: AxesOf, before: list[Axis], after: list[Axis], source: Tensor, target: Tensor) -> list[Axis]:
    """The axes of a copy into named tokens: only the same tokens, or the same axes of another input, keep the name."""
    theirs = shown_axes(of, source, tuple(target.shape))
    triples = zip(before, after, theirs)
    return [new if _keeps(old, own) else opaque_axis(length(old), old, new) for old, new, own in triples]


def _keeps(old: Axis, own: Axis | None) -> bool:
    """True if an axis keeps its name when `own` (None: broadcast) is copied into it."""
    return is_plain(old) or all(map(of_samples, atoms_of(old))) or (own is not None and _alike(old, own))


def _alike(left: Axis, right: Axis) -> bool:
    """True if two axes are the same, or whole dimensions of two inputs with the same index in both."""
    if same_axis(left, right):
        return True
    left, right = resolve(left), resolve(right)
    return len(left) == len(right) and all(
        isinstance(x, Atom)
        and isinstance(y, Atom)
        and x.kind is y.kind is Kind.NAMED
        and not (x.inner or y.inner)
        and x.origin is not None
        and y.origin is not None
        and (x.origin.path, x.origin.rank) == (y.origin.path, y.origin.rank)
        and same_size(x.size, y.size)
        for x, y in zip(left, right)
    )


def same_place(left: Tensor, right: Tensor) -> bool:
    """True if two views have the same elements in the same order."""
    if storage_of(left) != storage_of(right) or left.dim() != right.dim():
        return False
    pairs = zip((*left.shape, *left.stride()), (*right.shape, *right.stride()))
    return same_size(left.storage_offset(), right.storage_offset()) and all(same_size(*pair) for pair in pairs)


def _rewritten(axes: list[Axis], before: list[Axis], after: list[Axis], meaning: Meaning, tables: bool) -> list[Axis]:
    """The axes of a tensor after another view of its storage was written, whose axes were `before` and are `after`.

    Atoms that both have change alike. An axis that the written view has no part in was cut by it in a way that is not
    followed: afterwards its positions hold whatever was written to some of them. A table stays one, where `tables` says
    that nothing but tables was written.
    """
    shared = {atom for axis in before for atom in atoms_of(axis)}
    own = {atom for axis in axes for atom in atoms_of(axis)}
    extra = [new for old, new in zip(before, after) if not own.issuperset(atoms_of(old))]
    plain = all(is_plain(axis) for axis in extra)
    table = tables and all(is_table(axis) for axis in (*axes, *after))
    out = []
    for axis in axes:
        if all(atom in shared for atom in atoms_of(axis)) or _whole_segments(axis, before):
            out.append(aligned_with(axis, meaning))
        elif table:
            out.append(free_axis(length(axis)))
        else:
            mixed = plain and is_plain(axis)
            out.append(axis_of(length(axis), Kind.MIXED) if mixed else opaque_axis(length(axis), axis, *after))
    return out


def _covers(view: list[Axis], axes: list[Axis]) -> bool:
    """True if a view includes every token axis of its storage, so that its elements have a position along each.

    Otherwise the view is one slice of a hidden axis, and the written data may come from a different slice.
    """
    seen = {atom for axis in view for atom in atoms_of(axis)}
    seen |= {atom for piece in seen for atom in atoms_of(whole_of(piece))}
    return all(_has_part(axis, seen) for axis in axes)


def _has_part(axis: Axis, seen: set[Atom]) -> bool:
    """True if the atoms of a view (`seen`) include the whole axis, or a whole segment of it."""
    parts = resolve(axis)
    if len(parts) == 1 and isinstance(parts[0], Concat):
        named = [_named(segment) for segment in parts[0].segments]
        return not any(named) or any(atoms and seen.issuperset(atoms) for atoms in named)
    return seen.issuperset(_named(axis))


def _named(axis: Axis) -> set[Atom]:
    # Samples of a batch may be reordered: their order is not tracked.
    return {atom for atom in atoms_of(axis) if atom.kind is Kind.NAMED and not of_samples(atom)}


def _whole_segments(axis: Axis, written: list[Axis]) -> bool:
    """True if the written view consists of whole segments of the axis, so that the others are unchanged."""
    parts = resolve(axis)
    if len(parts) != 1 or not isinstance(parts[0], Concat):
        return False
    segments = list(parts[0].segments)
    for other in map(resolve, written):
        pieces = other[0].segments if len(other) == 1 and isinstance(other[0], Concat) else (other,)
        if pieces and all(piece and any(same_axis(piece, segment) for segment in segments) for piece in pieces):
            return True
    return False
