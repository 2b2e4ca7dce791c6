"""Profiling on CPUs: which of the two bands loses less on sampled rows, in one pass over the keys and values."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from svg_compile.kernels.cpu.autocast import without_autocast
from svg_compile.kernels.plan import plan_from_errors
from svg_compile.kernels.sampling import sampled_video_token
from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.mask import attends, band_block, band_rank

# A sum of weights below this may have lost weights to underflow, as they are relative to the dense maximum.
_LEAST_SUM = 1e-30
# Keys taken at a time, of all heads and at least of each, so that their scores and weights stay in the caches.
_COLUMNS = 8192
_LEAST_COLUMNS = 512


def profile_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: VideoLayout,
    *,
    density: float,
    sampled_rows: int,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The plan, int32 [B, H, 2], and the errors (spatial, temporal) that it follows from, float32 [B, H, 2].

    q, k, v [B, H, N, D] in any strides, key_mask bool [B, N]. Scores, outputs and errors are computed in float32.
    """
    outputs = sampled_outputs(
        query, key, value, layout, density=density, sampled_rows=sampled_rows, key_mask=key_mask, scale=scale
    )
    errors = band_errors(outputs)
    return plan_from_errors(errors, layout, density), errors


@torch.no_grad()
# Of a caller that runs eagerly under autocast: scores in bfloat16 would decide near-ties otherwise.
@without_autocast
def sampled_outputs(
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
    """Dense, spatial and temporal attention of the R sampled rows, float32 [B, H, 3, R, D]; arguments as above."""
    rows, masks = _sampled_masks(layout, density, min(sampled_rows, layout.video))
    scale = query.shape[3] ** -0.5 if scale is None else scale
    if key_mask is not None and bool(key_mask.all()):
        key_mask = None
    found = []
    for batch in range(query.shape[0]):
        keys, values, seen = key[batch], value[batch], masks
        if key_mask is not None:
            shown = key_mask[batch].nonzero().flatten()
            keys, values, seen = keys[:, shown], values[:, shown], masks.index_select(2, shown)
        found.append(_outputs(query[batch][:, rows].float() * scale, keys, values, seen))
    return torch.stack(found)


def band_errors(outputs: Tensor) -> Tensor:
    """Mean squared error against dense of (spatial, temporal), [..., 2], of outputs [..., 3, R, D]."""
    return (outputs[..., 1:, :, :] - outputs[..., :1, :, :]).square().mean((-1, -2))


def _outputs(query: Tensor, key: Tensor, value: Tensor, masks: Tensor) -> Tensor:
    """Attention on all keys and on those of each mask, float32 [H, 3, R, D].

    query float32 [H, R, D], key and value [H, K, D] in any dtype, masks bool [2, R, K].
    """
    heads, count, _ = query.shape
    if not key.shape[1]:
        return query.new_zeros(heads, 3, count, value.shape[2])
    columns = max(_LEAST_COLUMNS, _COLUMNS // heads)
    scores = [query @ keys.float().mT for keys in key.split(columns, dim=1)]
    highest = torch.stack([part.amax(-1) for part in scores]).amax(0)[..., None]
    # Dense, spatial and temporal weights, one above the other: one product with the values serves all three.
    outputs = query.new_zeros(heads, 3 * count, value.shape[2])
    sums = query.new_zeros(heads, 3, count)
    zero = query.new_zeros(())
    # One buffer for all parts: first touches of fresh memory would cost more than the arithmetic.
    buffer = query.new_empty(heads * 3 * count * scores[0].shape[2])
    for part, values, seen in zip(scores, value.split(columns, dim=1), masks.split(columns, dim=2), strict=True):
        shape = (heads, 3, count, part.shape[2])
        weights = buffer[: math.prod(shape)].view(shape)
        torch.sub(part, highest, out=weights[:, 0]).exp_()
        torch.where(seen, weights[:, :1], zero, out=weights[:, 1:])
        sums += weights.sum(-1)
        outputs.baddbmm_(weights.flatten(1, 2), values.float())
    means = outputs.unflatten(1, (3, count)) / sums[..., None]
    for head, band, row in (sums < _LEAST_SUM).nonzero().tolist():
        if band:
            every = torch.cat([part[head, row] for part in scores])
            means[head, band, row] = _masked_softmax(every, masks[band - 1, row]) @ value[head].float()
    return means


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the keys that `mask` shows; rows that see none give 0."""
    shown = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(shown, dim=-1).masked_fill(~mask.any(-1, keepdim=True), 0.0)


@lru_cache(maxsize=8)
def _sampled_masks(layout: VideoLayout, density: float, count: int) -> tuple[Tensor, Tensor]:
    """Positions of the sampled rows, int64 [R], and what they attend spatially and temporally, bool [2, R, N]."""
    token = sampled_video_token(torch.arange(count, device="cpu"), count, layout.video)
    video = torch.arange(layout.tokens, device="cpu") - layout.video_start
    is_text = (video < 0) | (video >= layout.video)
    video = video.clamp(0, layout.video - 1)
    frame, place = video // layout.area, video % layout.area
    masks = torch.empty(2, count, layout.tokens, dtype=torch.bool, device="cpu")
    for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL):
        rank = band_rank(frame, place, layout.frames, layout.area, int(kind))
        block = band_block(rank, layout.area, layout.block)
        rows = block[token + layout.video_start]
        masks[kind] = attends(False, is_text, frame, rows[:, None], block, layout.half_width_for(density, kind))
    return token + layout.video_start, masks
