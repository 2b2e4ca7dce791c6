"""The repair on CUDA and ROCm: the affine map of each head (kernels/repair.py), then the sampled rows.

    repaired = x + mean y + (x - mean x) W      video rows of heads whose fit is not 0; all other rows are copied
    repaired[sampled] = exact                   where exact is not NaN

x [B, H, N, D] in bfloat16, float16 or float32; fit float32 [B, H, D + 2, D] = (W, mean x, mean y); exact float32
[B, H, R, D]. Products are of float32 and never of TF32. A program takes some rows and some output channels, and goes
over the input channels in parts, so the result is another tensor than x.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from svg_compile.kernels.sampling import sampled_video_token
from svg_compile.kernels.storage import empty_output
from svg_compile.kernels.triton.launch import cdiv, launcher
from svg_compile.kernels.triton.tiles import load_rows

_ROWS, _INNER, _OUTER = 64, 32, 64


@triton.jit
def repair_fwd_kernel(
    source, out, fit, mapped,
    stride_sb, stride_sh, stride_sn, stride_sd, stride_ob, stride_oh, stride_on, stride_od,
    heads, tokens, video_start, video_end, row_tiles,
    VALUE_DIM: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, OUTER: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """BLOCK_M tokens by OUTER channels of one head; COLUMNS is how many such groups of channels there are.

    mapped int32 [B * H]: whether a head is repaired.
    """
    part = tl.program_id(0)
    column = part % COLUMNS
    row_tile = part // COLUMNS % row_tiles
    batch_head = (part // COLUMNS // row_tiles).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    source += batch * stride_sb + head * stride_sh
    out += batch * stride_ob + head * stride_oh
    fit += batch_head * ((VALUE_DIM + 2) * VALUE_DIM)
    token = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token_ok = token < tokens
    rows = token.to(tl.int64)
    channel = column * OUTER + tl.arange(0, OUTER)
    channel_ok = channel < VALUE_DIM
    cell_ok = token_ok[:, None] & channel_ok[None, :]
    channels = channel.to(tl.int64)
    x = tl.load(
        source + (rows * stride_sn)[:, None] + (channels * stride_sd)[None, :], mask=cell_ok, other=0.0
    ).to(tl.float32)  # fmt: skip
    if tl.load(mapped + batch_head) != 0:
        mean_y = tl.load(fit + (VALUE_DIM + 1) * VALUE_DIM + channel, mask=channel_ok, other=0.0)
        change = tl.zeros([BLOCK_M, OUTER], tl.float32)
        for first in tl.static_range(0, VALUE_DIM, INNER):
            near = load_rows(source, token, token_ok, stride_sn, stride_sd, first, INNER, VALUE_DIM, True)
            inner = first + tl.arange(0, INNER)
            inner_ok = inner < VALUE_DIM
            mean_x = tl.load(fit + VALUE_DIM * VALUE_DIM + inner, mask=inner_ok, other=0.0)
            matrix = tl.load(
                fit + inner[:, None] * VALUE_DIM + channel[None, :],
                mask=inner_ok[:, None] & channel_ok[None, :], other=0.0,
            )  # fmt: skip
            change = tl.dot(near.to(tl.float32) - mean_x[None, :], matrix, change, input_precision="ieee")
        moved = x + (change + mean_y[None, :])
        if out.dtype.element_ty == tl.float16:
            # A sum of finite numbers stays finite: nothing else of these dtypes can overflow.
            moved = tl.where(moved != moved, moved, tl.minimum(tl.maximum(moved, -65504.0), 65504.0))
        is_video = (token >= video_start) & (token < video_end)
        x = tl.where(is_video[:, None], moved, x)
    target = out + (rows * stride_on)[:, None] + (channels * stride_od)[None, :]
    tl.store(target, x.to(out.dtype.element_ty), mask=cell_ok)


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


def repaired(
    source: Tensor,
    exact: Tensor,
    fit: Tensor,
    frames: int,
    height: int,
    width: int,
    text_len: int,
    text_first: bool,
) -> Tensor:
    """`source` [B, H, N, D] repaired (see the module), in other storage; sizes may be SymInts."""
    batch, heads, tokens = source.shape[:3]
    channels = int(source.shape[3])
    out = empty_output(source, source)
    video, video_start = frames * height * width, text_len if text_first else 0
    mapped = (fit != 0).flatten(2).any(-1).flatten().to(torch.int32)
    row_tiles, columns = cdiv(tokens, _ROWS), cdiv(channels, _OUTER)
    launcher(repair_fwd_kernel)[(batch * heads * row_tiles * columns,)](
        source, out, fit.contiguous(), mapped, *source.stride(), *out.stride(),
        heads, tokens, video_start, video_start + video, row_tiles,
        VALUE_DIM=channels, COLUMNS=columns, INNER=_INNER, OUTER=_OUTER, BLOCK_M=_ROWS,
    )  # fmt: skip
    count = exact.shape[2]
    sampled = sampled_video_token(torch.arange(count, device=source.device), count, video)
    row_tiles = cdiv(count, 16)
    launcher(exact_rows_fwd_kernel)[(batch * heads * row_tiles,)](
        out, exact.contiguous(), sampled, *out.stride(), heads, count, video_start, row_tiles,
        VALUE_DIM=channels, WIDTH=triton.next_power_of_2(channels), BLOCK_M=16,
    )  # fmt: skip
    return out
