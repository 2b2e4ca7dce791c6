"""How views and cuts carry axes: operators whose result shows elements of one tensor."""

from __future__ import annotations

from typing import Any

import torch

from svg_compile.passes.axes.axis import Axis, is_one
from svg_compile.passes.axes.new_axes import opaque_axis, other_positions
from svg_compile.passes.axes.pieces import begins_at, cut
from svg_compile.passes.axes.regroup import regroup
from svg_compile.passes.axes.rules.call import Call
from svg_compile.passes.axes.rules.registry import (
    Answer,
    aligned,
    along,
    indexed,
    of_pieces,
    replaced,
    rule,
    same_size,
    takes_all,
)

aten = torch.ops.aten


@takes_all(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias)
def _view(call: Call) -> list[Axis]:
    """The same elements in another shape, or read as another dtype."""
    if "dtype" not in call:
        return regroup(call.axes, call.shape)
    axes = call.axes
    if call.shape[-1:] != call.source.shape[-1:]:
        axes[-1] = opaque_axis(call.shape[-1], axes[-1])
    return axes


@takes_all(aten.permute)
def _permute(call: Call) -> list[Axis]:
    return [call.axes[dim] for dim in call["dims"]]


@takes_all(aten.transpose)
def _transpose(call: Call) -> list[Axis]:
    axes = call.axes
    if axes:
        one, other = call["dim0"], call["dim1"]
        axes[one], axes[other] = axes[other], axes[one]
    return axes


@takes_all(aten.t, aten.numpy_T)
def _t(call: Call) -> list[Axis]:
    return call.axes[::-1]


@takes_all(aten.unsqueeze)
def _unsqueeze(call: Call) -> list[Axis]:
    axes = call.axes
    axes.insert(call["dim"] % call.out.dim(), ())
    return axes


@takes_all(aten.squeeze)
def _squeeze(call: Call) -> list[Axis]:
    """Dimensions of size 1 are left out; others stay, also where they are asked for."""
    dims = [] if call.get("dim") == [] else call.dims("dim")
    gone = {dim for dim in dims if same_size(call.source.shape[dim], 1)}
    return [axis for dim, axis in enumerate(call.axes) if dim not in gone]


@takes_all(aten.expand)
def _expand(call: Call) -> list[Axis]:
    return aligned(call.of, [call.source], call.shape)


@rule(aten.select, aten.unbind)
def _select(call: Call) -> Answer:
    """One position of a dimension, which is gone."""
    (dim,) = call.dims("dim")
    return indexed(call, dim)


@along("dim")(aten.slice)
def _slice(call: Call, axis: Axis, size: Any) -> Axis:
    """Every n-th position from a start on; where all of them are taken, nothing changed."""
    (dim,) = call.dims("dim")
    whole = call.source.shape[dim]
    if same_size(size, whole):
        return axis
    start = 0 if call["start"] is None else begins_at(call["start"], whole)
    if is_one(call["step"]) and start is not None:
        return cut(axis, start, start + size, size)
    return other_positions(size, axis)


@rule(aten.split, aten.split_with_sizes, aten.chunk, aten.unsafe_split, aten.unsafe_chunk, aten.tensor_split)
def _split(call: Call) -> Answer:
    """Each result is the piece of the dimension behind those of the results before it."""
    (dim,) = call.dims("dim")
    size, at = call.shape[dim], sum(piece.shape[dim] for piece in call.before)
    if same_size(size, call.source.shape[dim]):
        return call.axes
    return replaced(call, {dim: cut(call.axes[dim], at, at + size, size)})


@takes_all(aten.view_as_complex)
def _view_as_complex(call: Call) -> list[Axis]:
    return call.axes[:-1]


@takes_all(aten.view_as_real)
def _view_as_real(call: Call) -> list[Axis]:
    return [*call.axes, of_pieces([call.source], call.of, 2)]


@takes_all(aten.pixel_unshuffle)
def _pixel_unshuffle(call: Call) -> list[Axis]:
    """[.., C, H*r, W*r] -> [.., C*r*r, H, W]: rows and columns of squares, whose inside goes into the channels."""
    *kept, channels, rows, columns = call.axes
    r, (*_, height, width) = call["downscale_factor"], call.shape
    (top, down), (left, right) = regroup([rows], (height, r)), regroup([columns], (width, r))
    return [*kept, (*channels, *down, *right), top, left]


@takes_all(aten.pixel_shuffle)
def _pixel_shuffle(call: Call) -> list[Axis]:
    """[.., C*r*r, H, W] -> [.., C, H*r, W*r]: a row is a row of squares and a position in them, out of the channels."""
    *kept, channels, rows, columns = call.axes
    r = call["upscale_factor"]
    made, down, right = regroup([channels], (call.shape[-3], r, r))
    return [*kept, made, (*rows, *down), (*columns, *right)]


@rule(aten.unfold)
def _unfold(call: Call) -> list[Axis]:
    """Windows along a dimension, their inside last: a split of it, where they adjoin and leave nothing out."""
    axes, (dim,) = call.axes, call.dims("dimension")
    sizes = (call.shape[dim], call["size"])
    split = call["step"] == sizes[1] and same_size(sizes[0] * sizes[1], call.source.shape[dim])
    axes[dim], inside = regroup([axes[dim]], sizes) if split else [opaque_axis(size, axes[dim]) for size in sizes]
    return [*axes, inside]
