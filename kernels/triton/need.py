"""Half-widths by need on CUDA and ROCm: the mass that each rung misses, and the plan by kernels/widths.py.

Three kernels run after those of the profile, without a host sync:

    missing_rows_fwd_kernel     recomputes the scores of the sampled rows, in the order of each kind, and sums the
                                weights outside of each half-width
    missing_fwd_kernel          the mean square of these sums over the rows of a head
    plan_by_need_fwd_kernel     one program per sample: the bisection for the price, then the remaining pairs

q, k [B, H, N, D]; ladder int32 [densities, RUNGS] and cost float32 [densities, RUNGS + 1] as `half_width.ladders`
returns them: RUNGS counts both kinds, spatial first; the last cost of a row is the requested density.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from svg_compile.kernels.triton.tiles import attends, band_block, band_rank, body_offset, load_rows, scores


@triton.jit
def missing_rows_fwd_kernel(
    query, key, sampled, ladder, when, key_mask, sums, missing,
    stride_qb, stride_qh, stride_qn, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd,
    stride_mb, stride_mn, stride_w,
    heads, frames, area, text_len, count, row_tiles, unit,
    SIGN: tl.constexpr, TEXT_FIRST: tl.constexpr, BAND: tl.constexpr, HAS_KEY_MASK: tl.constexpr,
    HAS_WHEN: tl.constexpr, HAS_PREVIOUS: tl.constexpr,
    HEAD_DIM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    RUNGS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """missing float32 [B * H, row tiles, SPLITS, RUNGS, BLOCK_M]: weight outside of each half-width, by split of keys.

    A program processes one kind and a range of the body's blocks in that kind's order; text and the first frame are in
    every band. sums: those of the profile, with the maximum and the sum of a row's dense weights. BLOCK_N is at most
    BAND, or 16. Writes nothing where plans are kept.
    """
    HALF: tl.constexpr = RUNGS // 2
    # Inductor passes Python floats as float64 up to torch 2.14.
    unit = tl.cast(unit, tl.float32)
    if HAS_PREVIOUS:
        if tl.load(when + stride_w) == 0:
            return
    if HAS_WHEN:
        ladder += RUNGS * tl.load(when)
    temporal = tl.program_id(0) % 2
    part = tl.program_id(0) // 2
    split = part % SPLITS
    row_tile = part // SPLITS % row_tiles
    batch_head = part // SPLITS // row_tiles
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    video_start = text_len if TEXT_FIRST else 0
    query += batch * stride_qb + head * stride_qh
    key += batch * stride_kb + head * stride_kh
    key_mask += batch * stride_mb

    index = tl.arange(0, BLOCK_M)
    row = row_tile * BLOCK_M + index
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
    query_block = band_block(band_rank(frame, query_video - frame * area, frames, area, temporal), area, BAND)

    # Maximum and sum of the dense output, the first of the profile's three.
    sums += (part - split).to(tl.int64) * (6 * BLOCK_M)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for other in range(SPLITS):
        part_peak = tl.load(sums + other * 6 * BLOCK_M + index)
        new_peak = tl.maximum(peak, part_peak)
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        part_total = tl.load(sums + (other * 6 + 1) * BLOCK_M + index)
        total = total * tl.exp2(peak - shift) + part_total * tl.exp2(part_peak - shift)
        peak = new_peak
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    share = 1.0 / tl.where(total == 0.0, 1.0, total)

    rung = temporal * HALF + tl.arange(0, HALF)
    widths = tl.load(ladder + rung)
    outside = tl.zeros([BLOCK_M, HALF], tl.float32)
    body = (frames - 1) * area
    # All keys of a tile are in one block, so a row attends all or none of them: one comparison for their sum.
    tiles_of_block = tl.cdiv(BAND, BLOCK_N)
    tiles = tl.cdiv(body, BAND) * tiles_of_block
    chunk = tl.cdiv(tiles, SPLITS)
    for tile in range(split * chunk, tl.minimum((split + 1) * chunk, tiles)):
        block = tile // tiles_of_block
        within = tile % tiles_of_block * BLOCK_N + tl.arange(0, BLOCK_N)
        rank = block * BAND + within
        token = video_start + area + body_offset(rank, frames, area, temporal == 1)
        token_ok = (within < BAND) & (rank < body)
        if HAS_KEY_MASK:
            token_ok &= tl.load(key_mask + token.to(tl.int64) * stride_mn, mask=token_ok, other=0) != 0
        score = scores(query_low, query_high, key, token, token_ok, stride_kn, stride_kd, LOW, HIGH, HEAD_DIM, True)
        weight = tl.exp2(score * unit - peak[:, None]) * share[:, None]
        mass = tl.sum(tl.where(token_ok[None, :], weight, 0.0), 1)
        near = attends(False, False, 1, query_block[:, None], block, widths[None, :])
        outside += tl.where(near, 0.0, mass[:, None])
    missing += part.to(tl.int64) * (RUNGS * BLOCK_M)
    tl.store(missing + rung[None, :] * BLOCK_M + index[:, None], outside)


@triton.jit
def missing_fwd_kernel(
    missing, mean, when, stride_w, count, row_tiles,
    HAS_PREVIOUS: tl.constexpr, RUNGS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """mean float32 [B * H, RUNGS]: the mean, over the sampled rows, of the squared mass that a rung misses."""
    if HAS_PREVIOUS:
        if tl.load(when + stride_w) == 0:
            return
    batch_head = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK_M)
    rung = tl.arange(0, RUNGS)
    missing += batch_head * row_tiles * (SPLITS * RUNGS * BLOCK_M)
    square = tl.zeros([BLOCK_M, RUNGS], tl.float32)
    for tile in range(row_tiles):
        total = tl.zeros([BLOCK_M, RUNGS], tl.float32)
        for split in range(SPLITS):
            total += tl.load(missing + (split * RUNGS + rung[None, :]) * BLOCK_M + index[:, None])
        row_ok = tile * BLOCK_M + index < count
        square += tl.where(row_ok[:, None], total * total, 0.0)
        missing += SPLITS * RUNGS * BLOCK_M
    tl.store(mean + batch_head * RUNGS + rung, tl.sum(square, 0) / count)


@triton.jit
def at_rung(table, choice, RUNGS: tl.constexpr):
    """table [HEADS or 1, RUNGS] at choice [HEADS]: float32 [HEADS]."""
    rung = tl.arange(0, RUNGS)
    return tl.sum(tl.where(rung[None, :] == choice[:, None], table, 0.0), 1)


@triton.jit
def plan_by_need_fwd_kernel(
    errors, missing, uniform, ladder, cost, when, previous, share, plan,
    stride_w, stride_ph, stride_s, heads,
    HAS_WHEN: tl.constexpr, HAS_PREVIOUS: tl.constexpr, HAS_SHARE: tl.constexpr,
    HEADS: tl.constexpr, RUNGS: tl.constexpr, UNIFORM: tl.constexpr,
    LEAST_PRICE: tl.constexpr, MOST_PRICE: tl.constexpr, STEPS: tl.constexpr, FILLS: tl.constexpr,
    SLACK: tl.constexpr,
):  # fmt: skip
    """plan int32 [B * H, 2] of one sample, as by `kernels.widths.plan_by_need`.

    errors float32 [B * H, 2]; missing float32 [B * H, RUNGS]; uniform int32 [B * H, 2], the plan with uniform
    half-widths; when int32 [2]; previous int32 [B * H, 2], copied where plans are kept; share float32 [B].
    """
    HALF: tl.constexpr = RUNGS // 2
    INFINITE: tl.constexpr = float("inf")
    head = tl.arange(0, HEADS)
    there = head < heads
    at = tl.program_id(0).to(tl.int64) * heads + head
    if HAS_PREVIOUS:
        if tl.load(when + stride_w) == 0:
            for column in tl.static_range(2):
                kept = tl.load(previous + at * stride_ph + column, mask=there, other=0)
                tl.store(plan + 2 * at + column, kept, mask=there)
            return
    if HAS_WHEN:
        ladder += RUNGS * tl.load(when)
        cost += (RUNGS + 1) * tl.load(when)
    rung = tl.arange(0, RUNGS)
    kind_of_rung = rung // HALF
    uniform_kind = tl.load(uniform + 2 * at, mask=there, other=2)
    uniform_width = tl.load(uniform + 2 * at + 1, mask=there, other=0)
    counted = there & (uniform_kind != 2)
    cell_ok = there[:, None] & (rung >= 0)[None, :]
    cells = at[:, None] * RUNGS
    misses = tl.load(missing + cells + rung[None, :], mask=cell_ok, other=0.0)
    at_uniform = tl.load(missing + cells + (kind_of_rung * HALF + UNIFORM)[None, :], mask=cell_ok, other=0.0)
    error = tl.load(errors + 2 * at[:, None] + kind_of_rung[None, :], mask=cell_ok, other=0.0)
    # No division by 0: a rung that misses nothing has a need of 0; if only the uniform one misses nothing, no estimate.
    ratio = tl.where(misses > 0, misses / tl.where(at_uniform > 0, at_uniform, 1.0), 0.0)
    need = tl.where(ratio > 0, error * ratio, 0.0)
    unknown = ((misses > 0) & (at_uniform == 0)) | (error - error != 0)
    need = tl.where(unknown, INFINITE, need)
    need = tl.where(counted[:, None], need, 0.0)
    largest = tl.max(tl.max(tl.where(need < INFINITE, need, 0.0), 1), 0)
    need = need / tl.maximum(largest, 1.17549435e-38)
    price = tl.load(cost + rung)[None, :]
    budget = tl.load(cost + RUNGS) * tl.sum(tl.where(counted, 1.0, 0.0), 0)
    if HAS_SHARE:
        budget *= tl.load(share + tl.program_id(0) * stride_s)

    low = LEAST_PRICE
    high = MOST_PRICE
    low = tl.cast(low, tl.float32)
    high = tl.cast(high, tl.float32)
    for _ in range(STEPS):
        middle = (low + high) * 0.5
        choice = tl.argmin(need + tl.exp2(middle) * price, 1)
        fits = tl.sum(tl.where(counted, at_rung(price, choice, RUNGS), 0.0), 0) <= budget
        low = tl.where(fits, low, middle)
        high = tl.where(fits, middle, high)
    choice = tl.argmin(need + tl.exp2(high) * price, 1)
    for _ in range(FILLS):
        paid = at_rung(price, choice, RUNGS)
        rest = budget - tl.sum(tl.where(counted, paid, 0.0), 0)
        gain = at_rung(need, choice, RUNGS)[:, None] - need
        more = price - paid[:, None]
        worth = (gain > 0) & (more > 0) & (more <= rest)
        rate = tl.where(worth, gain / tl.where(more > 0, more, 1.0), 0.0)
        best_of_head = tl.max(rate, 1)
        best = tl.max(best_of_head, 0)
        # The first of the heads that gain most.
        mover = tl.min(tl.where(best_of_head == best, head, HEADS), 0)
        choice = tl.where((head == mover) & (best_of_head > 0), tl.argmax(rate, 1), choice)

    first = tl.where(uniform_kind == 1, HALF + UNIFORM, UNIFORM)
    spent = tl.sum(tl.where(counted, at_rung(price, choice, RUNGS), 0.0), 0)
    total = tl.sum(at_rung(need, choice, RUNGS), 0)
    before = tl.sum(at_rung(need, first, RUNGS), 0)
    at_first = tl.sum(tl.where(counted, at_rung(price, first, RUNGS), 0.0), 0)
    most = budget * SLACK
    better = tl.where(spent <= most, tl.where(total < before, 1, tl.where(at_first > most, 1, 0)), 0)
    takes = tl.where(counted, better, 0) == 1
    width = tl.load(ladder + choice, mask=there, other=0)
    tl.store(plan + 2 * at, tl.where(takes, choice // HALF, uniform_kind), mask=there)
    tl.store(plan + 2 * at + 1, tl.where(takes, width, uniform_width), mask=there)
