"""The oracle: dense, masked, in float64. Slow and memory-hungry on purpose; used by tests and `engine="reference"`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svg_compile.kernels.plan import ProfiledRows, plan_from_errors
from svg_compile.kernels.sampling import sampled_video_token
from svg_compile.kernels.spread import Spread
from svg_compile.kernels.widths import ladder, plan_by_need
from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.mask import mask_of


def attention_mask(
    layout: VideoLayout,
    half_width: int,
    kind: HeadKind | int,
    device: torch.device | str = "cpu",
    queries: Tensor | None = None,
) -> Tensor:
    """The bool mask [M, N] of one head, True where the query (row) attends the key (column).

    queries: positions, int64 [M]; all of the sequence by default.
    """
    keys = torch.arange(layout.tokens, device=device)
    return mask_of(layout, kind, half_width, keys if queries is None else queries, keys)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """softmax(QK^T * scale) V over the keys where `mask` is True, in float64; rows without a visible key give 0.

    query [..., M, D], key [..., N, D], value [..., N, Dv], mask broadcastable to [..., M, N] -> float64 [..., M, Dv].
    """
    query, key, value = query.double(), key.double(), value.double()
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1).masked_fill(~mask.any(-1, keepdim=True), 0.0)
    # The value of a hidden key may be NaN, and 0 * NaN is NaN: replace it, and restore NaN in rows that attend it.
    if not bool(torch.isfinite(value).all()):
        clean = value.nan_to_num(0.0, 0.0, 0.0)
        touched = ((weights != 0) & mask).double() @ (~torch.isfinite(value)).double()
        return (weights.nan_to_num(0.0) @ clean).masked_fill(touched > 0, float("nan"))
    return weights @ value


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
    """Sparse attention by the plan, float64. q, k, v [B, H, N, D], plan int32 [B, H, 2] -> [B, H, N, D]."""
    output = torch.empty(*query.shape[:3], value.shape[3], dtype=torch.float64, device=query.device)
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            kind, half_width = plan[batch, head].tolist()
            mask = attention_mask(layout, half_width, kind, query.device)
            if key_mask is not None:
                mask = mask & key_mask[batch]
            output[batch, head] = masked_attention(
                query[batch, head], key[batch, head], value[batch, head], mask, scale
            )
    return output


def sampled_positions(layout: VideoLayout, sampled_rows: int, device: torch.device | str = "cpu") -> Tensor:
    """Positions of the sampled query rows in the sequence, int64 [R]."""
    count = min(sampled_rows, layout.video)
    return layout.video_start + sampled_video_token(torch.arange(count, device=device), count, layout.video)


def uniform_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: VideoLayout,
    *,
    density: float,
    sampled_rows: int,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Dense, spatial and temporal attention of the sampled rows, float64 [B, H, 3, R, D]."""
    rows = sampled_positions(layout, sampled_rows, query.device)
    seen = torch.ones(1, 1, 1, layout.tokens, dtype=torch.bool, device=query.device)
    if key_mask is not None:
        seen = key_mask[:, None, None, :]
    outputs = [masked_attention(query[:, :, rows], key, value, seen, scale)]
    for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL):
        mask = attention_mask(layout, layout.half_width_for(density, kind), kind, query.device)[rows]
        outputs.append(masked_attention(query[:, :, rows], key, value, seen & mask, scale))
    return torch.stack(outputs, dim=2)


def profile_errors(query: Tensor, key: Tensor, value: Tensor, layout: VideoLayout, **options: Any) -> Tensor:
    """Mean squared error against dense of (spatial, temporal) attention on the sampled rows, float64 [B, H, 2].

    Takes the options of `uniform_rows`.
    """
    outputs = uniform_rows(query, key, value, layout, **options)
    return (outputs[:, :, 1:] - outputs[:, :, :1]).square().mean((-1, -2))


def missing_mass(
    query: Tensor,
    key: Tensor,
    layout: VideoLayout,
    *,
    density: float,
    sampled_rows: int,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The mass that the rungs of `kernels.widths.ladder` leave out, float64 [B, H, 2, rungs].

    The mean square, over the sampled rows, of the dense attention weight outside of each half-width.
    """
    rows = sampled_positions(layout, sampled_rows, query.device)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query[:, :, rows].double() @ key.double().mT * scale
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    if key_mask is not None:
        weights = weights.masked_fill(~key_mask.any(-1)[:, None, None, None], 0.0)
    missing = []
    for kind, half_widths in enumerate(ladder(layout, density)):
        masks = (attention_mask(layout, half_width, kind, query.device)[rows] for half_width in half_widths)
        missing.append(torch.stack([weights.masked_fill(mask, 0.0).sum(-1).square().mean(-1) for mask in masks], -1))
    return torch.stack(missing, dim=2)


def profile_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: VideoLayout,
    *,
    adaptive: bool = False,
    share: Tensor | None = None,
    spread: Spread | None = None,
    **options: Any,
) -> ProfiledRows:
    """The profile in float64 (its plan in int32); takes the options of `uniform_rows`.

    adaptive: half-widths by need; share: float32 [B], each sample's mean density as a multiple of `density`; spread:
    the processes whose heads share the pairs.
    """
    outputs = uniform_rows(query, key, value, layout, **options)
    errors = (outputs[:, :, 1:] - outputs[:, :, :1]).square().mean((-1, -2))
    density = options["density"]
    if adaptive:
        missing = missing_mass(query, key, layout, **options)
        plan = plan_by_need(errors, missing, layout, density, share, spread)
    else:
        missing = errors.new_zeros(*errors.shape, 0)
        plan = plan_from_errors(errors, layout, density)
    rows = sampled_positions(layout, options["sampled_rows"], query.device)
    sparse = outputs[:, :, 0].clone()
    for batch in range(plan.shape[0]):
        for head in range(plan.shape[1]):
            kind, half_width = plan[batch, head].tolist()
            if kind == HeadKind.DENSE:
                continue
            mask = attention_mask(layout, half_width, kind, query.device)[rows]
            if options.get("key_mask") is not None:
                mask = mask & options["key_mask"][batch]
            operands = query[batch, head, rows], key[batch, head], value[batch, head]
            sparse[batch, head] = masked_attention(*operands, mask, options.get("scale"))
    return ProfiledRows(plan, errors, missing, outputs[:, :, 0], sparse)
