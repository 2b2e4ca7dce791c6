"""The second half of `svg::profile`: merge the parts of the sampled rows' outputs, take the errors, decide the plan.

partial float32 [B * H, row tiles, SPLITS, 3, BLOCK_M, Dv]      unscaled outputs: dense, spatial, temporal
sums float32 [B * H, row tiles, SPLITS, 3, 2, BLOCK_M]          their maxima, in units of log2, and sums
-> errors float32 [B * H, 2], plan int32 [B * H, 2]

Where the previous plan's kinds are kept, no parts were written: the errors are NaN, and only the half-widths are new.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merged_rows(
    partial, sums, row, KIND: tl.constexpr,
    SPLITS: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The output float32 [ROWS, WIDTH] of one kind on some rows of a tile: its SPLITS parts, rescaled and summed."""
    channel = tl.arange(0, WIDTH)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, WIDTH], tl.float32)
    for split in range(SPLITS):
        part_peak = tl.load(sums + (split * 6 + 2 * KIND) * BLOCK_M + row)
        part_total = tl.load(sums + (split * 6 + 2 * KIND + 1) * BLOCK_M + row)
        offset = ((split * 3 + KIND) * BLOCK_M + row) * VALUE_DIM
        part = tl.load(partial + offset[:, None] + channel[None, :], mask=(channel < VALUE_DIM)[None, :], other=0.0)
        new_peak = tl.maximum(peak, part_peak)
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        factor = tl.exp2(peak - shift)
        part_factor = tl.exp2(part_peak - shift)
        total = total * factor + part_total * part_factor
        out = out * factor[:, None] + part * part_factor[:, None]
        peak = new_peak
    return out / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def profile_plan_fwd_kernel(
    partial, sums, widths, when, previous, plan, errors,
    stride_w, stride_ph, count, row_tiles,
    HAS_WHEN: tl.constexpr, HAS_PREVIOUS: tl.constexpr,
    SPLITS: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Merge one head's parts, take the errors (float32 [B * H, 2]) and decide (int32 [B * H, 2]).

    widths int32 [densities, 3], when int32 [2], previous int32 [B * H, 2].
    """
    batch_head = tl.program_id(0)
    if HAS_WHEN:
        widths += 3 * tl.load(when)
    if HAS_PREVIOUS:
        if tl.load(when + stride_w) == 0:
            kept = tl.load(previous + batch_head.to(tl.int64) * stride_ph)
            # Any other number means dense: the row of widths has three entries.
            kept = tl.where((kept == 0) | (kept == 1), kept, 2)
            tl.store(plan + 2 * batch_head, kept)
            tl.store(plan + 2 * batch_head + 1, tl.load(widths + kept))
            tl.store(errors + 2 * batch_head, float("nan"))
            tl.store(errors + 2 * batch_head + 1, float("nan"))
            return
    partial += batch_head.to(tl.int64) * row_tiles * (SPLITS * 3 * BLOCK_M * VALUE_DIM)
    sums += batch_head.to(tl.int64) * row_tiles * (SPLITS * 6 * BLOCK_M)
    spatial = tl.zeros([ROWS], tl.float32)
    temporal = tl.zeros([ROWS], tl.float32)
    for tile in range(row_tiles):
        for start in range(0, BLOCK_M, ROWS):
            row = start + tl.arange(0, ROWS)
            row_ok = tile * BLOCK_M + row < count
            dense = merged_rows(partial, sums, row, 0, SPLITS, VALUE_DIM, WIDTH, BLOCK_M, ROWS)
            off = merged_rows(partial, sums, row, 1, SPLITS, VALUE_DIM, WIDTH, BLOCK_M, ROWS) - dense
            spatial += tl.where(row_ok, tl.sum(off * off, 1), 0.0)
            off = merged_rows(partial, sums, row, 2, SPLITS, VALUE_DIM, WIDTH, BLOCK_M, ROWS) - dense
            temporal += tl.where(row_ok, tl.sum(off * off, 1), 0.0)
        partial += SPLITS * 3 * BLOCK_M * VALUE_DIM
        sums += SPLITS * 6 * BLOCK_M
    spatial_error = tl.sum(spatial, 0) / (count * VALUE_DIM)
    temporal_error = tl.sum(temporal, 0) / (count * VALUE_DIM)
    tl.store(errors + 2 * batch_head, spatial_error)
    tl.store(errors + 2 * batch_head + 1, temporal_error)
    # x - x is 0 only for finite x.
    spatial_ok = spatial_error - spatial_error == 0.0
    temporal_ok = temporal_error - temporal_error == 0.0
    wins = temporal_ok & ((spatial_ok == 0) | (temporal_error < spatial_error))
    kind = tl.where(wins, 1, tl.where(spatial_ok, 0, 2))
    tl.store(plan + 2 * batch_head, kind)
    tl.store(plan + 2 * batch_head + 1, tl.load(widths + kind))
