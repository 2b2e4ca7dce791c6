"""Profiling on CPUs: which of the two bands has the smaller error on sampled rows, in one pass over keys and values.

With half-widths by need (kernels/widths.py) the weights of that pass are also summed by blocks of keys, which gives the
mass outside of every half-width; sampled rows of heads whose plan has a different half-width are then computed again.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from svg_compile.kernels.cpu.autocast import without_autocast
from svg_compile.kernels.cpu.order import token_order
from svg_compile.kernels.plan import ProfiledRows, plan_from_errors
from svg_compile.kernels.sampling import sampled_video_token
from svg_compile.kernels.spread import Spread
from svg_compile.kernels.widths import LADDER, ladder, plan_by_need
from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.mask import mask_of, tokens_at

# Weights are relative to the dense maximum: if their sum is below this, some may have underflowed.
_LEAST_SUM = 1e-30
# Keys per step, over all heads and at least per head: their scores and weights stay in the caches.
_COLUMNS = 8192
_LEAST_COLUMNS = 512
_BANDS = (HeadKind.SPATIAL, HeadKind.TEMPORAL)


@torch.no_grad()
# The caller may run eagerly under autocast, and scores in bfloat16 would decide near-ties.
@without_autocast
def profile_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: VideoLayout,
    *,
    density: float,
    sampled_rows: int,
    adaptive: bool = False,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    share: Tensor | None = None,
    spread: Spread | None = None,
) -> ProfiledRows:
    """Profile q, k, v [B, H, N, D] in any strides, key_mask bool [B, N]; adaptive: half-widths by need.

    share: float32 [B], with `adaptive`, each sample's mean density as a multiple of `density`. spread: the processes
    whose heads share the pairs. Scores, outputs and errors are computed in float32.
    """
    rows, masks = _sampled_masks(layout, density, min(sampled_rows, layout.video))
    scale = query.shape[3] ** -0.5 if scale is None else scale
    if key_mask is not None and bool(key_mask.all()):
        key_mask = None
    found = []
    for batch in range(query.shape[0]):
        keys, values, seen, shown = key[batch], value[batch], masks, None
        if key_mask is not None:
            shown = key_mask[batch].nonzero().flatten()
            keys, values, seen = keys[:, shown], values[:, shown], masks.index_select(2, shown)
        outputs, scores = _outputs(query[batch][:, rows].float() * scale, keys, values, seen)
        errors = (outputs[:, 1:] - outputs[:, :1]).square().mean((-1, -2))
        if adaptive and scores:
            missing = _missing_mass(scores, layout, density, shown)
            given = None if share is None else share[batch : batch + 1]
            plan = plan_by_need(errors[None], missing[None], layout, density, given, spread)[0]
        else:
            # Uniform half-widths, or no visible key: no mass is missing.
            missing = errors.new_zeros(*errors.shape, len(LADDER) if adaptive else 0)
            plan = plan_from_errors(errors[None], layout, density)[0]
        dense = outputs[:, 0]
        # A dense head is compared with itself.
        column = torch.where(plan[:, 0] == HeadKind.DENSE, 0, plan[:, 0] + 1)
        sparse = outputs[torch.arange(len(outputs), device="cpu"), column]
        for head, (kind, half_width) in enumerate(plan.tolist()):
            if kind != HeadKind.DENSE and half_width != layout.half_width_for(density, kind):
                mask = _band_mask(layout, HeadKind(kind), half_width, len(rows))
                mask = mask if shown is None else mask.index_select(1, shown)
                every = torch.cat([part[head] for part in scores], dim=-1)
                sparse[head] = _masked_rows(every, mask, values[head].float())
        found.append((plan, errors, missing, dense, sparse))
    return ProfiledRows(*(torch.stack(parts) for parts in zip(*found, strict=True)))


def _outputs(query: Tensor, key: Tensor, value: Tensor, masks: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Attention on all keys and on those of each mask, float32 [H, 3, R, D], and the scores [H, R, K] in parts of K.

    query float32 [H, R, D], key and value [H, K, D] in any dtype, masks bool [2, R, K].
    """
    heads, count, _ = query.shape
    if not key.shape[1]:
        return query.new_zeros(heads, 3, count, value.shape[2]), []
    columns = max(_LEAST_COLUMNS, _COLUMNS // heads)
    scores = [query @ keys.float().mT for keys in key.split(columns, dim=1)]
    highest = torch.stack([part.amax(-1) for part in scores]).amax(0)[..., None]
    # Dense, spatial and temporal weights are stacked along the rows: one matmul with the values computes all three.
    outputs = query.new_zeros(heads, 3 * count, value.shape[2])
    sums = query.new_zeros(heads, 3, count)
    zero = query.new_zeros(())
    # One buffer for all parts: page faults on fresh memory would take longer than the arithmetic.
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
    return means, scores


def _masked_rows(scores: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    """Attention [R, D] of one head on the keys where `mask` [R, K] is True: scores [R, K], value float32 [K, D]."""
    weights = (scores - scores.amax(-1, keepdim=True)).exp_()
    weights = torch.where(mask, weights, weights.new_zeros(()))
    sums = weights.sum(-1, keepdim=True)
    rows = weights @ value / sums
    lost = (sums < _LEAST_SUM).flatten().nonzero().flatten()
    # Advanced indexing copies, so skip it in the usual case of no lost row.
    if len(lost):
        rows[lost] = _masked_softmax(scores[lost], mask[lost]) @ value
    return rows


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the keys where `mask` is True; rows without one give 0."""
    shown = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(shown, dim=-1).masked_fill(~mask.any(-1, keepdim=True), 0.0)


def _missing_mass(scores: list[Tensor], layout: VideoLayout, density: float, shown: Tensor | None) -> Tensor:
    """float32 [H, 2, rungs]: the mean square, over rows, of the weight that each rung of the ladder leaves out.

    scores: [H, R, K] in parts; `shown`: the positions of the K visible keys, None for all.
    """
    missing = []
    for head in range(scores[0].shape[0]):
        weights = torch.softmax(torch.cat([part[head] for part in scores], dim=-1), dim=-1)
        if shown is not None:
            weights = weights.new_zeros(len(weights), layout.tokens).index_copy_(1, shown, weights)
        missing.append(torch.stack([_missing_of(weights, layout, density, kind) for kind in _BANDS]))
    return torch.stack(missing)


def _missing_of(weights: Tensor, layout: VideoLayout, density: float, kind: HeadKind) -> Tensor:
    """`_missing_mass` of one head and kind, [rungs], from its weights [R, N]."""
    left, right = _ladder_edges(layout, density, kind, len(weights))
    by_rank = weights.index_select(1, token_order(layout, kind).body)
    blocks = -(-layout.body // layout.block)
    by_rank = torch.nn.functional.pad(by_rank, (0, blocks * layout.block - layout.body))
    mass = torch.nn.functional.pad(by_rank.unflatten(1, (blocks, layout.block)).sum(-1), (1, 1))
    # Sum from both ends: 1 minus the mass inside the band would leave rounding errors where nothing is missing.
    before, behind = mass.cumsum(1), mass.flip(1).cumsum(1).flip(1)
    return (before.gather(1, left) + behind.gather(1, right)).square().mean(0)


@lru_cache(maxsize=16)
def _ladder_edges(layout: VideoLayout, density: float, kind: HeadKind, count: int) -> tuple[Tensor, Tensor]:
    """int64 [R, rungs], twice: the last block before the band of a sampled row, and the first one after it.

    Blocks count from 1; 0 and the number of blocks plus 1 mean none.
    """
    widths = torch.tensor(ladder(layout, density)[kind], device="cpu")
    block = tokens_at(layout, kind, _sampled_positions(layout, count)).block[:, None]
    last = -(-layout.body // layout.block) + 1
    return (block - widths).clamp(0, last), (block + widths + 2).clamp(0, last)


def _sampled_positions(layout: VideoLayout, count: int) -> Tensor:
    """Positions of the sampled rows, int64 [R]."""
    return layout.video_start + sampled_video_token(torch.arange(count, device="cpu"), count, layout.video)


@lru_cache(maxsize=16)
def _band_mask(layout: VideoLayout, kind: HeadKind, half_width: int, count: int) -> Tensor:
    """The mask of the sampled rows, bool [R, N]."""
    return mask_of(
        layout, kind, half_width, _sampled_positions(layout, count), torch.arange(layout.tokens, device="cpu")
    )


@lru_cache(maxsize=8)
def _sampled_masks(layout: VideoLayout, density: float, count: int) -> tuple[Tensor, Tensor]:
    """Positions of the sampled rows, int64 [R], and their spatial and temporal masks, bool [2, R, N]."""
    masks = [_band_mask(layout, kind, layout.half_width_for(density, kind), count) for kind in _BANDS]
    return _sampled_positions(layout, count), torch.stack(masks)
