"""Tolerances for attention results against the oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from svg_compile.kernels.reference import attention_mask, sparse_attention
from svg_compile.layout import VideoLayout

# float32 is compared as FlexAttention's tests do: its eager error is a few roundings, and summation orders differ.
FACTORS = {torch.float16: 2.0, torch.bfloat16: 2.0, torch.float32: 10.0, torch.float64: 10.0}


def eager_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Masked attention as plain tensor code in the inputs' own dtype; rows that see no key give 0."""
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1).masked_fill(~mask.any(-1, keepdim=True), 0.0) @ value


def assert_close(actual: Tensor, exact: Tensor, eager: Tensor) -> None:
    """Max and mean error at most a factor of (eager's error + eps * max|exact|); same shape, all finite."""
    assert actual.shape == exact.shape
    assert torch.isfinite(actual).all()
    factor = FACTORS[actual.dtype]
    rounding = torch.finfo(actual.dtype).eps * float(exact.abs().max())
    error, allowed = (actual.double() - exact).abs(), (eager.double() - exact).abs()
    for name in ("max", "mean"):
        found = float(getattr(error, name)())
        bound = factor * (float(getattr(allowed, name)()) + rounding)
        assert found <= bound, f"{name} error {found:.3g} exceeds {bound:.3g} ({actual.dtype})"


def assert_matches_oracle(
    actual: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor,
    layout: VideoLayout,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> None:
    """`actual` [B, H, N, D] is sparse attention by the plan, within the bound of its dtype."""
    assert actual.dtype == query.dtype
    exact = sparse_attention(query, key, value, plan, layout, key_mask=key_mask, scale=scale)
    eager = torch.empty_like(exact)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            kind, half_width = plan[batch, head].tolist()
            mask = attention_mask(layout, half_width, kind)
            if key_mask is not None:
                mask = mask & key_mask[batch]
            eager[batch, head] = eager_attention(query[batch, head], key[batch, head], value[batch, head], mask, scale)
    assert_close(actual, exact, eager)
