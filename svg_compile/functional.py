"""Profiling and sparse attention as plain functions, for people who write their own models."""

from __future__ import annotations

import torch
from torch import Tensor

from svg_compile.errors import LayoutError
from svg_compile.kernels import ops, repair_ops
from svg_compile.kernels.triton.configs import DTYPES
from svg_compile.layout import VideoLayout


def profile_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: VideoLayout,
    *,
    density: float = 0.3,
    sampled_rows: int = 64,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Choose each head's kind: the one whose output on sampled query rows is nearer to dense attention.

    query, key, value: [B, H, N, D] in any strides, float32, bfloat16 or float16. key_mask: bool [B, N], True where a
    key may be seen. scale: of the scores, default D ** -0.5.
    Returns the plan, int32 [B, H, 2] = (`HeadKind`, half-width in blocks), on the tensors' device.
    """
    _check(query, key, value, layout, key_mask)
    _check_profile(layout, density, sampled_rows)
    options = ([float(density)], sampled_rows, scale, "auto", ops.ABI, None, None)
    plan: Tensor
    plan, _ = torch.ops.svg.profile(query, key, value, key_mask, *_grid(layout), *options)
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
    `profile_heads` gives it; an entry of no `HeadKind` is an error on CPUs and dense on GPUs, which cannot look
    without waiting. key_mask: bool [B, N], True where a key may be seen. scale: default D ** -0.5.
    Returns [B, H, N, D] over [B, N, H, D] storage.
    """
    _check(query, key, value, layout, key_mask)
    if plan.dtype is not torch.int32 or tuple(plan.shape) != (query.shape[0], query.shape[1], 2):
        raise LayoutError(
            f"plan must be int32 of shape {[query.shape[0], query.shape[1], 2]}, got {plan.dtype} {list(plan.shape)}."
        )
    if plan.device != query.device:
        raise LayoutError(f"plan is on {plan.device}, query on {query.device}: move the plan there.")
    out: Tensor = torch.ops.svg.attention(query, key, value, plan, key_mask, *_grid(layout), scale, "auto", ops.ABI)
    return out


def repaired_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: VideoLayout,
    *,
    density: float = 0.3,
    sampled_rows: int = 64,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Profile the heads, attend as they were profiled, and mend what that leaves out: what the backend does by default.

    The same as `sparse_attention` with the plan of `profile_heads`, and then: on the sampled query rows, where dense
    attention is known, a linear map from the sparse output to what it lacks is fitted for each head, and applied to
    its video rows if it helps on sampled rows left out of the fit. The sampled rows get their dense output. Text rows,
    dense heads and heads whose mask loses nothing stay as they are.

    query, key, value: [B, H, N, D] in any strides, float32, bfloat16 or float16. key_mask: bool [B, N], True where a
    key may be seen. scale: of the scores, default D ** -0.5. Raises LayoutError as the two functions do.
    Returns [B, H, N, D] over [B, N, H, D] storage.
    """
    _check(query, key, value, layout, key_mask)
    _check_profile(layout, density, sampled_rows)
    grid, tail = _grid(layout), (scale, "auto", ops.ABI)
    options = ([float(density)], sampled_rows, *tail, None, None, None)
    plan, _, exact, fit = repair_ops.PROFILE(query, key, value, key_mask, *grid, *options)
    out: Tensor = torch.ops.svg.attention(query, key, value, plan, key_mask, *grid, *tail)
    repair_ops.REPAIR(out, exact, fit, *grid[:5], *tail[1:])
    return out


def _check_profile(layout: VideoLayout, density: float, sampled_rows: int) -> None:
    # Checks the density as well.
    layout.half_width_for(density, 0)
    if isinstance(sampled_rows, bool) or not isinstance(sampled_rows, int) or sampled_rows < 1:
        raise LayoutError(f"sampled_rows must be an integer of at least 1, got {sampled_rows!r}.")


def _grid(layout: VideoLayout) -> tuple[int, int, int, int, bool, int]:
    return layout.frames, layout.height, layout.width, layout.text_len, layout.text_first, layout.block


def _check(query: Tensor, key: Tensor, value: Tensor, layout: VideoLayout, key_mask: Tensor | None) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
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
            raise LayoutError(
                f"query, key and value must all be float32, bfloat16 or float16, {name} is {tensor.dtype}."
            )
        if tensor.device != query.device:
            raise LayoutError(f"query is on {query.device}, {name} on {tensor.device}: move them to one device.")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise LayoutError(f"{name} needs gradients; svg_compile is for inference: use torch.no_grad().")
    expected = (query.shape[0], layout.tokens)
    if key_mask is not None and (key_mask.dtype is not torch.bool or tuple(key_mask.shape) != expected):
        got = f"{key_mask.dtype} {list(key_mask.shape)}"
        raise LayoutError(f"key_mask must be bool of shape {list(expected)}, got {got}.")
