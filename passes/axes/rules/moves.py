"""How operators that join, repeat, move and look up elements carry axes; see `axis_rules`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from svg_compile._compat.sizes import at_most, equal, holds, product_of, size_hint
from svg_compile.passes.axes.axis import Atom, Axis, Concat, Kind, atoms_of, is_one, is_table, length
from svg_compile.passes.axes.merge import unify_each
from svg_compile.passes.axes.new_axes import free_axis, mixed_in, opaque_axis, other_positions
from svg_compile.passes.axes.new_axes import picked as mask_picked
from svg_compile.passes.axes.pieces import padded, put_together
from svg_compile.passes.axes.rules.registry import Bound, State, aligned, of_pieces, rule, same_size, thinned

aten = torch.ops.aten

# More copies than a batch is ever repeated: then the axis is not worth a list of segments.
_MOST_COPIES = 16


@rule(aten.cat, aten.concat, aten.concatenate)
def _cat(state: State, a: Bound, out: Tensor) -> None:
    # Legacy: cat skips tensors of shape [0] whatever the rank of the others.
    pieces = [t for t in a["tensors"] if t.dim() == out.dim()]
    dim = a.get("dim", 0) % out.dim()
    first, *others = ([None if i == dim else axis for i, axis in enumerate(state.of(piece))] for piece in pieces)
    for axes in others:
        first = unify_each(first, axes, out.shape)
    pieces = [piece for piece in pieces if not same_size(piece.shape[dim], 0)] or pieces[:1]
    joint = put_together([_segment(state, piece, dim) for piece in pieces], out.shape[dim])
    state.name(out, [joint if axis is None else axis for axis in first])


def _segment(state: State, piece: Tensor, dim: int) -> Axis:
    # A segment of one position is still a segment: sizes of 1 are dropped from products, so it needs an atom.
    tables = all(is_table(axis) for axis in state.of(piece))
    return state.of(piece)[dim] or (Atom(piece.shape[dim], Kind.TABLE if tables else Kind.MIXED),)


@rule(aten.stack)
def _stack(state: State, a: Bound, out: Tensor) -> None:
    pieces = a["tensors"]
    axes: list[Axis | None] = list(state.of(pieces[0]))
    for piece in pieces[1:]:
        axes = unify_each(axes, state.of(piece), piece.shape)
    axes.insert(a.get("dim", 0) % out.dim(), of_pieces(pieces, state, len(pieces)))
    state.name(out, [() if axis is None else axis for axis in axes])


@rule(aten.repeat, aten.tile)
def _repeat(state: State, a: Bound, out: Tensor) -> None:
    source = a["self"]
    pad = out.dim() - source.dim()
    axes: list[Axis] = [free_axis(size) for size in out.shape[:pad]]
    for axis, before, after in zip(state.of(source), source.shape, out.shape[pad:]):
        if is_one(before):
            axes.append(free_axis(after))
        elif same_size(before, after):
            axes.append(axis)
        elif isinstance(after, int) and isinstance(before, int) and after // before <= _MOST_COPIES:
            axes.append((Concat((axis,) * (after // before), after),))
        else:
            axes.append(other_positions(after, axis))
    state.name(out, axes)


@rule(aten.repeat_interleave)
def _repeat_interleave(state: State, a: Bound, out: Tensor) -> None:
    if not isinstance(a.get("self"), Tensor) or a.get("dim") is None:
        return state.name(out, [opaque_axis(size, *state.of(a["repeats"])) for size in out.shape])
    axes, dim = list(state.of(a["self"])), a["dim"] % out.dim()
    axes[dim] = other_positions(out.shape[dim], axes[dim])
    state.name(out, axes)


@rule(aten.roll, aten.flip, aten.index_select, aten.cumsum, aten.cumprod)
def _moved(state: State, a: Bound, out: Tensor) -> None:
    """Positions along some dimensions move or change their meaning; those become unknown, the others stay."""
    source = a["self"]
    dims = a.get("dims", a.get("dim"))
    if dims is None or dims == []:
        dims = range(source.dim())
    replaced = {dim % max(source.dim(), 1) for dim in (dims if isinstance(dims, Iterable) else [dims])}
    axes = state.of(source)
    _along(state, source, out, {dim: other_positions(out.shape[dim], axes[dim]) for dim in replaced if axes})


@rule(aten.constant_pad_nd)
def _constant_pad(state: State, a: Bound, out: Tensor) -> None:
    name_padded(state, a["self"], a["pad"], out)


def name_padded(state: State, source: Tensor, pad: Sequence[Any], out: Tensor) -> None:
    """Name what `torch.nn.functional.pad` made of a tensor, whatever stands in the new positions."""
    axes = state.of(source)
    made = {}
    for at in range(0, len(pad), 2):
        dim, before, after = source.dim() - 1 - at // 2, pad[at], pad[at + 1]
        if not (holds(equal, before, 0) and holds(equal, after, 0)):
            made[dim] = padded(axes[dim], before, after, out.shape[dim])
    _along(state, source, out, made)


def _along(state: State, source: Tensor, out: Tensor, made: Mapping[int, Axis]) -> None:
    """Name a result that has new axes along some dimensions of its operand, and the operand's along the others."""
    axes = list(state.of(source))
    for dim, axis in made.items():
        axes = thinned(axes, dim)
        axes[dim] = axis
    state.name(out, axes)
    for dim in made:
        if size_hint(out.shape[dim]) == 1:
            state.pin(out, state.of(source)[dim])


@rule(aten.index)
def _index(state: State, a: Bound, out: Tensor) -> None:
    """Advanced indexing: looking up a table takes the index's axes; picking from named tokens is a shuffle."""
    source, indices = a["self"], list(a["indices"])
    used = [dim for dim, index in enumerate(indices) if index is not None]
    contiguous = used == list(range(used[0], used[-1] + 1))
    where = any(indices[dim].dtype in (torch.bool, torch.uint8) for dim in used)
    # Where a mask of one axis is true, positions of it are picked, as by their numbers.
    rows = len(used) == 1 and indices[used[0]].dim() == 1 and not is_table(state.of(source)[used[0]])
    if not contiguous or (where and not rows):
        state.name(out, [opaque_axis(size, *state.of(source)) for size in out.shape])
        for axis in state.of(source):
            state.pin(out, axis)
        return
    axes = state.of(source)
    kept = len(axes) - len(used)
    shape = tuple(out.shape[used[0] : out.dim() - (kept - used[0])])
    if all(is_table(axes[dim]) for dim in used):
        picked = aligned(state, [indices[dim] for dim in used], shape)
    elif len(used) == len(shape) == 1:
        picked = [(mask_picked if where else other_positions)(shape[0], axes[used[0]])]
    else:
        picked = [opaque_axis(size, *(axes[dim] for dim in used)) for size in shape]
    for dim in used:
        axes = thinned(axes, dim)
    state.name(out, [*axes[: used[0]], *picked, *axes[used[-1] + 1 :]])
    if all(size_hint(size) == 1 for size in shape):
        for dim in used:
            state.pin(out, state.of(source)[dim])


@rule(aten.embedding)
def _embedding(state: State, a: Bound, out: Tensor) -> None:
    rows, columns = state.of(a["weight"])
    found = state.of(a["indices"])
    if not is_table(rows):
        # What is looked up is data, also where it is looked up by a table.
        found = [mixed_in(axis) for axis in found]
        if not _is_lookup(rows, found):
            found = [opaque_axis(size, rows) for size in out.shape[:-1]]
    state.name(out, [*found, columns])
    if all(size_hint(size) == 1 for size in out.shape[:-1]):
        state.pin(out, rows)


def _is_lookup(rows: Axis, found: list[Axis]) -> bool:
    """Whether rows of a table that is an input, [frames, dim] say, are looked up: fewer than there are indices.

    As many or more could be tokens, and the look-up a shuffle of them.
    """
    small = all(atom.origin is not None and atom.origin.rank == 2 for atom in atoms_of(rows))
    return small and holds(at_most, length(rows) + 1, product_of([length(axis) for axis in found]))
