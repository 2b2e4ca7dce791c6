"""How operators that compute, make and write elements carry axes; see `axis_rules`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svg_compile._compat.sizes import expression
from svg_compile.passes.axes.axis import Atom, Axis, Kind, atoms_of, expand, is_plain, is_table
from svg_compile.passes.axes.merge import unify_each
from svg_compile.passes.axes.new_axes import axis_of, free_axis, mixed_in, opaque_axis, other_positions
from svg_compile.passes.axes.rules.registry import Bound, State, aligned, rule, same_size, shown_axes, tensors_in

aten = torch.ops.aten


# ---- arithmetic --------------------------------------------------------------------------------------------------


@rule(
    *(aten._to_copy, aten.clone, aten.alias, aten.detach, aten.lift_fresh, aten.lift_fresh_copy),
    *(aten.rsub, aten.polar, aten.complex, aten.real, aten.imag, aten.floor_divide, aten.native_dropout),
    *(aten._conj, aten.resolve_conj, aten._neg_view, aten.softmax, aten._softmax, aten.dropout),
    *(aten.nan_to_num, aten.where, aten.masked_fill, aten.copy, aten.fill, aten.tril, aten.triu),
)
def pointwise(state: State, a: Bound, out: Any) -> None:
    """Index i of the result comes from index i of the operands."""
    for result in tensors_in(out if isinstance(out, (tuple, list)) else [out]):
        state.name(result, aligned(state, tensors_in(a.values()), tuple(result.shape)))


@rule(aten.native_layer_norm, aten.native_group_norm, aten._fused_rms_norm, aten.rms_norm, aten.layer_norm)
def _norm(state: State, a: Bound, out: Any) -> None:
    # The statistics, where they are returned, are not of the model's making: nothing is said of them.
    axes = list(state.of(a["input"]))
    affine = tensors_in([a.get("weight"), a.get("bias")])
    if not all(is_table(axis) for operand in affine for axis in state.of(operand)):
        axes = [mixed_in(axis) for axis in axes]
    state.name(out[0] if isinstance(out, (tuple, list)) else out, axes)


@rule(
    *(aten.sum, aten.mean, aten.var, aten.std, aten.amax, aten.amin, aten.prod, aten.any, aten.all, aten.argmax),
    *(aten.linalg_vector_norm, aten.logsumexp, aten.max, aten.min, aten.argmin, aten.var_mean, aten.norm),
)
def _reduce(state: State, a: Bound, out: Any) -> None:
    source = a.get("self", a.get("input"))
    if isinstance(a.get("other"), Tensor):
        return pointwise(state, a, out)
    axes, dims = state.of(source), a.get("dim")
    if dims is None or dims == []:
        dims = range(source.dim())
    gone = {dim % max(source.dim(), 1) for dim in (dims if isinstance(dims, Iterable) else [dims])}
    if not all(is_plain(axis) for dim, axis in enumerate(axes) if dim in gone):
        # Tokens are summed up: what was a table beside them may now be a mixture of them.
        axes = [mixed_in(axis) for axis in axes]
    for result in tensors_in(out if isinstance(out, (tuple, list)) else [out]):
        kept = result.dim() == source.dim()
        left = [() if dim in gone else axis for dim, axis in enumerate(axes) if kept or dim not in gone]
        state.name(result, left)


@rule(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.linear, aten.matmul, aten._int_mm, aten._scaled_mm)
def _matmul(state: State, a: Bound, out: Tensor) -> None:
    """Rows of the left operand, columns of the right one; the data of each flows into what was a table of the other."""
    left = a.get("mat1", a.get("batch1", a.get("input", a.get("self"))))
    right = a.get("mat2", a.get("batch2", a.get("weight", a.get("other"))))
    x, y = state.of(left), state.of(right)
    if "weight" in a:
        y = y[::-1]
    if len(x) < 2 or len(y) < 2 or len(y) > out.dim() or len(x) > out.dim():
        return state.name(out, [opaque_axis(size, *x, *y) for size in out.shape])
    batch = leading(state, [left, right], out)
    if not (is_table(x[-1]) and is_table(y[-2])):
        batch = [mixed_in(axis) for axis in batch]
    rows = x[-2] if is_table(y[-2]) else mixed_in(x[-2])
    columns = y[-1] if is_table(x[-1]) else mixed_in(y[-1])
    product: list[Axis | None] = [*batch, rows, columns]
    added = a["self"] if "mat1" in a or "batch1" in a else a.get("bias")
    for beside in tensors_in([added, a.get("scale_a"), a.get("scale_b")]):
        if all(map(is_table, state.of(beside))):
            continue
        if beside.dim() > out.dim() or not _broadcasts(beside, out):
            # Scales a block of both operands.
            return state.name(out, [opaque_axis(size, *x, *y) for size in out.shape])
        product = unify_each(product, shown_axes(state, beside, tuple(out.shape)), out.shape)
    state.name(out, [() if axis is None else axis for axis in product])


def _broadcasts(tensor: Tensor, out: Tensor) -> bool:
    sizes = zip(tensor.shape, tuple(out.shape)[out.dim() - tensor.dim() :])
    return all(same_size(size, 1) or same_size(size, whole) for size, whole in sizes)


def leading(state: State, operands: list[Tensor], out: Tensor) -> list[Axis]:
    """The axes of a result before its last two dimensions, to which the operands' are broadcast."""
    shape = tuple(out.shape)
    axes: list[Axis | None] = [None] * (len(shape) - 2)
    for operand in operands:
        axes = unify_each(axes, shown_axes(state, operand, shape)[:-2], shape[:-2])
    return [free_axis(size) if axis is None else axis for axis, size in zip(axes, shape)]


def attended(state: State, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
    """Attention: rows of the query, columns of the value; what was a table there is one no more, where the values are
    none along the tokens. Samples and heads are the query's, unless it is broadcast to those of keys and values.
    """
    own = shown_axes(state, query, tuple(out.shape))[:-2]
    others = leading(state, [key, value], out)
    batch = [other if axis is None else axis for axis, other in zip(own, others)]
    axes = [*batch, state.of(query)[-2], state.of(value)[-1]]
    if not (is_table(state.of(key)[-2]) and is_table(state.of(value)[-2])):
        axes = [mixed_in(axis) for axis in axes]
    state.name(out, axes)


@rule(aten.convolution, aten.conv1d, aten.conv2d, aten.conv3d)
def _convolution(state: State, a: Bound, out: Tensor) -> None:
    """Each output position is one place of the input's axis, in order: a patch or a window around a token."""
    axes = state.of(a["input"])
    spatial = [opaque_axis(size, axis) for axis, size in zip(axes[2:], out.shape[2:])]
    if not a.get("transposed", False):
        geometry = [_geometry(a, dim, len(spatial)) for dim in range(len(spatial))]
        spatial = [_derived(axis, size, how) for axis, size, how in zip(axes[2:], out.shape[2:], geometry)]
    kept = [axes[0], *spatial]
    if not (is_table(axes[1]) and all(is_table(axis) for axis in state.of(a["weight"]))):
        kept = [mixed_in(axis) for axis in kept]
    made = Kind.TABLE if all(is_table(axis) for axis in (*axes, *state.of(a["weight"]))) else Kind.MIXED
    state.name(out, [kept[0], axis_of(out.shape[1], made), *kept[1:]])


def _geometry(a: Bound, dim: int, count: int) -> tuple[Any, ...] | None:
    """What decides which place of the input an output position stands for; None where it need not be one."""
    values: list[Any] = [a["weight"].shape[2 + dim]]
    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = a.get(name, default)
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


def _pooled(state: State, a: Bound, out: Tensor, count: int) -> None:
    """As a convolution, one channel at a time: each output position is one place of the input's axis, in order."""
    axes = state.of(a["self"])
    batch, spatial = axes[:-count], axes[-count:]
    if not all(is_plain(axis) for axis in spatial):
        # Tokens are summed up: what was a table beside them may now be a mixture of them.
        batch = [mixed_in(axis) for axis in batch]
    kernel, padding = _each(a["kernel_size"], count), a.get("padding", 0)
    stride = _each(a.get("stride") or kernel, count)
    # Without padding, and dropping what fills no window, position i stands for places from i * stride on.
    plain = not a.get("ceil_mode", False) and not any(_each(padding, count))
    windows = zip(spatial, out.shape[-count:], kernel, stride)
    places = [_window(axis, size, (width, step, 0, 1) if plain else None) for axis, size, width, step in windows]
    state.name(out, [*batch, *places])


def _each(value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if len(values) == 1 else values


def _window(axis: Axis, size: Any, geometry: tuple[int, ...] | None) -> Axis:
    return other_positions(size, axis) if is_table(axis) else _derived(axis, size, geometry)


for _count, _pool in enumerate((aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d), 1):
    rule(_pool)(partial(_pooled, count=_count))


# ---- sources -----------------------------------------------------------------------------------------------------


@rule(aten.arange)
def _arange(state: State, a: Bound, out: Tensor) -> None:
    axis = axis_of(out.shape[0], Kind.COORD)
    for atom in atoms_of(axis):
        # It counts from one position to the next, which a part of it, or some of its positions, need not do.
        atom.derived["arange"] = True
    state.name(out, [axis])


FACTORIES = (
    *(aten.empty, aten.zeros, aten.ones, aten.full, aten.rand, aten.randn, aten.scalar_tensor, aten.linspace),
    *(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like),
    *(aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.empty_strided, aten.new_empty_strided),
    *(aten.empty_permuted, aten.eye, aten.tril_indices, aten.logspace),
)


@rule(*FACTORIES)
def _fresh(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, [free_axis(size) for size in out.shape])


# ---- writes ------------------------------------------------------------------------------------------------------


@rule(aten.fill_, aten.zero_)
def _fill_(state: State, a: Bound, out: Tensor) -> None:
    # A constant says nothing of the order of tokens.
    pass


@rule(aten.copy_)
def _copy_(state: State, a: Bound, out: Tensor) -> None:
    state.written(a["self"], tensors_in(a.values()), over=True)


def in_place(state: State, a: Bound, out: Tensor) -> None:
    """A pointwise operator that writes its first operand."""
    state.written(a["self"], tensors_in(a.values()))
