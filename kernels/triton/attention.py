"""`svg::attention` on CUDA and ROCm: sparse attention with the layout change inside the kernel's addressing.

    out[q] = sum_k exp(scale * q.k) v[k] / sum_k exp(scale * q.k)    over the keys k that q attends by svg_compile.mask

q, k, v [B, H, N, D] of one dtype (bfloat16, float16, float32), head dims 16 to 256, any strides, not the same; plan
int32 [B, H, 2] = (kind, half-width in blocks); key_mask bool [B, N] or None; out [B, H, N, Dv] over [B, N, H, Dv].

One launch serves all heads. A program processes BLOCK_M queries of one head: text, frame 0, or consecutive ranks of the
body. Their keys are in at most three runs,

    X  [text][frame 0], or frame 0 alone; every token for text queries and dense heads
    Y  the text, where it comes after the video
    band  ranks [low, high) of the body; every query of the tile attends [full_low, full_high)

Whole tiles of X, Y and the full band need no mask. The remaining keys (the runs' ends, and the ranks that only some
queries attend) form one list, usually a single tile, which the masked loop processes.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional

import triton
import triton.language as tl
from torch import Tensor

from svg_compile.kernels.storage import empty_output
from svg_compile.kernels.triton.configs import TileConfig, attention_tiles
from svg_compile.kernels.triton.launch import (
    autotunes,
    cdiv,
    checked_head_dims,
    exponent_unit,
    launch,
    launcher,
    split_channels,
)
from svg_compile.kernels.triton.prepare import (
    MASK_BLOCK,
    ORDER_BLOCK,
    clean_end,
    head_order_fwd_kernel,
    hidden_range_fwd_kernel,
)
from svg_compile.kernels.triton.runs import band_ranks, clamped_width, open_keys, query_ranks, query_run
from svg_compile.kernels.triton.tiles import (
    attends,
    band_block,
    band_rank,
    body_offset,
    key_tile,
    load_rows,
    store_rows,
)


@triton.jit
def query_rows(begin, start, length, frames, area, is_body, temporal, BLOCK_M: tl.constexpr):
    """(index, token, ok) of a tile's queries; body queries are in the head's order. `start`: token of index 0."""
    index = begin + tl.arange(0, BLOCK_M)
    token = start + tl.where(is_body, body_offset(index, frames, area, temporal), index)
    return index, token, index < length


@triton.jit
def sparse_attention_fwd_kernel(
    query, key, value, out, plan, order, key_mask, hidden, stride_qb, stride_qh, stride_qn, stride_qd,
    stride_kb, stride_kh, stride_kn, stride_kd, stride_vb, stride_vh, stride_vn, stride_vd, stride_ob,
    stride_oh, stride_on, stride_od, stride_ph, stride_pi, stride_mb, stride_mn, batch_heads, heads, frames,
    area, text_len, unit,
    SIGN: tl.constexpr, TEXT_FIRST: tl.constexpr, BAND: tl.constexpr, HAS_KEY_MASK: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    VALUE_LOW: tl.constexpr, VALUE_HIGH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
):  # fmt: skip
    # Up to torch 2.14 Inductor passes Python floats as float64, which would make the softmax float64.
    unit = tl.cast(unit, tl.float32)
    body = (frames - 1) * area
    video = frames * area
    video_start = text_len if TEXT_FIRST else 0
    text_start = 0 if TEXT_FIRST else video

    # Text tiles first (they attend every key), then the heads, longest first; tiles of one head are adjacent.
    text_tiles = tl.cdiv(text_len, BLOCK_M)
    video_tiles = tl.cdiv(area, BLOCK_M) + tl.cdiv(body, BLOCK_M)
    program = tl.program_id(0)
    is_text = program < text_tiles * batch_heads
    tiles = tl.where(is_text, text_tiles, video_tiles)
    program -= tl.where(is_text, 0, text_tiles * batch_heads)
    tile = program % tiles
    batch_head = tl.load(order + program // tiles)
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)

    kind = tl.load(plan + batch_head.to(tl.int64) * stride_ph)
    half_width = tl.load(plan + batch_head.to(tl.int64) * stride_ph + stride_pi)
    half_width = clamped_width(half_width, area, body, BAND)
    temporal = kind == 1
    sees_all = is_text | ((kind != 0) & (kind != 1))

    # The queries: text, frame 0, or body in the head's order, as tokens and as ranks.
    is_body, begin, length, query_start = query_run(
        tile, is_text, area, body, text_len, text_start, video_start, BLOCK_M
    )
    index, query_token, query_ok = query_rows(begin, query_start, length, frames, area, is_body, temporal, BLOCK_M)
    turn = temporal.to(tl.int32)
    first_rank, last_rank = query_ranks(begin, length, is_body, turn, frames, area, BLOCK_M)

    # The keys: X = [0, x_end), Y = [y_begin, y_end), and the band's ranks. With a key mask text and video are separate.
    x_end, y_begin, y_end = open_keys(sees_all, area, video, text_len, TEXT_FIRST, HAS_KEY_MASK)
    low, high, full_low, full_high = band_ranks(first_rank, last_rank, sees_all, half_width, area, body, BAND)
    x_clean = x_end
    y_clean = y_end
    band_clean = full_high
    if HAS_KEY_MASK:
        # Only keys before the hidden ones form whole tiles; if the body has hidden keys, its band is masked entirely.
        hidden_first = tl.load(hidden + 2 * batch)
        hidden_end = tl.load(hidden + 2 * batch + 1)
        x_clean = clean_end(0, x_end, hidden_first, hidden_end)
        y_clean = clean_end(y_begin, y_end, hidden_first, hidden_end)
        in_body = (hidden_first < video_start + video) & (hidden_end > video_start + area)
        band_clean = tl.where(in_body, full_low, full_high)
    x_tiles = x_clean // BLOCK_N
    y_tiles = (y_clean - y_begin) // BLOCK_N
    band_tiles = (band_clean - full_low) // BLOCK_N

    query += batch * stride_qb + head * stride_qh
    key += batch * stride_kb + head * stride_kh
    value += batch * stride_vb + head * stride_vh
    out += batch * stride_ob + head * stride_oh
    key_mask += batch * stride_mb
    query_low = load_rows(query, query_token, query_ok, stride_qn, stride_qd, 0, LOW, HEAD_DIM, True)
    query_high = query_low
    if HIGH > 0:
        query_high = load_rows(query, query_token, query_ok, stride_qn, stride_qd, LOW, HIGH, HEAD_DIM, True)
    if SIGN != 1:
        query_low = (query_low * SIGN).to(query_low.dtype)
        query_high = (query_high * SIGN).to(query_low.dtype)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    out_low = tl.zeros([BLOCK_M, VALUE_LOW], tl.float32)
    out_high = total
    if VALUE_HIGH > 0:
        out_high = tl.zeros([BLOCK_M, VALUE_HIGH], tl.float32)
    step = tl.arange(0, BLOCK_N)
    unchecked = step >= 0

    # Whole tiles of consecutive tokens: X, Y and a spatial head's band.
    for number in range(0, x_tiles + y_tiles + tl.where(temporal, 0, band_tiles)):
        start = tl.where(number < x_tiles, number * BLOCK_N, y_begin + (number - x_tiles) * BLOCK_N)
        in_band = number - x_tiles - y_tiles
        start = tl.where(in_band >= 0, video_start + area + full_low + in_band * BLOCK_N, start).to(tl.int64)
        out_low, out_high, peak, total = key_tile(
            query_low, query_high, out_low, out_high, peak, total,
            key + start * stride_kn, value + start * stride_vn, step, unchecked, unchecked, unit,
            stride_kn, stride_kd, stride_vn, stride_vd,
            HEAD_DIM, VALUE_DIM, LOW, HIGH, VALUE_LOW, VALUE_HIGH, False,
        )  # fmt: skip

    # Whole tiles of a temporal head's band: place by place, each through all frames.
    span = tl.maximum(frames - 1, 1)
    # x // span = (2 * x * inverse) >> 32 for x < span + BLOCK_N: exact up to 46,000 frames, which the launcher checks.
    inverse = ((2147483648 + span.to(tl.int64) - 1) // span).to(tl.uint32)
    for number in range(0, tl.where(temporal, band_tiles, 0)):
        first = full_low + number * BLOCK_N
        place = first // span
        turn_in = first - place * span + step
        turns = tl.umulhi((2 * turn_in).to(tl.uint32), inverse).to(tl.int32)
        start = (video_start + area + place).to(tl.int64)
        token = (turn_in - turns * span) * area + turns
        out_low, out_high, peak, total = key_tile(
            query_low, query_high, out_low, out_high, peak, total,
            key + start * stride_kn, value + start * stride_vn, token, unchecked, unchecked, unit,
            stride_kn, stride_kd, stride_vn, stride_vd,
            HEAD_DIM, VALUE_DIM, LOW, HIGH, VALUE_LOW, VALUE_HIGH, False,
        )  # fmt: skip

    # The remaining keys: the ends of X and Y, the band's ragged ranks, and those that only some queries attend. The
    # queries' token numbers are recomputed, from `begin` plus a zero that the compiler cannot fold: kept alive through
    # the loops above, they would take registers (and spill at 128 x 128 tiles).
    begin += tl.load(order + batch_heads, volatile=True)
    index, query_token, query_ok = query_rows(begin, query_start, length, frames, area, is_body, temporal, BLOCK_M)
    rank = tl.where(is_body, index, band_rank(0, index, frames, area, turn))
    query_block = band_block(rank, area, BAND)
    full_high = full_low + band_tiles * BLOCK_N
    x_rest = x_end - x_tiles * BLOCK_N
    open_rest = x_rest + (y_end - y_begin) - y_tiles * BLOCK_N
    rest = open_rest + (full_low - low) + (high - full_high)
    for first in tl.range(0, rest, BLOCK_EDGE, num_stages=1):
        place = first + tl.arange(0, BLOCK_EDGE)
        is_open = place < open_rest
        open_token = tl.where(place < x_rest, x_tiles * BLOCK_N, y_begin + y_tiles * BLOCK_N - x_rest) + place
        key_rank = low + tl.maximum(place - open_rest, 0)
        key_rank += tl.where(key_rank >= full_low, full_high - full_low, 0)
        token = tl.where(is_open, open_token, video_start + area + body_offset(key_rank, frames, area, temporal))
        key_ok = place < rest
        if HAS_KEY_MASK:
            key_ok &= tl.load(key_mask + token.to(tl.int64) * stride_mn, mask=key_ok, other=0) != 0
        key_block = band_block(key_rank, area, BAND)
        key_frame = tl.where(is_open, 0, 1)
        shown = attends(
            sees_all, is_open[None, :], key_frame[None, :], query_block[:, None], key_block[None, :], half_width
        )
        out_low, out_high, peak, total = key_tile(
            query_low, query_high, out_low, out_high, peak, total,
            key, value, token, key_ok, shown & key_ok[None, :], unit,
            stride_kn, stride_kd, stride_vn, stride_vd,
            HEAD_DIM, VALUE_DIM, LOW, HIGH, VALUE_LOW, VALUE_HIGH, True,
        )  # fmt: skip

    # A row without a visible key has total 0: its output is 0.
    share = 1.0 / tl.where(total == 0.0, 1.0, total)
    store_rows(out, out_low * share[:, None], query_token, query_ok, stride_on, stride_od, 0, VALUE_LOW, VALUE_DIM)
    if VALUE_HIGH > 0:
        result = out_high * share[:, None]
        store_rows(out, result, query_token, query_ok, stride_on, stride_od, VALUE_LOW, VALUE_HIGH, VALUE_DIM)


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor,
    key_mask: Optional[Tensor],
    grid: Sequence[int],
    scale: Optional[float],
    tiles: Sequence[TileConfig] = (),
) -> Tensor:
    """Sparse attention by the plan (see the module): q, k, v [B, H, N, D] -> [B, H, N, Dv]; sizes may be SymInts.

    tiles: the tile to launch, or several to autotune; by default those of the table.
    """
    frames, height, width, text_len, text_first, block = grid
    batch, heads = query.shape[0], query.shape[1]
    head_dim, value_dim = checked_head_dims(query, key, value, frames)
    tiles = tiles or attention_tiles(query.device, query.dtype, max(head_dim, value_dim), autotunes(query))
    out = empty_output(query, value)
    flat_plan = plan.reshape(batch * heads, 2)
    order = plan.new_empty(batch * heads + 1)
    sign, unit = exponent_unit(head_dim**-0.5 if scale is None else scale)
    area = height * width
    launcher(head_order_fwd_kernel)[(cdiv(batch * heads, ORDER_BLOCK),)](
        flat_plan, order, flat_plan.stride(0), flat_plan.stride(1), batch * heads, BLOCK=ORDER_BLOCK
    )
    hidden = order
    if key_mask is not None:
        hidden = plan.new_empty(batch, 2)
        launcher(hidden_range_fwd_kernel)[(batch,)](
            key_mask, hidden, *key_mask.stride(), query.shape[2], BLOCK=MASK_BLOCK
        )

    def programs(meta: Mapping[str, int]) -> tuple[int]:
        rows = meta["BLOCK_M"]
        return ((cdiv(text_len, rows) + cdiv(area, rows) + cdiv((frames - 1) * area, rows)) * batch * heads,)

    launch(
        sparse_attention_fwd_kernel, programs, tiles,
        query, key, value, out, flat_plan, order, plan if key_mask is None else key_mask, hidden,
        *query.stride(), *key.stride(), *value.stride(), *out.stride(), *flat_plan.stride(),
        *((0, 0) if key_mask is None else key_mask.stride()),
        batch * heads, heads, frames, area, text_len, unit,
        SIGN=sign, TEXT_FIRST=bool(text_first), BAND=block, HAS_KEY_MASK=key_mask is not None,
        HEAD_DIM=head_dim, VALUE_DIM=value_dim, **split_channels(head_dim, value_dim),
    )  # fmt: skip
    return out
