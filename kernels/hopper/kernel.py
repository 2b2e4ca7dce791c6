"""The kernel of kernels/hopper/attention.py, in Gluon, for sm_90: the softmax overlaps the tensor cores' work.

The same function as kernels/triton/attention.py, for bfloat16 and float16, head dims 64 and 128, no key mask. It does
by hand what a compiler does not: while the tensor cores multiply weights and values of one tile, the same warps compute
the softmax of the next.

A program processes 128 queries of one head, in three partitions of four warps:

    copying     (24 registers) issues copies of tiles of 128 keys and values into two rings of STAGES slots
    computing   (240 registers), twice: 64 queries each; scores, softmax, output

kernels/hopper/schedule.py defines the tiles and their list. Every tile is one bulk copy of the copy engine (TMA), in a
temporal head's band too, whose keys are a rectangle of frames x places. So no thread computes an address of a key, and
no key is gathered.

Barriers. Each slot of the two rings has two, `ready` (one arrival: the copy's, when its bytes have arrived) and `done`
(two arrivals: one of each computing partition). Tile n is in slot n % STAGES, in that slot's round n // STAGES. A wait
passes the parity of the round; on a new barrier a wait for parity 1 returns at once, so empty slots need no arrival.

    copying, tile n       wait keys.done (round - 1), copy K(n) -> keys.ready;  the same for V(n)
    computing, tile 0     wait K(0);  S = Q K(0)^T;  K(0) done;  softmax -> P(0);  wait K(1)
    computing, tile n     [K(n) is ready]  start S = Q K(n)^T;  wait V(n-1);  start O += P(n-1) V(n-1)
                          S is finished;  K(n) done;  softmax -> P(n);  wait K(n+1)
                          O is finished;  V(n-1) done;  rescale O to the new row maxima
    computing, the end    wait V(last);  O += P(last) V(last)

The wait for K(n+1) is between the softmax and "O is finished" on purpose. The assembler hoists the latter as far as the
code has no branch, above the whole softmax, and the tensor cores would be idle meanwhile; it does not hoist it above a
loop, and a wait is one. tests/test_hopper_compile.py counts the exponentials on both sides in the machine code.

No deadlock, for STAGES >= 2: V(n-1) is released after K(n+1) is ready. K(n+1) is copied after V(n), and V(n) needs
V(n-STAGES) released, which has happened. All partitions compute the same number of tiles from the same integers.

The portable kernel replaces hidden values by zeros; this one reads whole tiles and gives hidden keys a weight of 0.
0 * NaN is NaN: a value that is not finite makes all queries of its tiles NaN, also those it is hidden from.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from svg_compile.kernels.hopper.schedule import key_position, query_tile, seen_ranks, tile_at, tile_list
from svg_compile.kernels.triton.runs import clamped_width, query_run
from svg_compile.kernels.triton.tiles import body_offset

# Renamed after Triton 3.6.
copy_box = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@gluon.jit
def fetch(flat, box, in_box, batch, head, start, frame, ready, rows):
    """Have the copy engine fill `rows` [BLOCK_N, D] with a tile; `ready` completes when all its bytes are there."""
    mbarrier.expect(ready, rows.shape[0] * rows.shape[1] * 2)
    copy_box(flat, [batch, head, start, 0], ready, rows.reshape(flat.block_shape), pred=in_box == 0)
    copy_box(box, [batch, head, frame, start, 0], ready, rows.reshape(box.block_shape), pred=in_box)


@gluon.jit
def copying_warps(
    key_flat, key_box, value_flat, value_box, keys, values, barriers, batch, head, total_tiles, tiles, temporal,
    body_start, BOX_FRAMES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Fill the rings, tile after tile, as fast as slots become free."""
    key_ready, key_done, value_ready, value_done = barriers
    BLOCK_N: gl.constexpr = keys.shape[1]
    for number in range(0, total_tiles):
        in_band, start, frame = tile_at(number, tiles, temporal, BOX_FRAMES, BLOCK_N)
        in_box = in_band & temporal
        start += gl.where(in_band & (temporal == 0), body_start, 0)
        slot = number % STAGES
        round_before = (number // STAGES & 1) ^ 1
        mbarrier.wait(key_done.index(slot), round_before)
        fetch(key_flat, key_box, in_box, batch, head, start, frame, key_ready.index(slot), keys.index(slot))
        mbarrier.wait(value_done.index(slot), round_before)
        fetch(value_flat, value_box, in_box, batch, head, start, frame, value_ready.index(slot), values.index(slot))


@gluon.jit
def await_tile(number, total_tiles, ready, STAGES: gl.constexpr):
    """Wait until the tile is in its slot; returns at once if no tile has this number."""
    mbarrier.wait(ready.index(number % STAGES), number // STAGES & 1, pred=number < total_tiles)


@gluon.jit
def start_scores(number, queries, keys, STAGES: gl.constexpr, LAYOUT: gl.constexpr):
    """Start Q K^T, float32 [ROWS, BLOCK_N], unscaled."""
    ROWS: gl.constexpr = queries.shape[0]
    BLOCK_N: gl.constexpr = keys.shape[1]
    score = gl.zeros([ROWS, BLOCK_N], gl.float32, LAYOUT)
    return hopper.warpgroup_mma(
        queries, keys.index(number % STAGES).permute((1, 0)), score, use_acc=False, is_async=True
    )  # fmt: skip


@gluon.jit
def hide_unseen(score, number, ranks, tiles, temporal, frames, BOX_FRAMES: gl.constexpr, LAYOUT: gl.constexpr):
    """Set the scores of keys hidden from a query to -inf; `ranks`: (first, end) of the band for each query."""
    BLOCK_N: gl.constexpr = score.shape[1]
    in_band, start, frame = tile_at(number, tiles, temporal, BOX_FRAMES, BLOCK_N)
    key = gl.arange(0, BLOCK_N, gl.SliceLayout(0, LAYOUT))
    position = key_position(key, start, frame, in_band & temporal, frames, BOX_FRAMES, BLOCK_N)[None, :]
    x_end = tiles[1]
    y_end = tiles[3]
    first = gl.where(in_band, ranks[0], 0)[:, None]
    end = gl.where(in_band, ranks[1], gl.where(start < x_end, x_end, y_end))[:, None]
    return gl.where((position >= first) & (position < end), score, float("-inf"))


@gluon.jit
def softmax_step(score, peak, total, unit, DTYPE: gl.constexpr, LAYOUT: gl.constexpr, CHECKED: gl.constexpr):
    """(weights, factor of earlier tiles, peak, total) as in kernels/triton/tiles.py. CHECKED: a row may have no key."""
    new_peak = gl.maximum(peak, gl.max(score, 1))
    shift = new_peak * unit
    if CHECKED:
        shift = gl.where(new_peak == float("-inf"), 0.0, shift)
    weight = gl.exp2(score * unit - shift[:, None])
    factor = gl.exp2(peak * unit - shift)
    total = total * factor + gl.sum(weight, 1)
    # The accumulator's register layout is that of a left operand: no data moves.
    return gl.convert_layout(weight.to(DTYPE), LAYOUT, assert_trivial=True), factor, new_peak, total


@gluon.jit
def key_step(
    number, queries, keys, values, barriers, weight, out, peak, total, ranks, tiles, temporal, frames, unit,
    total_tiles, CHECKED: gl.constexpr, BOX_FRAMES: gl.constexpr, STAGES: gl.constexpr, S_LAYOUT: gl.constexpr,
    O_LAYOUT: gl.constexpr,
):  # fmt: skip
    """Scores and softmax of tile `number`, while tile number - 1, of weights `weight`, is added to the output."""
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    key_ready, key_done, value_ready, value_done = barriers
    score = start_scores(number, queries, keys, STAGES, S_LAYOUT)
    await_tile(number - 1, total_tiles, value_ready, STAGES)
    out = hopper.warpgroup_mma(weight, values.index((number - 1) % STAGES), out, is_async=True)
    score = hopper.warpgroup_mma_wait(1, deps=[score])
    mbarrier.arrive(key_done.index(number % STAGES))
    if CHECKED:
        score = hide_unseen(score, number, ranks, tiles, temporal, frames, BOX_FRAMES, S_LAYOUT)
    new_weight, factor, peak, total = softmax_step(score, peak, total, unit, keys.dtype, P_LAYOUT, CHECKED)
    await_tile(number + 1, total_tiles, key_ready, STAGES)
    # The old weights are a dependency because the tensor cores read their registers until here.
    out, weight = hopper.warpgroup_mma_wait(0, deps=[out, weight])
    mbarrier.arrive(value_done.index((number - 1) % STAGES))
    out = out * gl.convert_layout(factor, gl.SliceLayout(1, O_LAYOUT), assert_trivial=True)[:, None]
    return new_weight, out, peak, total


@gluon.jit
def computing_warps(
    WHICH: gl.constexpr, query, query_strides, queries, tokens, out, out_strides, keys, values, barriers, run,
    total_tiles, tiles, band_end, half_width, temporal, frames, area, unit, SIGN: gl.constexpr, BAND: gl.constexpr,
    BOX_FRAMES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Attention of 64 of the program's queries: load, all tiles of keys, store."""
    ROWS: gl.constexpr = queries.shape[0]
    WIDTH: gl.constexpr = queries.shape[1]
    BLOCK_N: gl.constexpr = keys.shape[1]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    S_ROWS: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    O_ROWS: gl.constexpr = gl.SliceLayout(1, O_LAYOUT)
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    key_ready, key_done, value_ready, _ = barriers
    is_body, begin, length, start = run
    begin += WHICH * ROWS

    index = begin + gl.arange(0, ROWS, gl.SliceLayout(1, LOAD))
    token = start + body_offset(index, frames, area, is_body & temporal)
    channel = gl.arange(0, WIDTH, gl.SliceLayout(0, LOAD)).to(gl.int64)
    pointer = query + (token.to(gl.int64) * query_strides[0])[:, None] + (channel * query_strides[1])[None, :]
    rows = gl.load(pointer, mask=(index < length)[:, None], other=0.0)
    if SIGN != 1:
        rows = (rows * SIGN).to(rows.dtype)
    queries.store(rows)
    # Make the ordinary stores visible to the tensor cores.
    hopper.fence_async_shared()
    # The token numbers, needed again at the end, are kept in shared memory to save registers.
    tokens.store(gl.where(index < length, token, -1))

    index = begin + gl.arange(0, ROWS, S_ROWS)
    ranks = seen_ranks(index, is_body, temporal, half_width, frames, area, band_end, BAND)
    peak = gl.full([ROWS], float("-inf"), gl.float32, S_ROWS)
    total = gl.zeros([ROWS], gl.float32, S_ROWS)
    result = gl.zeros([ROWS, WIDTH], gl.float32, O_LAYOUT)
    await_tile(0, total_tiles, key_ready, STAGES)
    score = start_scores(0, queries, keys, STAGES, S_LAYOUT)
    score = hopper.warpgroup_mma_wait(0, deps=[score])
    mbarrier.arrive(key_done.index(0))
    # Tile 0 is always masked, even where it does not need to be.
    score = hide_unseen(score, 0, ranks, tiles, temporal, frames, BOX_FRAMES, S_LAYOUT)
    weight, _, peak, total = softmax_step(score, peak, total, unit, keys.dtype, P_LAYOUT, True)
    await_tile(1, total_tiles, key_ready, STAGES)
    masked = tiles[0]
    for number in range(1, masked):
        weight, result, peak, total = key_step(
            number, queries, keys, values, barriers, weight, result, peak, total, ranks, tiles, temporal, frames, unit,
            total_tiles, True, BOX_FRAMES, STAGES, S_LAYOUT, O_LAYOUT,
        )  # fmt: skip
    for number in range(gl.maximum(masked, 1), total_tiles):
        weight, result, peak, total = key_step(
            number, queries, keys, values, barriers, weight, result, peak, total, ranks, tiles, temporal, frames, unit,
            total_tiles, False, BOX_FRAMES, STAGES, S_LAYOUT, O_LAYOUT,
        )  # fmt: skip
    await_tile(total_tiles - 1, total_tiles, value_ready, STAGES)
    result = hopper.warpgroup_mma(weight, values.index((total_tiles - 1) % STAGES), result, is_async=True)
    result, weight = hopper.warpgroup_mma_wait(0, deps=[result, weight])

    # A row without a visible key has total 0: its output is 0.
    total = gl.convert_layout(total, O_ROWS, assert_trivial=True)
    result = result * (1.0 / gl.where(total == 0.0, 1.0, total))[:, None]
    token = tokens.load(O_ROWS).to(gl.int64)
    channel = gl.arange(0, WIDTH, gl.SliceLayout(0, O_LAYOUT)).to(gl.int64)
    pointer = out + (token * out_strides[0])[:, None] + (channel * out_strides[1])[None, :]
    gl.store(pointer, result.to(keys.dtype), mask=(token >= 0)[:, None])


@gluon.jit(do_not_specialize=["batch_heads", "heads", "frames", "area", "text_len"])
def hopper_attention_fwd_kernel(
    query, key_flat, key_box, value_flat, value_box, out, plan, order, stride_qb, stride_qh, stride_qn, stride_qd,
    stride_ob, stride_oh, stride_on, stride_od, stride_ph, stride_pi, batch_heads, heads, frames, area, text_len, unit,
    SIGN: gl.constexpr, TEXT_FIRST: gl.constexpr, BAND: gl.constexpr, HEAD_DIM: gl.constexpr, BOX_FRAMES: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    gl.static_assert(STAGES >= 2)
    body = (frames - 1) * area
    video_start = text_len if TEXT_FIRST else 0
    text_start = 0 if TEXT_FIRST else frames * area
    is_text, turn, tile = query_tile(gl.program_id(0), batch_heads, area, body, text_len, BLOCK_M)
    batch_head = gl.load(order + turn)
    batch = batch_head // heads
    head = batch_head % heads
    kind = gl.load(plan + batch_head.to(gl.int64) * stride_ph)
    half_width = gl.load(plan + batch_head.to(gl.int64) * stride_ph + stride_pi)
    half_width = clamped_width(half_width, area, body, BAND)
    temporal = kind == 1
    sees_all = is_text | ((kind != 0) & (kind != 1))
    run = query_run(tile, is_text, area, body, text_len, text_start, video_start, BLOCK_M)
    is_body, begin, length, _ = run
    total_tiles, band_end, tiles = tile_list(
        begin, length, is_body, sees_all, temporal, half_width, frames, area, text_len,
        TEXT_FIRST, BAND, BOX_FRAMES, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    query += batch.to(gl.int64) * stride_qb + head.to(gl.int64) * stride_qh
    out += batch.to(gl.int64) * stride_ob + head.to(gl.int64) * stride_oh

    DTYPE: gl.constexpr = query.dtype.element_ty
    ROWS: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    queries = gl.allocate_shared_memory(DTYPE, [2, BLOCK_M // 2, HEAD_DIM], ROWS)
    tokens = gl.allocate_shared_memory(gl.int32, [2, BLOCK_M // 2], PLAIN)
    keys = gl.allocate_shared_memory(DTYPE, [STAGES, BLOCK_N, HEAD_DIM], ROWS)
    values = gl.allocate_shared_memory(DTYPE, [STAGES, BLOCK_N, HEAD_DIM], ROWS)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    key_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    key_done = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    value_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    value_done = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for slot in gl.static_range(STAGES):
        mbarrier.init(key_ready.index(slot), count=1)
        mbarrier.init(value_ready.index(slot), count=1)
        mbarrier.init(key_done.index(slot), count=2)
        mbarrier.init(value_done.index(slot), count=2)
    hopper.fence_async_shared()
    barriers = (key_ready, key_done, value_ready, value_done)
    query_strides = (stride_qn, stride_qd)
    out_strides = (stride_on, stride_od)
    # Spelled out inline: in a named tuple the constants would become runtime values.
    gl.warp_specialize(
        [
            (copying_warps, (
                key_flat, key_box, value_flat, value_box, keys, values, barriers, batch, head, total_tiles, tiles,
                temporal, video_start + area, BOX_FRAMES, STAGES,
            )),
            (computing_warps, (
                0, query, query_strides, queries.index(0), tokens.index(0), out, out_strides, keys, values, barriers,
                run, total_tiles, tiles, band_end, half_width, temporal, frames, area, unit, SIGN, BAND, BOX_FRAMES,
                STAGES,
            )),
            (computing_warps, (
                1, query, query_strides, queries.index(1), tokens.index(1), out, out_strides, keys, values, barriers,
                run, total_tiles, tiles, band_end, half_width, temporal, frames, area, unit, SIGN, BAND, BOX_FRAMES,
                STAGES,
            )),
        ],
        [4, 4],
        [REGISTERS, REGISTERS],
    )  # fmt: skip
