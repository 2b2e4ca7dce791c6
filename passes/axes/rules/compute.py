"""How operators that compute and make elements carry axes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from svg_compile._compat.pytree import tensors_in
from svg_compile._compat.sizes import expression
from svg_compile.passes.axes.axis import Atom, Axis, Kind, atoms_of, expand, is_plain, is_table
from svg_compile.passes.axes.merge import unify_each
from svg_compile.passes.axes.new_axes import axis_of, free_axis, mixed_in, opaque_axis, other_positions
from svg_compile.passes.axes.rules.call import AxesOf, Call
from svg_compile.passes.axes.rules.registry import aligned, same_size, shown_axes, takes_all

aten = torch.ops.aten


# ---- arithmetic --------------------------------------------------------------------------------------------------


@takes_all(
    *(aten._to_copy, aten.clone, aten.alias, aten.detach, aten.lift_fresh, aten.lift_fresh_copy),
    *(aten.rsub, aten.polar, aten.complex, aten.real, aten.imag, aten.floor_divide, aten.native_dropout),
    *(aten._conj, aten.resolve_conj, aten._neg_view, aten.softmax, aten._softmax, aten.dropout),
    *(aten.nan_to_num, aten.where, aten.masked_fill, aten.copy, aten.fill, aten.tril, aten.triu),
)
def pointwise(call: Call) -> list[Axis]:
    """Index i of the result comes from index i of the operands."""
    return aligned(call.of, call.tensors, call.shape)


@takes_all(aten.native_layer_norm, aten.native_group_norm, aten._fused_rms_norm, aten.rms_norm, aten.layer_norm)
def _norm(call: Call) -> list[Axis] | None:
    """Elements stay where they are; of the statistics, where they are returned, nothing is said."""
    if call.before:
        return None
    affine = tensors_in([call.get("weight"), call.get("bias")])
    tables = all(is_table(axis) for operand in affine for axis in call.of(operand))
    axes = call.of(call["input"])
    return axes if tables else [mixed_in(axis) for axis in axes]


@takes_all(
    *(aten.sum, aten.mean, aten.var, aten.std, aten.amax, aten.amin, aten.prod, aten.any, aten.all, aten.argmax),
    *(aten.linalg_vector_norm, aten.logsumexp, aten.max, aten.min, aten.argmin, aten.var_mean, aten.norm),
)
def _reduce(call: Call) -> list[Axis]:
    """Dimensions are gone, or of size 1; all positions along them have entered each element of the result."""
    if isinstance(call.get("other"), Tensor):
        return pointwise(call)
    axes, gone = call.axes, set(call.dims("dim"))
    if not all(is_plain(axes[dim]) for dim in gone if axes):
        # A sum over tokens: an axis that was a table may now be a mixture of them.
        axes = [mixed_in(axis) for axis in axes]
    kept = call.out.dim() == call.source.dim()
    return [() if dim in gone else axis for dim, axis in enumerate(axes) if kept or dim not in gone]


@takes_all(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.linear, aten.matmul, aten._int_mm, aten._scaled_mm)
def _matmul(call: Call) -> list[Axis]:
    """Rows of the left operand, columns of the right one; the data of each flows into what was a table of the other."""
    left = call.get("mat1", call.get("batch1", call.get("input", call.get("self"))))
    right = call.get("mat2", call.get("batch2", call.get("weight", call.get("other"))))
    x, y, out = call.of(left), call.of(right), call.out
    if "weight" in call:
        y = y[::-1]
    unknown = [opaque_axis(size, *x, *y) for size in out.shape]
    if len(x) < 2 or len(y) < 2 or len(y) > out.dim() or len(x) > out.dim():
        return unknown
    batch = leading(call.of, [left, right], out)
    if not (is_table(x[-1]) and is_table(y[-2])):
        batch = [mixed_in(axis) for axis in batch]
    rows = x[-2] if is_table(y[-2]) else mixed_in(x[-2])
    columns = y[-1] if is_table(x[-1]) else mixed_in(y[-1])
    product: list[Axis | None] = [*batch, rows, columns]
    added = call["self"] if "mat1" in call or "batch1" in call else call.get("bias")
    for beside in tensors_in([added, call.get("scale_a"), call.get("scale_b")]):
        if all(map(is_table, call.of(beside))):
            continue
        if beside.dim() > out.dim() or not _broadcasts(beside, out):
            # Scales a block of both operands.
            return unknown
        product = unify_each(product, shown_axes(call.of, beside, call.shape), out.shape)
    return [() if axis is None else axis for axis in product]


def _broadcasts(tensor: Tensor, out: Tensor) -> bool:
    sizes = zip(tensor.shape, tuple(out.shape)[out.dim() - tensor.dim() :])
    return all(same_size(size, 1) or same_size(size, whole) for size, whole in sizes)


def leading(of: AxesOf, operands: list[Tensor], out: Tensor) -> list[Axis]:
    """The axes of a result before its last two dimensions, to which the operands' are broadcast."""
    shape = tuple(out.shape)
    axes: list[Axis | None] = [None] * (len(shape) - 2)
    for operand in operands:
        axes = unify_each(axes, shown_axes(of, operand, shape)[:-2], shape[:-2])
    return [free_axis(size) if axis is None else axis for axis, size in zip(axes, shape)]


def attended(of: AxesOf, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> list[Axis]:
    """Attention: rows of the query, columns of the value; what was a table there is one no more, where the values are
    none along the tokens. Samples and heads are the query's, unless it is broadcast to those of keys and values.
    """
    own = shown_axes(of, query, tuple(out.shape))[:-2]
    others = leading(of, [key, value], out)
    batch = [other if axis is None else axis for axis, other in zip(own, others)]
    axes = [*batch, of(query)[-2], of(value)[-1]]
    return axes if is_table(of(key)[-2]) and is_table(of(value)[-2]) else [mixed_in(axis) for axis in axes]


@takes_all(aten.convolution, aten.conv1d, aten.conv2d, aten.conv3d)
def _convolution(call: Call) -> list[Axis]:
    """Each output position is one place of the input's axis, in order: a patch or a window around a token."""
    axes, shape, weight = call.of(call["input"]), call.shape, call.of(call["weight"])
    spatial = [opaque_axis(size, axis) for axis, size in zip(axes[2:], shape[2:])]
    if not call.get("transposed", False):
        geometry = [_geometry(call, dim, len(spatial)) for dim in range(len(spatial))]
        spatial = [_derived(axis, size, how) for axis, size, how in zip(axes[2:], shape[2:], geometry)]
    kept = [axes[0], *spatial]
    if not (is_table(axes[1]) and all(map(is_table, weight))):
        kept = [mixed_in(axis) for axis in kept]
    made = Kind.TABLE if all(is_table(axis) for axis in (*axes, *weight)) else Kind.MIXED
    return [kept[0], axis_of(shape[1], made), *kept[1:]]


def _geometry(call: Call, dim: int, count: int) -> tuple[Any, ...] | None:
    """The geometry by which output positions correspond to input positions; None if they may not correspond."""
    values: list[Any] = [call["weight"].shape[2 + dim]]
    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = call.get(name, default)
        if isinstance(value, (list, tuple)):
            value = value[dim] if len(value) == count else value[0]
        values.append(value)
    kernel, _, padding, dilation = values
    if isinstance(padding, int) and 2 * padding > dilation * (kernel - 1):
        # The middle of what the first positions see lies outside of the input: a place of the input they are not.
        return None
    return tuple(value if isinstance(value, str) else expression(value) for value in values)


def _derived(axis: Axis, size: Any, geometry: tuple[Any, ...] | None) -> Axis:
    source = expand(axis)
    if not source:
        return free_axis(size)
    if geometry is not None and geometry[:3] == (1, 1, 0):
        # Position for position.
        return axis
    atom = source[0]
    if geometry is None or len(source) > 1 or not isinstance(atom, Atom) or atom.opaque or atom.inner:
        return opaque_axis(size, axis)
    made = atom.derived.get(geometry)
    if made is None:
        made = atom.derived[geometry] = Atom(size, atom.kind, atom.origin)
    return (made,)


def _pooled(call: Call, count: int) -> list[Axis]:
    """As a convolution, one channel at a time: each output position is one place of the input's axis, in order."""
    batch, spatial, sizes = call.axes[:-count], call.axes[-count:], call.shape[-count:]
    if not all(is_plain(axis) for axis in spatial):
        # A sum over tokens: an axis that was a table may now be a mixture of them.
        batch = [mixed_in(axis) for axis in batch]
    kernel, padding = _each(call["kernel_size"], count), call.get("padding", 0)
    stride = _each(call.get("stride") or kernel, count)
    # Without padding, and dropping what fills no window, position i stands for places from i * stride on.
    plain = not call.get("ceil_mode", False) and not any(_each(padding, count))
    windows = zip(spatial, sizes, kernel, stride)
    places = [_window(axis, size, (width, step, 0, 1) if plain else None) for axis, size, width, step in windows]
    return [*batch, *places]


def _each(value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if len(values) == 1 else values


def _window(axis: Axis, size: Any, geometry: tuple[int, ...] | None) -> Axis:
    return other_positions(size, axis) if is_table(axis) else _derived(axis, size, geometry)


for _count, _pool in enumerate((aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d), 1):
    takes_all(_pool)(partial(_pooled, count=_count))


# ---- sources -----------------------------------------------------------------------------------------------------


@takes_all(aten.arange)
def _arange(call: Call) -> list[Axis]:
    """Counts positions, so it is evidence of a grid."""
    axis = axis_of(call.shape[0], Kind.COORD)
    for atom in atoms_of(axis):
        # Only the whole arange counts every position; a part of it need not.
        atom.derived["arange"] = True
    return [axis]


FACTORIES = (
    *(aten.empty, aten.zeros, aten.ones, aten.full, aten.rand, aten.randn, aten.scalar_tensor, aten.linspace),
    *(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like),
    *(aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.empty_strided, aten.new_empty_strided),
    *(aten.empty_permuted, aten.eye, aten.tril_indices, aten.logspace),
)


@takes_all(*FACTORIES)
def _fresh(call: Call) -> list[Axis]:
    """Of no input's data, also where the shape is an input's."""
    return [free_axis(size) for size in call.shape]
