"""How views and cuts carry axes: operators whose result shows elements of one tensor; see `axis_rules`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svg_compile._compat.sizes import size_hint
from svg_compile.passes.axes.axis import Axis, is_one
from svg_compile.passes.axes.new_axes import opaque_axis, other_positions
from svg_compile.passes.axes.pieces import begins_at, cut
from svg_compile.passes.axes.regroup import regroup
from svg_compile.passes.axes.rules.registry import (
    Bound,
    State,
    aligned,
    of_pieces,
    rule,
    same_size,
    thinned,
)

aten = torch.ops.aten


@rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias)
def _view(state: State, a: Bound, out: Tensor) -> None:
    if "dtype" in a:
        axes = list(state.of(a["self"]))
        if out.shape[-1:] != a["self"].shape[-1:]:
            axes[-1] = opaque_axis(out.shape[-1], axes[-1])
        return state.name(out, axes)
    state.name(out, regroup(state.of(a["self"]), tuple(out.shape)))


@rule(aten.permute)
def _permute(state: State, a: Bound, out: Tensor) -> None:
    axes = state.of(a["self"])
    state.name(out, [axes[dim] for dim in a["dims"]])


@rule(aten.transpose)
def _transpose(state: State, a: Bound, out: Tensor) -> None:
    axes = list(state.of(a["self"]))
    if axes:
        axes[a["dim0"]], axes[a["dim1"]] = axes[a["dim1"]], axes[a["dim0"]]
    state.name(out, axes)


@rule(aten.t, aten.numpy_T)
def _t(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, state.of(a["self"])[::-1])


@rule(aten.unsqueeze)
def _unsqueeze(state: State, a: Bound, out: Tensor) -> None:
    axes = list(state.of(a["self"]))
    axes.insert(a["dim"] % out.dim(), ())
    state.name(out, axes)


@rule(aten.squeeze)
def _squeeze(state: State, a: Bound, out: Tensor) -> None:
    source = a["self"]
    dims = a.get("dim", tuple(range(source.dim())))
    dims = {dim % max(source.dim(), 1) for dim in (dims if isinstance(dims, (list, tuple)) else (dims,))}
    kept = [axis for dim, axis in enumerate(state.of(source)) if not (dim in dims and same_size(source.shape[dim], 1))]
    state.name(out, kept)


@rule(aten.expand)
def _expand(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, aligned(state, [a["self"]], tuple(out.shape)))


@rule(aten.select)
def _select(state: State, a: Bound, out: Tensor) -> None:
    dim = a["dim"] % a["self"].dim()
    axes = thinned(state.of(a["self"]), dim)
    taken = axes.pop(dim)
    state.name(out, axes)
    state.pin(out, taken)


@rule(aten.unbind)
def _unbind(state: State, a: Bound, out: Any) -> None:
    dim = a.get("dim", 0) % a["self"].dim()
    axes = thinned(state.of(a["self"]), dim)
    taken = axes.pop(dim)
    for piece in out:
        state.name(piece, axes)
        state.pin(piece, taken)


@rule(aten.slice)
def _slice(state: State, a: Bound, out: Tensor) -> None:
    source, dim = a["self"], a.get("dim", 0) % a["self"].dim()
    axes, size = state.of(source), out.shape[dim]
    if not same_size(size, source.shape[dim]):
        start = 0 if a.get("start") is None else begins_at(a["start"], source.shape[dim])
        part = other_positions(size, axes[dim])
        if is_one(a.get("step", 1)) and start is not None:
            part = cut(axes[dim], start, start + size, size)
        _name_piece(state, out, axes, dim, part)
    else:
        state.name(out, axes)


def _name_piece(state: State, out: Tensor, axes: list[Axis], dim: int, part: Axis) -> None:
    """Name what was cut out along `dim` of a tensor whose axes are given."""
    kept = thinned(axes, dim)
    kept[dim] = part
    state.name(out, kept)
    if size_hint(out.shape[dim]) == 1:
        state.pin(out, axes[dim])


@rule(aten.split, aten.split_with_sizes, aten.chunk, aten.unsafe_split, aten.unsafe_chunk, aten.tensor_split)
def _split(state: State, a: Bound, out: Any) -> None:
    source = a["self"]
    dim, at = a.get("dim", 0) % source.dim(), 0
    for piece in out:
        axes, size = state.of(source), piece.shape[dim]
        if same_size(size, source.shape[dim]):
            state.name(piece, axes)
        else:
            _name_piece(state, piece, axes, dim, cut(axes[dim], at, at + size, size))
        at = at + size


@rule(aten.view_as_complex)
def _view_as_complex(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, state.of(a["self"])[:-1])


@rule(aten.view_as_real)
def _view_as_real(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, [*state.of(a["self"]), of_pieces([a["self"]], state, 2)])
