"""Profiling and sparse attention as plain functions, for people who write their own models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from svg_compile.errors import LayoutError
from svg_compile.kernels import ops, repair_ops
from svg_compile.kernels.storage import empty_output
from svg_compile.kernels.triton.configs import DTYPES
from svg_compile.layout import VideoLayout, checked_density
from svg_compile.option_checks import WIDTHS

_DEVICES = ("cpu", "cuda", "meta")


def profile_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: VideoLayout,
    *,
    density: float = 0.3,
    sampled_rows: int = 64,
    widths: str = "adaptive",
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Choose each head's kind, and how wide its band is, from what dense attention gives on sampled query rows.

    query, key, value: [B, H, N, D] in any strides, float32, bfloat16 or float16. density: the mean share of pairs that
    the heads of a sample compute. widths: "adaptive", wider bands for the heads that lose more, or "uniform", the same
    for all heads of a kind. key_mask: bool [B, N], True for visible keys. scale: of the scores, default
    D ** -0.5.
    Returns the plan, int32 [B, H, 2] = (`HeadKind`, half-width in blocks), on the tensors' device; of tensors on the
    meta device, without data, its shape. Raises LayoutError where an argument does not fit.
    """
    _check(query, key, value, layout, key_mask, scale)
    density = _check_profile(density, sampled_rows, widths)
    if query.device.type == "meta":
        return query.new_empty((*query.shape[:2], 2), dtype=torch.int32)
    rows, adaptive = min(sampled_rows, layout.video), widths == "adaptive"
    options = ([density], rows, adaptive, scale, "auto", ops.ABI, None, None, None)
    plan: Tensor
    plan, *_ = torch.ops.svg.profile(query, key, value, key_mask, layout.grid, *options)
    return plan


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor,
    layout: VideoLayout,
    *,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention in which each head sees what its entry of the plan says; rows that see no key give 0.

    query, key, value: [B, H, N, D] in any strides, float32, bfloat16 or float16. plan: int32 [B, H, 2] as
    `profile_heads` gives it; an entry that is no `HeadKind`, or a negative half-width, is an error on CPUs. GPUs cannot
    look without waiting: such a head is dense there, and such a width hides all of the body. key_mask: bool [B, N],
    True for visible keys. scale: default D ** -0.5.
    Returns [B, H, N, D] over [B, N, H, D] storage; of tensors on the meta device, without data, its shape. Raises
    LayoutError where an argument does not fit.
    """
    _check(query, key, value, layout, key_mask, scale)
    _check_tensor("plan", plan)
    if plan.dtype is not torch.int32 or tuple(plan.shape) != (query.shape[0], query.shape[1], 2):
        raise LayoutError(
            f"plan must be int32 of shape {[query.shape[0], query.shape[1], 2]}, got {plan.dtype} {list(plan.shape)}."
        )
    if plan.device != query.device:
        raise LayoutError(f"plan is on {plan.device}, query on {query.device}: move the plan there.")
    if query.device.type == "meta":
        return empty_output(query, value)
    out: Tensor = torch.ops.svg.attention(query, key, value, plan, key_mask, layout.grid, scale, "auto", ops.ABI)
    return out


def repaired_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: VideoLayout,
    *,
    density: float = 0.3,
    sampled_rows: int = 64,
    widths: str = "adaptive",
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Profile the heads, attend as they were profiled, and mend what that leaves out: what the backend does by default.

    The same as `sparse_attention` with the plan of `profile_heads`, and then: on the sampled query rows, where dense
    attention is known, a linear map from the sparse output to what it lacks is fitted for each head, and applied to
    its video rows if it helps on sampled rows left out of the fit. The sampled rows get their dense output. Text rows,
    dense heads and heads whose mask loses nothing stay as they are.

    query, key, value: [B, H, N, D] in any strides, float32, bfloat16 or float16. density, sampled_rows, widths: as of
    `profile_heads`. key_mask: bool [B, N], True for visible keys. scale: of the scores, default D ** -0.5.
    Raises LayoutError as the two functions do.
    Returns [B, H, N, D] over [B, N, H, D] storage.
    """
    _check(query, key, value, layout, key_mask, scale)
    density = _check_profile(density, sampled_rows, widths)
    if query.device.type == "meta":
        return empty_output(query, value)
    if torch.compiler.is_compiling() and query.device.type != "cpu":
        query, key, value = (torch.ops.svg.settled(operand) for operand in (query, key, value))
    tail = (scale, "auto", ops.ABI)
    options = ([density], min(sampled_rows, layout.video), widths == "adaptive", *tail, *[None] * 4)
    plan, _, exact, fit, _ = repair_ops.PROFILE(query, key, value, key_mask, layout.grid, *options)
    out: Tensor = torch.ops.svg.attention(query, key, value, plan, key_mask, layout.grid, *tail)
    repair_ops.REPAIR(out, exact, fit, layout.grid, *tail[1:])
    return out


def _check_profile(density: float, sampled_rows: int, widths: str) -> float:
    """The density, checked, as a float."""
    if widths not in WIDTHS:
        raise LayoutError(f"widths must be one of {', '.join(map(repr, WIDTHS))}, got {widths!r}.")
    if isinstance(sampled_rows, bool) or not isinstance(sampled_rows, int) or sampled_rows < 1:
        raise LayoutError(f"sampled_rows must be an integer of at least 1, got {sampled_rows!r}.")
    return checked_density(density)


def _check(
    query: Tensor, key: Tensor, value: Tensor, layout: VideoLayout, key_mask: Tensor | None, scale: float | None
) -> None:
    if not isinstance(layout, VideoLayout):
        raise LayoutError(
            f"layout must be a svg_compile.VideoLayout, got {layout!r}: VideoLayout(frames, height, width), in tokens."
        )
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check_tensor(name, tensor)
        if tensor.dim() != 4 or tensor.shape[2] != layout.tokens:
            raise LayoutError(
                f"{name} must be [B, H, {layout.tokens}, D] for {layout}, got {list(tensor.shape)}. "
                "Is the layout in tokens, not in pixels or latents?"
            )
        if tensor.shape != query.shape:
            raise LayoutError(
                f"query, key and value must have one shape, got {list(query.shape)}, {list(tensor.shape)}."
            )
        if tensor.dtype is not query.dtype or tensor.dtype not in DTYPES:
            both = dict.fromkeys((f"query is {query.dtype}", f"{name} is {tensor.dtype}"))
            raise LayoutError(
                f"query, key and value must have one dtype, float32, bfloat16 or float16: {', '.join(both)}."
            )
        if tensor.device != query.device:
            raise LayoutError(f"query is on {query.device}, {name} on {tensor.device}: move them to one device.")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise LayoutError(f"{name} needs gradients; svg_compile is for inference: use torch.no_grad().")
    if query.device.type not in _DEVICES:
        raise LayoutError(
            f"the tensors are on {query.device}: svg_compile runs on {', '.join(_DEVICES)} (CUDA or ROCm)."
        )
    if query.shape[3] == 0:
        raise LayoutError(f"query, key and value have no channels, {list(query.shape)}: D must be at least 1.")
    if key_mask is not None:
        _check_tensor("key_mask", key_mask)
        expected = (query.shape[0], layout.tokens)
        if key_mask.dtype is not torch.bool or tuple(key_mask.shape) != expected:
            got = f"{key_mask.dtype} {list(key_mask.shape)}"
            raise LayoutError(
                f"key_mask must be bool of shape {list(expected)}, True where a key may be seen, got {got}."
            )
        if key_mask.device != query.device:
            raise LayoutError(f"key_mask is on {key_mask.device}, query on {query.device}: move the mask there.")
    number = isinstance(scale, (int, float, torch.SymInt, torch.SymFloat)) and not isinstance(scale, bool)
    if scale is not None and not (number and -math.inf < scale < math.inf):
        raise LayoutError(f"scale must be a finite number, or None for D ** -0.5, got {scale!r}.")


def _check_tensor(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise LayoutError(f"{name} must be a torch.Tensor, got {type(value).__name__}: torch.as_tensor makes one.")
    if value.is_nested or value.layout is not torch.strided:
        kind = "a nested tensor" if value.is_nested else f"a {value.layout} tensor"
        raise LayoutError(f"{name} must be a plain, dense tensor, got {kind}: pad or convert it.")
