"""How operators that compute, make and write elements carry axes; see `axis_rules`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from svg_compile._compat.sizes import expression
from svg_compile.passes.align import unify
from svg_compile.passes.axes import (
    Atom,
    Axis,
    Kind,
    axis_of,
    expand,
    free_axis,
    is_plain,
    is_table,
    mixed_in,
    opaque_axis,
)
from svg_compile.passes.axis_rules import Bound, State, aligned, rule, same_size, tensors_in

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
    state.name(out[0] if isinstance(out, (tuple, list)) else out, list(state.of(a["input"])))


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


@rule(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.linear, aten.matmul)
def _matmul(state: State, a: Bound, out: Tensor) -> None:
    """Rows of the left operand, columns of the right one; the data of each flows into what was a table of the other."""
    left = a.get("mat1", a.get("batch1", a.get("input", a.get("self"))))
    right = a.get("mat2", a.get("batch2", a.get("weight", a.get("other"))))
    x, y = state.of(left), state.of(right)
    if "weight" in a:
        y = y[::-1]
    if len(x) < 2 or len(y) < 2 or len(y) > out.dim() or len(x) > out.dim():
        return state.name(out, [opaque_axis(size) for size in out.shape])
    batch = [free_axis(size) for size in out.shape[:-2]]
    for axes, tensor in ((x, left), (y, right)):
        pad = out.dim() - len(axes)
        for dim in range(pad, out.dim() - 2):
            if same_size(tensor.shape[dim - pad], out.shape[dim]):
                batch[dim] = unify(batch[dim], axes[dim - pad], out.shape[dim])
    rows = x[-2] if is_table(y[-2]) else mixed_in(x[-2])
    columns = y[-1] if is_table(x[-1]) else mixed_in(y[-1])
    product = [*batch, rows, columns]
    if "mat1" in a or "batch1" in a:
        added = a["self"]
        pad = out.dim() - added.dim()
        for dim, axis in enumerate(state.of(added), pad):
            if same_size(added.shape[dim - pad], out.shape[dim]):
                product[dim] = unify(product[dim], axis, out.shape[dim])
    state.name(out, product)


@rule(aten.convolution, aten.conv1d, aten.conv2d, aten.conv3d)
def _convolution(state: State, a: Bound, out: Tensor) -> None:
    """Each output position is one place of the input's axis, in order: a patch or a window around a token."""
    axes = state.of(a["input"])
    spatial = [opaque_axis(size) for size in out.shape[2:]]
    if not a.get("transposed", False):
        geometry = [_geometry(a, dim, len(spatial)) for dim in range(len(spatial))]
        spatial = [_derived(axis, size, how) for axis, size, how in zip(axes[2:], out.shape[2:], geometry)]
    made = Kind.TABLE if all(is_table(axis) for axis in axes) else Kind.MIXED
    state.name(out, [axes[0], axis_of(out.shape[1], made), *spatial])


def _geometry(a: Bound, dim: int, count: int) -> tuple[Any, ...]:
    """What decides which place of the input an output position stands for."""
    values: list[Any] = [a["weight"].shape[2 + dim]]
    for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = a.get(name, default)
        if isinstance(value, (list, tuple)):
            value = value[dim] if len(value) == count else value[0]
        values.append(value)
    return tuple(value if isinstance(value, str) else expression(value) for value in values)


def _derived(axis: Axis, size: Any, geometry: tuple[Any, ...]) -> Axis:
    source = expand(axis)
    if not source:
        return free_axis(size)
    atom = source[0]
    if len(source) > 1 or not isinstance(atom, Atom) or atom.opaque or atom.inner:
        return opaque_axis(size)
    made = atom.derived.get(geometry)
    if made is None:
        made = atom.derived[geometry] = Atom(size, atom.kind, atom.origin)
    return (made,)


# ---- sources -----------------------------------------------------------------------------------------------------


@rule(aten.arange)
def _arange(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, [axis_of(out.shape[0], Kind.COORD)])


@rule(
    *(aten.empty, aten.zeros, aten.ones, aten.full, aten.rand, aten.randn, aten.scalar_tensor, aten.linspace),
    *(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like),
    *(aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.empty_strided, aten.new_empty_strided),
    *(aten.empty_permuted, aten.eye, aten.tril_indices, aten.logspace),
)
def _fresh(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, [free_axis(size) for size in out.shape])


# ---- writes ------------------------------------------------------------------------------------------------------


@rule(aten.fill_, aten.zero_)
def _fill_(state: State, a: Bound, out: Tensor) -> None:
    # A constant says nothing of the order of tokens.
    pass


@rule(aten.copy_)
def in_place(state: State, a: Bound, out: Tensor) -> None:
    """A pointwise operator that writes its first operand."""
    state.written(a["self"], tensors_in(a.values()))
