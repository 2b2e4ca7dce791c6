"""The first kernel of `svg::profile`: three outputs of the sampled rows from one read of K and V, or the plan's."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from svg_compile.kernels.triton.tiles import attends, band_block, band_rank, load_rows, scores, softmax_step, store_rows


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
    """Write one kind's partial result: maximum in units of log2, sum, and unscaled output."""
    row = tl.arange(0, BLOCK_M)
    row_ok = row >= 0
    tl.store(sums + row, peak * unit)
    tl.store(sums + BLOCK_M + row, total)
    store_rows(partial, out_low, row, row_ok, VALUE_DIM, 1, 0, VALUE_LOW, VALUE_DIM)
    if VALUE_HIGH > 0:
        store_rows(partial, out_high, row, row_ok, VALUE_DIM, 1, VALUE_LOW, VALUE_HIGH, VALUE_DIM)


@triton.jit
def profile_rows_fwd_kernel(
    query, key, value, sampled, widths, plan, when, key_mask, partial, sums,
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

    widths int32 [densities, 3], when int32 [2]. BY_PLAN: compute only the output under `plan`, int32 [B * H, 2], and
    overwrite that of the head's kind; heads that run dense, or at the half-width in `widths`, have it already. Writes
    nothing where plans are kept.
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
    if HAS_WHEN:
        widths += 3 * tl.load(when)
    spatial_width = tl.load(widths)
    temporal_width = tl.load(widths + 1)
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    tokens = text_len + frames * area
    video_start = text_len if TEXT_FIRST else 0
    if BY_PLAN:
        kind = tl.load(plan + 2 * batch_head)
        plan_width = tl.load(plan + 2 * batch_head + 1)
        # Heads that have it read no key and store nothing. (An early return costs registers on some architectures.)
        has_it = plan_width == tl.load(widths + kind)
        tokens = tl.where(has_it, 0, tokens)
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
        if BY_PLAN:
            query_block = band_block(band_rank(frame, place, frames, area, kind), area, BAND)
            key_block = band_block(band_rank(key_frame, key_place, frames, area, kind), area, BAND)
            near = attends(
                is_text[None, :], is_text[None, :], key_frame[None, :], query_block[:, None], key_block[None, :],
                plan_width,
            )  # fmt: skip
            peak, total, low, high = kind_tile(
                score, shown & near, peak, total, low, high, value_low, value_high, unit, VALUE_HIGH
            )
        else:
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
    if BY_PLAN:
        if has_it:
            return
        partial += (1 + kind) * (BLOCK_M * VALUE_DIM)
        sums += (1 + kind) * (2 * BLOCK_M)
    store_kind(partial, sums, peak, total, low, high, unit, VALUE_DIM, VALUE_LOW, VALUE_HIGH, BLOCK_M)
    if not BY_PLAN:
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
