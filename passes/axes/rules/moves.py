"""How operators that join, repeat, move and look up elements carry axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svg_compile._compat.sizes import at_most, equal, holds, product_of, size_hint
from svg_compile.passes.axes.axis import Atom, Axis, Concat, Kind, atoms_of, is_one, is_plain, is_table, length
from svg_compile.passes.axes.merge import unify_each
from svg_compile.passes.axes.new_axes import free_axis, mixed_in, opaque_axis, other_positions
from svg_compile.passes.axes.new_axes import picked as mask_picked
from svg_compile.passes.axes.pieces import padded, put_together
from svg_compile.passes.axes.rules.call import AxesOf, Call
from svg_compile.passes.axes.rules.registry import (
    Named,
    aligned,
    along,
    of_pieces,
    replaced,
    rule,
    same_size,
    takes_all,
    thinned,
)

aten = torch.ops.aten

# More copies than a batch is ever repeated: then the axis is not worth a list of segments.
_MOST_COPIES = 16


@takes_all(aten.cat, aten.concat, aten.concatenate)
def _cat(call: Call) -> list[Axis]:
    """Segments along one dimension; along the others the pieces are aligned."""
    # Legacy: cat skips tensors of shape [0] whatever the rank of the others.
    pieces = [t for t in call["tensors"] if t.dim() == call.out.dim()]
    dim = call["dim"] % call.out.dim()
    first, *others = ([None if i == dim else axis for i, axis in enumerate(call.of(piece))] for piece in pieces)
    for axes in others:
        first = unify_each(first, axes, call.shape)
    pieces = [piece for piece in pieces if not same_size(piece.shape[dim], 0)] or pieces[:1]
    joint = put_together([_segment(call.of, piece, dim) for piece in pieces], call.shape[dim])
    return [joint if axis is None else axis for axis in first]


def _segment(of: AxesOf, piece: Tensor, dim: int) -> Axis:
    # A segment of one position is still a segment: sizes of 1 are dropped from products, so it needs an atom.
    tables = all(is_table(axis) for axis in of(piece))
    return of(piece)[dim] or (Atom(piece.shape[dim], Kind.TABLE if tables else Kind.MIXED),)


@takes_all(aten.stack)
def _stack(call: Call) -> list[Axis]:
    """A new dimension that counts the pieces; along the others they are aligned."""
    first, *others = pieces = call["tensors"]
    axes: list[Axis | None] = list(call.of(first))
    for piece in others:
        axes = unify_each(axes, call.of(piece), piece.shape)
    axes.insert(call["dim"] % call.out.dim(), of_pieces(pieces, call.of, len(pieces)))
    return [() if axis is None else axis for axis in axes]


@takes_all(aten.repeat, aten.tile)
def _repeat(call: Call) -> list[Axis]:
    """Copies one after another: segments, where they are few."""
    pad = call.out.dim() - call.source.dim()
    axes: list[Axis] = [free_axis(size) for size in call.shape[:pad]]
    for axis, before, after in zip(call.axes, call.source.shape, call.shape[pad:]):
        if is_one(before):
            axes.append(free_axis(after))
        elif same_size(before, after):
            axes.append(axis)
        elif isinstance(after, int) and isinstance(before, int) and after // before <= _MOST_COPIES:
            axes.append((Concat((axis,) * (after // before), after),))
        else:
            axes.append(other_positions(after, axis))
    return axes


@takes_all(aten.repeat_interleave)
def _repeat_interleave(call: Call) -> list[Axis]:
    """Each position several times in a row."""
    if not isinstance(call.get("self"), Tensor) or call.get("dim") is None:
        return [opaque_axis(size, *call.of(call["repeats"])) for size in call.shape]
    axes, (dim,) = call.axes, call.dims("dim")
    axes[dim] = other_positions(call.shape[dim], axes[dim])
    return axes


@along("dims", "dim")(aten.roll, aten.flip, aten.cumsum, aten.cumprod)
def _moved(call: Call, axis: Axis, size: Any) -> Axis:
    """Positions move or change their meaning: in which order they stand is not followed."""
    return other_positions(size, axis)


@takes_all(aten.rot90)
def _rot90(call: Call) -> list[Axis]:
    """Turns by a quarter: two dimensions change places after an odd number of them, and are reversed, one or both."""
    axes, (first, second), turns = call.axes, call.dims("dims"), call["k"] % 4
    for dim in ((), (second,), (first, second), (first,))[turns]:
        axes[dim] = other_positions(call.source.shape[dim], axes[dim])
    if turns % 2:
        axes[first], axes[second] = axes[second], axes[first]
    return axes


@along("dim")(aten.index_select)
def _looked_up(call: Call, axis: Axis, size: Any) -> Axis:
    """Positions in the order of an index; looked up in a table by data they are in the data's order."""
    index = next(iter(call.of(call["index"])), ())
    if is_table(index):
        return other_positions(size, axis)
    # The result of a look-up is data.
    return index if is_table(axis) else mixed_in(index) if _is_lookup(axis, [index]) else other_positions(size, axis)


@rule(aten.constant_pad_nd)
def padded_along(call: Call) -> Named:
    """Positions before and behind an axis, whatever stands in them."""
    made, pad = {}, call["pad"]
    for at in range(0, len(pad), 2):
        dim, before, after = call.source.dim() - 1 - at // 2, pad[at], pad[at + 1]
        if not (holds(equal, before, 0) and holds(equal, after, 0)):
            made[dim] = padded(call.axes[dim], before, after, call.shape[dim])
    return replaced(call, made)


@rule(aten.index)
def _index(call: Call) -> Named:
    """Advanced indexing: looking up a table takes the index's axes; picking from named tokens is a shuffle."""
    axes, indices = call.axes, list(call["indices"])
    used = [dim for dim, index in enumerate(indices) if index is not None]
    contiguous = used == list(range(used[0], used[-1] + 1))
    where = any(indices[dim].dtype in (torch.bool, torch.uint8) for dim in used)
    # Where a mask of one axis is true, positions of it are picked, as by their numbers.
    rows = len(used) == 1 and indices[used[0]].dim() == 1 and not is_table(axes[used[0]])
    if not contiguous or (where and not rows):
        return Named([opaque_axis(size, *axes) for size in call.shape], axes)
    kept = len(axes) - len(used)
    shape = call.shape[used[0] : call.out.dim() - (kept - used[0])]
    if all(is_table(axes[dim]) for dim in used):
        picked = aligned(call.of, [indices[dim] for dim in used], shape)
    elif len(used) == len(shape) == 1:
        picked = [(mask_picked if where else other_positions)(shape[0], axes[used[0]])]
    else:
        picked = [opaque_axis(size, *(axes[dim] for dim in used)) for size in shape]
    taken = [axes[dim] for dim in used] if all(size_hint(size) == 1 for size in shape) else []
    for dim in used:
        axes = thinned(axes, dim)
    return Named([*axes[: used[0]], *picked, *axes[used[-1] + 1 :]], taken)


@rule(aten.embedding)
def _embedding(call: Call) -> Named:
    """Rows of a table, [rows, columns], looked up by an index, [...]: the index's axes, then columns."""
    rows, columns = call.of(call["weight"])
    found = call.of(call["indices"])
    if not is_table(rows):
        # The result of a look-up is data, also if the index is a table.
        found = [mixed_in(axis) for axis in found]
        if not _is_lookup(rows, found):
            found = [opaque_axis(size, rows) for size in call.shape[:-1]]
    return Named([*found, columns], [rows] if all(size_hint(size) == 1 for size in call.shape[:-1]) else [])


def _is_lookup(rows: Axis, found: list[Axis]) -> bool:
    """True if rows of a small table are looked up that is an input, [frames, dim] say, or made of one, timesteps [T].

    Each is taken twice or more often. As many as there are indices could be tokens, and the look-up a shuffle of them.
    """
    named = [atom for atom in atoms_of(rows) if not is_plain((atom,))]
    small = bool(named) and all(atom.origin is not None and atom.origin.rank <= 2 for atom in named)
    return small and holds(at_most, 2 * length(rows), product_of([length(axis) for axis in found]))
