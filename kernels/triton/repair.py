"""The repair on CUDA and ROCm: the affine map of each head (kernels/repair.py), then the sampled rows.

    x += mean y + (x - mean x) W      video rows of heads whose fit is not 0
    x[sampled] = exact                where exact is not NaN

x [B, H, N, D] in bfloat16, float16 or float32; fit float32 [B, H, D + 2, D] = (W, mean x, mean y); exact float32
[B, H, R, D]. Products are in float32, never TF32. No two programs share a row, and a program reads all its rows before
it writes one.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from svg_compile.kernels.sampling import sampled_video_token
from svg_compile.kernels.triton.configs import TileConfig
from svg_compile.kernels.triton.launch import cdiv, launcher, split_channels
from svg_compile.kernels.triton.tiles import load_rows, store_rows


def repair_tile(channels: int) -> TileConfig:
    """Rows, inner channels and warps of a program, such that its products fit into registers without spills."""
    if channels <= 64:
        return TileConfig(32, 32, 4, 3)
    return TileConfig(32, 32, 8, 3) if channels <= 128 else TileConfig(32, 16, 8, 3)


@triton.jit
def moved_rows(
    base, change, fit, token, token_ok, stride_n, stride_d,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, VALUE_DIM: tl.constexpr,
):  # fmt: skip
    """Add `change` and mean y to channels FIRST, FIRST + 1, ... of the video rows."""
    channel = FIRST + tl.arange(0, WIDTH)
    mean_y = tl.load(fit + (VALUE_DIM + 1) * VALUE_DIM + channel, mask=channel < VALUE_DIM, other=0.0)
    x = load_rows(base, token, token_ok, stride_n, stride_d, FIRST, WIDTH, VALUE_DIM, True).to(tl.float32)
    moved = x + (change + mean_y[None, :])
    if base.dtype.element_ty == tl.float16:
        # A sum of finite numbers must stay finite; of the supported dtypes only float16 can overflow.
        moved = tl.where(moved != moved, moved, tl.minimum(tl.maximum(moved, -65504.0), 65504.0))
    store_rows(base, moved, token, token_ok, stride_n, stride_d, FIRST, WIDTH, VALUE_DIM)


@triton.jit
def change_of(near, fit, inner, FIRST: tl.constexpr, WIDTH: tl.constexpr, VALUE_DIM: tl.constexpr, change):
    """Add to `change` the product of `near`, the centred channels `inner` of x, with W's columns from FIRST on."""
    channel = FIRST + tl.arange(0, WIDTH)
    there = (inner < VALUE_DIM)[:, None] & (channel < VALUE_DIM)[None, :]
    matrix = tl.load(fit + inner[:, None] * VALUE_DIM + channel[None, :], mask=there, other=0.0)
    return tl.dot(near, matrix, change, input_precision="ieee")


@triton.jit
def repair_fwd_kernel(
    out, fit, mapped, stride_b, stride_h, stride_n, stride_d, heads, video, video_start, row_tiles,
    VALUE_DIM: tl.constexpr, VALUE_LOW: tl.constexpr, VALUE_HIGH: tl.constexpr,
    INNER: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Repair BLOCK_M video rows of one head in place; mapped int32 [B * H], not 0 for heads to repair."""
    batch_head = (tl.program_id(0) // row_tiles).to(tl.int64)
    if tl.load(mapped + batch_head) == 0:
        return
    out += batch_head // heads * stride_b + batch_head % heads * stride_h
    fit += batch_head * ((VALUE_DIM + 2) * VALUE_DIM)
    place = tl.program_id(0) % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    token, token_ok = video_start + place, place < video
    low = tl.zeros([BLOCK_M, VALUE_LOW], tl.float32)
    high = low
    if VALUE_HIGH > 0:
        high = tl.zeros([BLOCK_M, VALUE_HIGH], tl.float32)
    for first in tl.static_range(0, VALUE_DIM, INNER):
        inner = first + tl.arange(0, INNER)
        mean_x = tl.load(fit + VALUE_DIM * VALUE_DIM + inner, mask=inner < VALUE_DIM, other=0.0)
        near = load_rows(out, token, token_ok, stride_n, stride_d, first, INNER, VALUE_DIM, True)
        near = near.to(tl.float32) - mean_x[None, :]
        low = change_of(near, fit, inner, 0, VALUE_LOW, VALUE_DIM, low)
        if VALUE_HIGH > 0:
            high = change_of(near, fit, inner, VALUE_LOW, VALUE_HIGH, VALUE_DIM, high)
    # No warp may write a row before every other warp has read it.
    tl.debug_barrier()
    moved_rows(out, low, fit, token, token_ok, stride_n, stride_d, 0, VALUE_LOW, VALUE_DIM)
    if VALUE_HIGH > 0:
        moved_rows(out, high, fit, token, token_ok, stride_n, stride_d, VALUE_LOW, VALUE_HIGH, VALUE_DIM)


@triton.jit
def exact_rows_fwd_kernel(
    out, exact, sampled, stride_ob, stride_oh, stride_on, stride_od, heads, count, video_start, row_tiles,
    VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write BLOCK_M of the sampled rows of one head; sampled int64 [R], their video tokens."""
    batch_head = (tl.program_id(0) // row_tiles).to(tl.int64)
    row = tl.program_id(0) % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, WIDTH)
    there = (row < count)[:, None] & (channel < VALUE_DIM)[None, :]
    exact += batch_head * count * VALUE_DIM
    value = tl.load(exact + row[:, None] * VALUE_DIM + channel[None, :], mask=there, other=float("nan"))
    token = video_start + tl.load(sampled + row, mask=row < count, other=0)
    out += batch_head // heads * stride_ob + batch_head % heads * stride_oh
    target = out + (token * stride_on)[:, None] + (channel.to(tl.int64) * stride_od)[None, :]
    tl.store(target, value.to(out.dtype.element_ty), mask=there & (value == value))


def repair_(
    out: Tensor,
    exact: Tensor,
    fit: Tensor,
    grid: Sequence[int],
) -> None:
    """Repair `out` [B, H, N, D], in any strides, in place (see the module); sizes may be SymInts."""
    batch, heads = out.shape[:2]
    channels, count = int(out.shape[3]), exact.shape[2]
    frames, height, width, text_len, text_first, _ = grid
    video, video_start = frames * height * width, text_len if text_first else 0
    mapped = (fit != 0).flatten(2).any(-1).flatten().to(torch.int32)
    parts = split_channels(channels, channels)
    tile = repair_tile(channels)
    row_tiles = cdiv(video, tile.block_m)
    launcher(repair_fwd_kernel)[(batch * heads * row_tiles,)](
        out, fit.contiguous(), mapped, *out.stride(), heads, video, video_start, row_tiles,
        VALUE_DIM=channels, VALUE_LOW=parts["VALUE_LOW"], VALUE_HIGH=parts["VALUE_HIGH"],
        INNER=tile.block_n, BLOCK_M=tile.block_m, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    sampled = sampled_video_token(torch.arange(count, device=out.device), count, video)
    row_tiles = cdiv(count, 16)
    launcher(exact_rows_fwd_kernel)[(batch * heads * row_tiles,)](
        out, exact.contiguous(), sampled, *out.stride(), heads, count, video_start, row_tiles,
        VALUE_DIM=channels, WIDTH=triton.next_power_of_2(channels), BLOCK_M=16,
    )  # fmt: skip
