"""How each ATen operator carries axes from its inputs to its outputs.

`RULES` maps an operator to a function of (state, bound arguments, output). An operator without a rule makes every
axis of its outputs opaque, which is always safe: an opaque axis is never taken for video tokens. A rule may name an
output axis only if index i along it speaks of what index i of the input axis speaks of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from svg_compile.passes.axes import (
    Atom,
    Axis,
    Concat,
    arange_axis,
    expand,
    flat_segments,
    free_axis,
    is_table,
    length,
    opaque_axis,
    regroup,
    table_axis,
    unify,
)
from torch import Tensor

from svg_compile._compat import at_most, equal, holds, negative

aten = torch.ops.aten


class State(Protocol):
    """What a rule may read and write: the axes of each tensor."""

    def of(self, tensor: Tensor) -> list[Axis]: ...

    def name(self, tensor: Tensor, axes: list[Axis]) -> None: ...

    def written(self, target: Tensor, axes: list[Axis]) -> None: ...


Bound = Mapping[str, Any]
Rule = Callable[[State, Bound, Any], None]
RULES: dict[Any, Rule] = {}


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = function
        return function

    return register


def same_size(left: Any, right: Any) -> bool:
    return holds(equal, left, right)


def aligned(state: State, tensors: Iterable[Tensor], shape: tuple[Any, ...]) -> list[Axis]:
    """The axes of a pointwise result: every operand's axes that are not broadcast, unified."""
    axes: list[Axis | None] = [None] * len(shape)
    for tensor in tensors:
        pad = len(shape) - tensor.dim()
        for dim, axis in enumerate(state.of(tensor), pad):
            if same_size(tensor.shape[dim - pad], shape[dim]):
                known = axes[dim]
                axes[dim] = axis if known is None else unify(known, axis, shape[dim])
    return [free_axis(size) if axis is None else axis for axis, size in zip(axes, shape)]


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def cut(axis: Axis, start: Any, stop: Any, size: Any) -> Axis:
    """The axis of positions [start, stop) of a longer one: whole segments of a concatenation, else unknown."""
    axis = expand(axis)
    if len(axis) == 1 and isinstance(axis[0], Concat):
        at: Any = 0
        taken: list[Axis] = []
        for segment in flat_segments(axis[0]):
            inside = holds(at_most, start, at)
            at = at + length(segment)
            if inside and holds(at_most, at, stop):
                taken.append(segment)
        if taken and same_size(sum(length(segment) for segment in taken), size):
            return taken[0] if len(taken) == 1 else (Concat(tuple(taken), size),)
        return opaque_axis(size)
    return table_axis(size, axis)


# ---- views -------------------------------------------------------------------------------------------------------


@rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias)
def _view(state: State, a: Bound, out: Tensor) -> None:
    if "dtype" in a:
        axes = list(state.of(a["self"]))
        if out.shape[-1:] != a["self"].shape[-1:]:
            axes[-1] = opaque_axis(out.shape[-1])
        return state.name(out, axes)
    state.name(out, regroup(state.of(a["self"]), tuple(out.shape)))


@rule(aten.permute)
def _permute(state: State, a: Bound, out: Tensor) -> None:
    axes = state.of(a["self"])
    state.name(out, [axes[dim] for dim in a["dims"]])


@rule(aten.transpose)
def _transpose(state: State, a: Bound, out: Tensor) -> None:
    axes = list(state.of(a["self"]))
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
    axes = list(state.of(a["self"]))
    del axes[a["dim"]]
    state.name(out, axes)


@rule(aten.slice)
def _slice(state: State, a: Bound, out: Tensor) -> None:
    source, dim = a["self"], a.get("dim", 0) % a["self"].dim()
    axes = list(state.of(source))
    size = out.shape[dim]
    if not same_size(size, source.shape[dim]):
        start = 0 if a.get("start") is None else a["start"]
        if holds(negative, start):
            start = source.shape[dim] + start
        if a.get("step", 1) != 1:
            axes[dim] = table_axis(size, axes[dim])
        else:
            axes[dim] = cut(axes[dim], start, start + size, size)
    state.name(out, axes)


@rule(aten.split, aten.split_with_sizes, aten.chunk, aten.unsafe_split, aten.unsafe_chunk, aten.tensor_split)
def _split(state: State, a: Bound, out: Any) -> None:
    source = a["self"]
    dim, at = a.get("dim", 0) % source.dim(), 0
    for piece in out:
        axes = list(state.of(source))
        size = piece.shape[dim]
        if not same_size(size, source.shape[dim]):
            axes[dim] = cut(axes[dim], at, at + size, size)
        at = at + size
        state.name(piece, axes)


@rule(aten.unbind)
def _unbind(state: State, a: Bound, out: Any) -> None:
    axes = list(state.of(a["self"]))
    del axes[a.get("dim", 0)]
    for piece in out:
        state.name(piece, axes)


@rule(aten.view_as_complex)
def _view_as_complex(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, state.of(a["self"])[:-1])


@rule(aten.view_as_real)
def _view_as_real(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, [*state.of(a["self"]), free_axis(2)])


# ---- joining, repeating, moving ----------------------------------------------------------------------------------


@rule(aten.cat, aten.concat, aten.concatenate)
def _cat(state: State, a: Bound, out: Tensor) -> None:
    # Legacy: cat skips tensors of shape [0] whatever the rank of the others.
    pieces = [t for t in a["tensors"] if t.dim() == out.dim()]
    dim = a.get("dim", 0) % out.dim()
    axes = list(state.of(pieces[0]))
    for piece in pieces[1:]:
        for other in range(out.dim()):
            if other != dim:
                axes[other] = unify(axes[other], state.of(piece)[other], out.shape[other])
    pieces = [piece for piece in pieces if not same_size(piece.shape[dim], 0)] or pieces[:1]
    segments = tuple(_segment(state, piece, dim) for piece in pieces)
    axes[dim] = segments[0] if len(segments) == 1 else (Concat(segments, out.shape[dim]),)
    state.name(out, axes)


def _segment(state: State, piece: Tensor, dim: int) -> Axis:
    # A segment of one position is still a segment: sizes of 1 are dropped from products, so it needs an atom.
    return state.of(piece)[dim] or (Atom(piece.shape[dim]),)


@rule(aten.stack)
def _stack(state: State, a: Bound, out: Tensor) -> None:
    pieces = a["tensors"]
    axes = list(state.of(pieces[0]))
    for piece in pieces[1:]:
        axes = [unify(x, y, size) for x, y, size in zip(axes, state.of(piece), piece.shape)]
    axes.insert(a.get("dim", 0) % out.dim(), free_axis(len(pieces)))
    state.name(out, axes)


@rule(aten.repeat, aten.tile)
def _repeat(state: State, a: Bound, out: Tensor) -> None:
    source = a["self"]
    pad = out.dim() - source.dim()
    axes: list[Axis] = [free_axis(size) for size in out.shape[:pad]]
    for axis, before, after in zip(state.of(source), source.shape, out.shape[pad:]):
        axes.append(axis if same_size(before, after) else table_axis(after, axis))
    state.name(out, axes)


@rule(aten.repeat_interleave)
def _repeat_interleave(state: State, a: Bound, out: Tensor) -> None:
    if not isinstance(a.get("self"), Tensor) or a.get("dim") is None:
        return state.name(out, [opaque_axis(size) for size in out.shape])
    axes, dim = list(state.of(a["self"])), a["dim"] % out.dim()
    axes[dim] = table_axis(out.shape[dim], axes[dim])
    state.name(out, axes)


@rule(aten.roll, aten.flip, aten.constant_pad_nd, aten.index_select, aten.cumsum, aten.cumprod)
def _moved(state: State, a: Bound, out: Tensor) -> None:
    """Positions along some dimensions move or change their meaning; those become unknown, the others stay."""
    source = a["self"]
    dims = a.get("dims", a.get("dim"))
    if "pad" in a:
        dims = [source.dim() - 1 - i for i in range(len(a["pad"]) // 2) if any(a["pad"][2 * i : 2 * i + 2])]
    if dims is None or dims == []:
        dims = range(source.dim()) if "pad" not in a else []
    moved = {dim % source.dim() for dim in (dims if isinstance(dims, Iterable) else [dims])}
    axes = list(state.of(source))
    for dim in moved:
        axes[dim] = table_axis(out.shape[dim], axes[dim])
    state.name(out, axes)


@rule(aten.index)
def _index(state: State, a: Bound, out: Tensor) -> None:
    """Advanced indexing: looking up a table takes the index's axes; picking from named tokens is a shuffle."""
    source, indices = a["self"], list(a["indices"])
    used = [dim for dim, index in enumerate(indices) if index is not None]
    contiguous = used == list(range(used[0], used[-1] + 1))
    if not contiguous or any(indices[dim].dtype in (torch.bool, torch.uint8) for dim in used):
        return state.name(out, [opaque_axis(size) for size in out.shape])
    axes = state.of(source)
    kept = len(axes) - len(used)
    picked_shape = tuple(out.shape[used[0] : out.dim() - (kept - used[0])])
    if all(is_table(axes[dim]) for dim in used):
        picked = aligned(state, [indices[dim] for dim in used], picked_shape)
    else:
        picked = [opaque_axis(size) for size in picked_shape]
    state.name(out, [*axes[: used[0]], *picked, *axes[used[-1] + 1 :]])


@rule(aten.embedding)
def _embedding(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, [*state.of(a["indices"]), free_axis(out.shape[-1])])


# ---- arithmetic --------------------------------------------------------------------------------------------------


@rule(
    *(aten._to_copy, aten.clone, aten.alias, aten.detach, aten.lift_fresh, aten.lift_fresh_copy, aten.to),
    *(aten.rsub, aten.polar, aten.complex, aten.real, aten.imag, aten.floor_divide, aten.native_dropout),
    *(aten._conj, aten.resolve_conj, aten.view_as, aten.contiguous, aten.softmax, aten._softmax, aten.dropout),
    *(aten.nan_to_num, aten.where, aten.masked_fill, aten.copy, aten.fill, aten._neg_view, aten.tril, aten.triu),
)
def pointwise(state: State, a: Bound, out: Any) -> None:
    """Index i of the result comes from index i of the operands."""
    for result in tensors_in(out if isinstance(out, (tuple, list)) else [out]):
        state.name(result, aligned(state, tensors_in(a.values()), tuple(result.shape)))


@rule(aten.native_layer_norm, aten.native_group_norm, aten._fused_rms_norm, aten.rms_norm, aten.layer_norm)
def _norm(state: State, a: Bound, out: Any) -> None:
    # The statistics, where they are returned, are not of the model's making.
    state.name(out[0] if isinstance(out, (tuple, list)) else out, list(state.of(a["input"])))


@rule(
    *(aten.sum, aten.mean, aten.var, aten.std, aten.amax, aten.amin, aten.prod, aten.any, aten.all, aten.argmax),
    *(aten.linalg_vector_norm, aten.logsumexp, aten.max, aten.min, aten.argmin, aten.var_mean, aten.norm),
)
def _reduce(state: State, a: Bound, out: Any) -> None:
    source = a.get("self", a.get("input"))
    if isinstance(a.get("other"), Tensor):
        return pointwise(state, a, out)
    dims = a.get("dim")
    if dims is None or dims == []:
        dims = range(source.dim())
    gone = {dim % max(source.dim(), 1) for dim in (dims if isinstance(dims, Iterable) else [dims])}
    for result in tensors_in(out if isinstance(out, (tuple, list)) else [out]):
        kept = result.dim() == source.dim()
        axes = [() if dim in gone else axis for dim, axis in enumerate(state.of(source)) if kept or dim not in gone]
        state.name(result, axes)


@rule(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.linear, aten.matmul)
def _matmul(state: State, a: Bound, out: Tensor) -> None:
    left = a.get("mat1", a.get("batch1", a.get("input", a.get("self"))))
    right = a.get("mat2", a.get("batch2", a.get("weight", a.get("other"))))
    if "weight" in a:
        return state.name(out, [*state.of(left)[:-1], state.of(right)[0] if right.dim() == 2 else ()][: out.dim()])
    if left.dim() < 2 or right.dim() < 2:
        return state.name(out, [opaque_axis(size) for size in out.shape])
    x, y = state.of(left), state.of(right)
    batch = [free_axis(size) for size in out.shape[:-2]]
    for axes, tensor in ((x, left), (y, right)):
        pad = out.dim() - tensor.dim()
        for dim in range(pad, out.dim() - 2):
            if same_size(tensor.shape[dim - pad], out.shape[dim]):
                batch[dim] = unify(batch[dim], axes[dim - pad], out.shape[dim])
    state.name(out, [*batch, x[-2], y[-1]])


@rule(aten.convolution, aten.conv1d, aten.conv2d, aten.conv3d)
def _convolution(state: State, a: Bound, out: Tensor) -> None:
    """Each output position is one place of the input's axis, in order: a patch or a window around a token."""
    axes = state.of(a["input"])
    spatial = [opaque_axis(size) for size in out.shape[2:]]
    if not a.get("transposed", False):
        spatial = [_derived(axis, size) for axis, size in zip(axes[2:], out.shape[2:])]
    state.name(out, [axes[0], free_axis(out.shape[1]), *spatial])


def _derived(axis: Axis, size: Any) -> Axis:
    source = expand(axis)
    if len(source) == 1 and isinstance(source[0], Atom) and not source[0].opaque and not source[0].inner:
        return () if isinstance(size, int) and size == 1 else (Atom(size, source[0].origin),)
    return opaque_axis(size) if source else free_axis(size)


# ---- sources -----------------------------------------------------------------------------------------------------


@rule(aten.arange)
def _arange(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, [arange_axis(out.shape[0])])


@rule(
    *(aten.empty, aten.zeros, aten.ones, aten.full, aten.rand, aten.randn, aten.scalar_tensor, aten.linspace),
    *(aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like),
    *(aten.new_empty, aten.new_zeros, aten.new_ones, aten.new_full, aten.empty_strided, aten.new_empty_strided),
    *(aten.empty_permuted, aten.eye, aten.tril_indices, aten.logspace),
)
def _fresh(state: State, a: Bound, out: Tensor) -> None:
    state.name(out, [free_axis(size) for size in out.shape])


# ---- writes ------------------------------------------------------------------------------------------------------


@rule(aten.copy_)
def _copy_(state: State, a: Bound, out: Tensor) -> None:
    state.written(a["self"], aligned(state, [a["self"], a["src"]], tuple(out.shape)))


@rule(aten.fill_, aten.zero_)
def _fill_(state: State, a: Bound, out: Tensor) -> None:
    # A constant says nothing of the order of tokens.
    pass


def in_place(state: State, a: Bound, out: Tensor) -> None:
    """A pointwise operator that writes its first operand."""
    state.written(a["self"], aligned(state, tensors_in(a.values()), tuple(out.shape)))
