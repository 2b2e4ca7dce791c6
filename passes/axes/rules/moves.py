"""How operators that join, repeat, move and look up elements carry axes; see `axis_rules`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from svg_compile._compat.sizes import at_most, holds, product_of
from svg_compile.passes.axes.axis import (
    Atom,
    Axis,
    Concat,
    Kind,
    atoms_of,
    free_axis,
    is_one,
    is_table,
    length,
    mixed_in,
    opaque_axis,
    other_positions,
)
from svg_compile.passes.axes.merge import unify_each
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
    segments = tuple(_segment(state, piece, dim) for piece in pieces)
    joint = segments[0] if len(segments) == 1 else (Concat(segments, out.shape[dim]),)
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
        return state.name(out, [opaque_axis(size) for size in out.shape])
    axes, dim = list(state.of(a["self"])), a["dim"] % out.dim()
    axes[dim] = other_positions(out.shape[dim], axes[dim])
    state.name(out, axes)


@rule(aten.roll, aten.flip, aten.constant_pad_nd, aten.index_select, aten.cumsum, aten.cumprod)
def _moved(state: State, a: Bound, out: Tensor) -> None:
    """Positions along some dimensions move or change their meaning; those become unknown, the others stay."""
    source = a["self"]
    dims = a.get("dims", a.get("dim"))
    if "pad" in a:
        pairs = [a["pad"][i : i + 2] for i in range(0, len(a["pad"]), 2)]
        none = [all(isinstance(size, int) and size == 0 for size in pair) for pair in pairs]
        dims = [source.dim() - 1 - i for i, nothing in enumerate(none) if not nothing]
    if dims is None or dims == []:
        dims = range(source.dim()) if "pad" not in a else []
    moved = {dim % max(source.dim(), 1) for dim in (dims if isinstance(dims, Iterable) else [dims])}
    axes = list(state.of(source))
    for dim in moved if axes else ():
        axes = thinned(axes, dim)
        axes[dim] = other_positions(out.shape[dim], state.of(source)[dim])
    state.name(out, axes)
    for dim in moved if axes else ():
        if is_one(out.shape[dim]):
            state.pin(out, state.of(source)[dim])


@rule(aten.index)
def _index(state: State, a: Bound, out: Tensor) -> None:
    """Advanced indexing: looking up a table takes the index's axes; picking from named tokens is a shuffle."""
    source, indices = a["self"], list(a["indices"])
    used = [dim for dim, index in enumerate(indices) if index is not None]
    contiguous = used == list(range(used[0], used[-1] + 1))
    if not contiguous or any(indices[dim].dtype in (torch.bool, torch.uint8) for dim in used):
        state.name(out, [opaque_axis(size) for size in out.shape])
        for axis in state.of(source):
            state.pin(out, axis)
        return
    axes = state.of(source)
    kept = len(axes) - len(used)
    shape = tuple(out.shape[used[0] : out.dim() - (kept - used[0])])
    if all(is_table(axes[dim]) for dim in used):
        picked = aligned(state, [indices[dim] for dim in used], shape)
    elif len(used) == len(shape) == 1:
        picked = [other_positions(shape[0], axes[used[0]])]
    else:
        picked = [opaque_axis(size) for size in shape]
    for dim in used:
        axes = thinned(axes, dim)
    state.name(out, [*axes[: used[0]], *picked, *axes[used[-1] + 1 :]])
    if all(map(is_one, shape)):
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
            found = [opaque_axis(size) for size in out.shape[:-1]]
    state.name(out, [*found, columns])
    if all(map(is_one, out.shape[:-1])):
        state.pin(out, rows)


def _is_lookup(rows: Axis, found: list[Axis]) -> bool:
    """Whether rows of a table that is an input, [frames, dim] say, are looked up: fewer than there are indices.

    As many or more could be tokens, and the look-up a shuffle of them.
    """
    small = all(atom.origin is not None and atom.origin.rank == 2 for atom in atoms_of(rows))
    return small and holds(at_most, length(rows) + 1, product_of([length(axis) for axis in found]))
