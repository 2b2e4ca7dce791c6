"""`svg::profile` on CUDA and ROCm: which kind of sparse attention suits each head, from one pass over its K and V.

On the sampled query rows (kernels/sampling.py) the dense output o and the spatial and temporal outputs o_s, o_t come
from three online softmaxes over one read of K and V, split over SPLITS stretches of the keys so that the GPU is
filled. A second kernel merges the stretches and decides, in float32:

    error_kind = mean over rows and channels of (o_kind - o)^2;   the smaller wins, a tie is spatial
    an error that is not finite never wins; where neither is finite the head stays dense

With half-widths by need the kernels of `need` follow, and the first kernel runs once more for what its rows are by the
plan, where a repair is fitted on them.

q, k, v [B, H, N, D] of one dtype (bfloat16, float16, float32), head dims 16 to 256, any strides; key_mask bool [B, N]
or None; plan int32 [B, H, 2] = (kind, half-width in blocks). No host sync, no random numbers, no host-to-device copy.
`when` and `previous` (kernels/ops.py) are read on the device: where the kinds of `previous` are kept, the first kernel
returns at once and the second takes them over. Without them the kernels are compiled as if there were no such thing.
The three outputs keep their own maxima: with a shared one, a band far below the dense maximum would underflow to 0.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from svg_compile._compat.gpu import in_one_buffer
from svg_compile.kernels.sampling import sampled_video_token
from svg_compile.kernels.triton.configs import profile_tiles
from svg_compile.kernels.triton.decide import profile_plan_fwd_kernel
from svg_compile.kernels.triton.half_width import half_widths, ladders
from svg_compile.kernels.triton.launch import (
    autotunes,
    cdiv,
    checked_head_dims,
    exponent_unit,
    launch,
    launcher,
    split_channels,
)
from svg_compile.kernels.triton.need import missing_fwd_kernel, missing_rows_fwd_kernel, plan_by_need_fwd_kernel
from svg_compile.kernels.triton.tiles import attends, band_block, band_rank, load_rows, scores, softmax_step, store_rows
from svg_compile.kernels.widths import FILLS, LADDER, LEAST_PRICE, MOST_PRICE, STEPS, UNIFORM

_SPLITS = 16
_RUNGS = 2 * len(LADDER)
_MERGE_ROWS = 16


class Parts(NamedTuple):
    """What a profile finds: plan int32 [B, H, 2], errors float32 [B, H, 2], and the parts of its outputs.

    partial and sums: as `profile_rows_fwd_kernel` writes them, of `rows` rows in `row_tiles` tiles of `block_m`; those
    of the sparse outputs are of the plan's half-widths if `plan_rows` was asked for, else of the uniform ones.
    """

    plan: Tensor
    errors: Tensor
    partial: Tensor
    sums: Tensor
    rows: int
    row_tiles: int
    block_m: int
    splits: int = _SPLITS


@triton.jit
def kind_tile(
    score, shown, peak, total, out_low, out_high, value_low, value_high, unit, VALUE_HIGH: tl.constexpr
):  # fmt: skip
    """Add one tile of keys to the output of one kind."""
    weight, factor, peak, total = softmax_step(score, shown, peak, total, unit, True)
    weight = weight.to(value_low.dtype)
    out_low = tl.dot(weight, value_low, out_low * factor[:, None], input_precision="ieee")
    if VALUE_HIGH > 0:
        out_high = tl.dot(weight, value_high, out_high * factor[:, None], input_precision="ieee")
    return peak, total, out_low, out_high


@triton.jit
def store_kind(
    partial, sums, peak, total, out_low, out_high, unit,
    VALUE_DIM: tl.constexpr, VALUE_LOW: tl.constexpr, VALUE_HIGH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write one kind's part: maximum in units of log2, sum, and unscaled output."""
    row = tl.arange(0, BLOCK_M)
    row_ok = row >= 0
    tl.store(sums + row, peak * unit)
    tl.store(sums + BLOCK_M + row, total)
    store_rows(partial, out_low, row, row_ok, VALUE_DIM, 1, 0, VALUE_LOW, VALUE_DIM)
    if VALUE_HIGH > 0:
        store_rows(partial, out_high, row, row_ok, VALUE_DIM, 1, VALUE_LOW, VALUE_HIGH, VALUE_DIM)


@triton.jit
def profile_rows_fwd_kernel(
    query, key, value, sampled, widths, when, key_mask, partial, sums,
    stride_qb, stride_qh, stride_qn, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_vb, stride_vh, stride_vn, stride_vd,
    stride_mb, stride_mn, stride_w,
    heads, frames, area, text_len, count, row_tiles, unit,
    SIGN: tl.constexpr, TEXT_FIRST: tl.constexpr, BAND: tl.constexpr, HAS_KEY_MASK: tl.constexpr,
    HAS_WHEN: tl.constexpr, HAS_PREVIOUS: tl.constexpr, BY_PLAN: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    VALUE_LOW: tl.constexpr, VALUE_HIGH: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """partial float32 [B * H, row tiles, SPLITS, 3, BLOCK_M, Dv] and sums [B * H, row tiles, SPLITS, 3, 2, BLOCK_M].

    widths int32 [densities, 3], when int32 [2]; BY_PLAN: widths is a plan, int32 [B * H, 2], whose half-widths hold for
    both kinds. Where plans are kept nothing is written.
    """
    # Inductor passes Python floats as float64 up to torch 2.14.
    unit = tl.cast(unit, tl.float32)
    if HAS_PREVIOUS:
        if tl.load(when + stride_w) == 0:
            return
    part = tl.program_id(0)
    split = part % SPLITS
    row_tile = part // SPLITS % row_tiles
    batch_head = part // SPLITS // row_tiles
    if BY_PLAN:
        widths += 2 * batch_head
    elif HAS_WHEN:
        widths += 3 * tl.load(when)
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    tokens = text_len + frames * area
    video_start = text_len if TEXT_FIRST else 0
    query += batch * stride_qb + head * stride_qh
    key += batch * stride_kb + head * stride_kh
    value += batch * stride_vb + head * stride_vh
    key_mask += batch * stride_mb

    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = row < count
    query_video = tl.load(sampled + row, mask=row_ok, other=0).to(tl.int32)
    query_token = video_start + query_video
    query_low = load_rows(query, query_token, row_ok, stride_qn, stride_qd, 0, LOW, HEAD_DIM, True)
    query_high = query_low
    if HIGH > 0:
        query_high = load_rows(query, query_token, row_ok, stride_qn, stride_qd, LOW, HIGH, HEAD_DIM, True)
    if SIGN != 1:
        query_low = (query_low * SIGN).to(query_low.dtype)
        query_high = (query_high * SIGN).to(query_low.dtype)
    frame = query_video // area
    place = query_video - frame * area
    temporal_width = tl.load(widths + 1)
    spatial_width = temporal_width
    if not BY_PLAN:
        spatial_width = tl.load(widths)
    spatial_query = band_block(band_rank(frame, place, frames, area, 0), area, BAND)
    temporal_query = band_block(band_rank(frame, place, frames, area, 1), area, BAND)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    low = tl.zeros([BLOCK_M, VALUE_LOW], tl.float32)
    high = total
    if VALUE_HIGH > 0:
        high = tl.zeros([BLOCK_M, VALUE_HIGH], tl.float32)
    spatial_peak, spatial_total, spatial_low, spatial_high = peak, total, low, high
    temporal_peak, temporal_total, temporal_low, temporal_high = peak, total, low, high
    chunk = tl.cdiv(tl.cdiv(tokens, SPLITS), BLOCK_N) * BLOCK_N
    end = tl.minimum((split + 1) * chunk, tokens)
    for start in range(split * chunk, end, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        token_ok = token < end
        if HAS_KEY_MASK:
            token_ok &= tl.load(key_mask + token.to(tl.int64) * stride_mn, mask=token_ok, other=0) != 0
        video = token - video_start
        is_text = (video < 0) | (video >= frames * area)
        video = tl.maximum(video, 0)
        key_frame = video // area
        key_place = video - key_frame * area
        spatial_key = band_block(band_rank(key_frame, key_place, frames, area, 0), area, BAND)
        temporal_key = band_block(band_rank(key_frame, key_place, frames, area, 1), area, BAND)
        score = scores(query_low, query_high, key, token, token_ok, stride_kn, stride_kd, LOW, HIGH, HEAD_DIM, True)
        value_low = load_rows(value, token, token_ok, stride_vn, stride_vd, 0, VALUE_LOW, VALUE_DIM, True)
        value_high = value_low
        if VALUE_HIGH > 0:
            value_high = load_rows(value, token, token_ok, stride_vn, stride_vd, VALUE_LOW, VALUE_HIGH, VALUE_DIM, True)
        shown = token_ok[None, :]
        peak, total, low, high = kind_tile(
            score, shown, peak, total, low, high, value_low, value_high, unit, VALUE_HIGH
        )
        near = attends(
            is_text[None, :], is_text[None, :], key_frame[None, :], spatial_query[:, None], spatial_key[None, :],
            spatial_width,
        )  # fmt: skip
        spatial_peak, spatial_total, spatial_low, spatial_high = kind_tile(
            score, shown & near, spatial_peak, spatial_total, spatial_low, spatial_high,
            value_low, value_high, unit, VALUE_HIGH,
        )  # fmt: skip
        near = attends(
            is_text[None, :], is_text[None, :], key_frame[None, :], temporal_query[:, None], temporal_key[None, :],
            temporal_width,
        )  # fmt: skip
        temporal_peak, temporal_total, temporal_low, temporal_high = kind_tile(
            score, shown & near, temporal_peak, temporal_total, temporal_low, temporal_high,
            value_low, value_high, unit, VALUE_HIGH,
        )  # fmt: skip

    partial += part.to(tl.int64) * (3 * BLOCK_M * VALUE_DIM)
    sums += part.to(tl.int64) * (6 * BLOCK_M)
    store_kind(partial, sums, peak, total, low, high, unit, VALUE_DIM, VALUE_LOW, VALUE_HIGH, BLOCK_M)
    partial += BLOCK_M * VALUE_DIM
    sums += 2 * BLOCK_M
    store_kind(
        partial, sums, spatial_peak, spatial_total, spatial_low, spatial_high, unit,
        VALUE_DIM, VALUE_LOW, VALUE_HIGH, BLOCK_M,
    )  # fmt: skip
    partial += BLOCK_M * VALUE_DIM
    sums += 2 * BLOCK_M
    store_kind(
        partial, sums, temporal_peak, temporal_total, temporal_low, temporal_high, unit,
        VALUE_DIM, VALUE_LOW, VALUE_HIGH, BLOCK_M,
    )  # fmt: skip


def profile_heads(*operands: Any) -> tuple[Tensor, Tensor]:
    """The plan, int32 [B, H, 2], and the errors (spatial, temporal), float32 [B, H, 2], of `profile_parts`."""
    parts = profile_parts(*operands)
    return parts.plan, parts.errors


def profile_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Optional[Tensor],
    frames: int,
    height: int,
    width: int,
    text_len: int,
    text_first: bool,
    block: int,
    densities: Sequence[float],
    sampled_rows: int,
    adaptive: bool,
    scale: Optional[float],
    when: Optional[Tensor] = None,
    previous: Optional[Tensor] = None,
    plan_rows: bool = False,
) -> Parts:
    """Profile q, k, v [B, H, N, D].

    when int32 [2], previous int32 [B, H, 2], in any strides; see the module. plan_rows: the rows' outputs are needed by
    the plan's half-widths. Sizes may be SymInts.
    """
    batch, heads = query.shape[0], query.shape[1]
    head_dim, value_dim = checked_head_dims(query, key, value, frames)
    tiles = profile_tiles(query.device, query.dtype, max(head_dim, value_dim), autotunes(query))
    block_m = tiles[0].block_m
    area, video = height * width, frames * height * width
    grid = (frames, height, width, text_len, text_first, block)
    count = torch.sym_min(sampled_rows, video)
    row_tiles = cdiv(count, block_m)
    sampled = sampled_video_token(torch.arange(count, device=query.device), count, video)
    # One buffer, for it stands in for what is not given, too.
    widths = in_one_buffer(half_widths(*grid, densities, query.device))
    parts = batch * heads * row_tiles * _SPLITS
    partial = query.new_empty(parts, 3, block_m, value_dim, dtype=torch.float32)
    sums = query.new_empty(parts, 3, 2, block_m, dtype=torch.float32)
    plan = query.new_empty(batch, heads, 2, dtype=torch.int32)
    errors = query.new_empty(batch, heads, 2, dtype=torch.float32)
    # A previous plan is of no use without the word that it is to be kept.
    stages = {"HAS_WHEN": when is not None, "HAS_PREVIOUS": when is not None and previous is not None}
    stage = widths if when is None else when
    before = widths if previous is None else previous.reshape(batch * heads, 2)
    sign, unit = exponent_unit(head_dim**-0.5 if scale is None else scale)
    mask = widths if key_mask is None else key_mask
    mask_strides = (0, 0) if key_mask is None else key_mask.stride()
    sizes = (heads, frames, area, text_len, count, row_tiles, unit)
    channels = split_channels(head_dim, value_dim)
    constants = {
        "SIGN": sign, "TEXT_FIRST": text_first, "BAND": block, "HAS_KEY_MASK": key_mask is not None, **stages,
        "HEAD_DIM": head_dim, "SPLITS": _SPLITS,
    }  # fmt: skip

    def profile_rows(half_widths: Tensor, partial: Tensor, sums: Tensor, *, by_plan: bool) -> None:
        launch(
            profile_rows_fwd_kernel, lambda meta: (parts,), tiles,
            query, key, value, sampled, half_widths, stage, mask, partial, sums,
            *query.stride(), *key.stride(), *value.stride(), *mask_strides, stage.stride(0), *sizes,
            **constants, BY_PLAN=by_plan, VALUE_DIM=value_dim, **channels,
        )  # fmt: skip

    profile_rows(widths, partial, sums, by_plan=False)
    launcher(profile_plan_fwd_kernel)[(batch * heads,)](
        partial, sums, widths, stage, before, plan, errors,
        stage.stride(0), before.stride(0), count, row_tiles, **stages,
        SPLITS=_SPLITS, VALUE_DIM=value_dim, WIDTH=triton.next_power_of_2(value_dim),
        BLOCK_M=block_m, ROWS=_MERGE_ROWS,
    )  # fmt: skip
    if not adaptive:
        return Parts(plan, errors, partial, sums, count, row_tiles, block_m)

    rungs, cost = ladders(*grid, densities, query.device)
    missing = query.new_empty(parts, _RUNGS, block_m, dtype=torch.float32)
    launch(
        missing_rows_fwd_kernel, lambda meta: (parts,), tiles[:1],
        query, key, sampled, rungs, stage, mask, sums, missing,
        *query.stride(), *key.stride(), *mask_strides, stage.stride(0), *sizes,
        **constants, LOW=channels["LOW"], HIGH=channels["HIGH"], RUNGS=_RUNGS,
    )  # fmt: skip
    mean = query.new_empty(batch, heads, _RUNGS, dtype=torch.float32)
    launcher(missing_fwd_kernel)[(batch * heads,)](
        missing, mean, stage, stage.stride(0), count, row_tiles,
        HAS_PREVIOUS=stages["HAS_PREVIOUS"], RUNGS=_RUNGS, SPLITS=_SPLITS, BLOCK_M=block_m,
    )  # fmt: skip
    by_need = torch.empty_like(plan)
    launcher(plan_by_need_fwd_kernel)[(batch,)](
        errors, mean, plan, rungs, cost, stage, before, by_need,
        stage.stride(0), before.stride(0), heads,
        **stages, HEADS=triton.next_power_of_2(int(heads)), RUNGS=_RUNGS, UNIFORM=UNIFORM,
        LEAST_PRICE=LEAST_PRICE, MOST_PRICE=MOST_PRICE, STEPS=STEPS, FILLS=FILLS,
    )  # fmt: skip
    if plan_rows:
        partial, sums = torch.empty_like(partial), torch.empty_like(sums)
        profile_rows(by_need, partial, sums, by_plan=True)
    return Parts(by_need, errors, partial, sums, count, row_tiles, block_m)
