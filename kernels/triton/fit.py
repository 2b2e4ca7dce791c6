"""`svg::profile_and_fit` on CUDA and ROCm: the profile, its sampled rows, and the repair fitted on them.

The fit itself is kernels/repair.py in float64, a few small products per head. Only the inverse is a Triton kernel: the
libraries behind torch.linalg may synchronise with the GPU or cannot be captured by a CUDA graph.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from svg_compile.kernels.repair import inverts_rows, kept_fit, repair_of
from svg_compile.kernels.spread import Spread
from svg_compile.kernels.triton.decide import merged_rows
from svg_compile.kernels.triton.launch import launcher
from svg_compile.kernels.triton.profile import profile_parts


@triton.jit
def sampled_rows_fwd_kernel(
    partial, sums, rows, count, row_tiles,
    SPLITS: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """rows float32 [B * H, 3, R, Dv]: the dense, spatial and temporal outputs, from the profile's parts of one tile."""
    tile = tl.program_id(0) % row_tiles
    batch_head = (tl.program_id(0) // row_tiles).to(tl.int64)
    part = batch_head * row_tiles + tile
    partial += part * (SPLITS * 3 * BLOCK_M * VALUE_DIM)
    sums += part * (SPLITS * 6 * BLOCK_M)
    rows += batch_head * 3 * count * VALUE_DIM
    channel = tl.arange(0, WIDTH)
    for start in range(0, BLOCK_M, ROWS):
        row = start + tl.arange(0, ROWS)
        sampled = tile * BLOCK_M + row
        there = (sampled < count)[:, None] & (channel < VALUE_DIM)[None, :]
        for kind in tl.static_range(3):
            out = merged_rows(partial, sums, row, kind, SPLITS, VALUE_DIM, WIDTH, BLOCK_M, ROWS)
            tl.store(rows + ((kind * count + sampled) * VALUE_DIM)[:, None] + channel[None, :], out, mask=there)


@triton.jit
def inverse_fwd_kernel(matrices, inverse, size, BLOCK: tl.constexpr):
    """Inverses of positive definite float64 [n, size, size], one per program, by Gauss-Jordan steps in its registers.

    No pivoting: the pivots of a positive definite matrix are positive in any order.
    """
    index = tl.arange(0, BLOCK)
    row, column = index[:, None], index[None, :]
    there = (row < size) & (column < size)
    offset = tl.program_id(0).to(tl.int64) * size * size + row * size + column
    values = tl.load(matrices + offset, mask=there, other=0.0)
    for step in range(size):
        across = tl.sum(tl.where(row == step, values, 0.0), 0)
        down = tl.sum(tl.where(column == step, values, 0.0), 1)
        share = 1.0 / tl.sum(tl.where(index == step, across, 0.0), 0)
        swept = values - down[:, None] * (across * share)[None, :]
        swept = tl.where(row == step, (across * share)[None, :], swept)
        swept = tl.where(column == step, (-down * share)[:, None], swept)
        values = tl.where((row == step) & (column == step), share, swept)
    tl.store(inverse + offset, values, mask=there)


def inverse_warps(block: int) -> int:
    """Warps of a program that keeps a float64 matrix [block, block] in its registers."""
    return min(16, max(4, block // 8))


def inverses(matrices: Tensor, most: int) -> Tensor:
    """Inverses of positive definite matrices float64 [..., S, S]; S may be symbolic, `most` >= S is a constant."""
    inverse = torch.empty_like(matrices, memory_format=torch.contiguous_format)
    size = matrices.shape[-1]
    count = matrices.numel() // (size * size)
    block = max(16, triton.next_power_of_2(most))
    launcher(inverse_fwd_kernel)[(count,)](
        matrices.contiguous(), inverse, size, BLOCK=block, num_warps=inverse_warps(block)
    )
    return inverse


def profile_and_fit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Optional[Tensor],
    grid: Sequence[int],
    densities: Sequence[float],
    sampled_rows: int,
    adaptive: bool,
    scale: Optional[float],
    when: Optional[Tensor] = None,
    previous: Optional[Tensor] = None,
    previous_fit: Optional[Tensor] = None,
    share: Optional[Tensor] = None,
    spread: Optional[Spread] = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Plan, errors, exact rows, fits and missing mass, as `svg::profile_and_fit` returns them; sizes may be SymInts."""
    options = (densities, sampled_rows, adaptive, scale, when, previous)
    parts = profile_parts(query, key, value, key_mask, grid, *options, share, spread, plan_rows=True)
    batch, heads, channels = query.shape[0], query.shape[1], int(value.shape[3])
    rows = query.new_empty(batch * heads, 3, parts.rows, channels, dtype=torch.float32)
    launcher(sampled_rows_fwd_kernel)[(batch * heads * parts.row_tiles,)](
        parts.partial, parts.sums, rows, parts.rows, parts.row_tiles,
        SPLITS=parts.splits, VALUE_DIM=channels, WIDTH=triton.next_power_of_2(channels),
        BLOCK_M=parts.block_m, ROWS=16,
    )  # fmt: skip
    plan, errors = parts.plan, parts.errors
    by_rows, most = inverts_rows(sampled_rows, channels), min(sampled_rows, channels)
    outputs, kind = rows.view(batch, heads, 3, parts.rows, channels), plan[..., 0]
    # A dense head is compared with itself.
    column = torch.where((kind == 0) | (kind == 1), kind + 1, 0)[..., None, None, None]
    sparse = outputs.gather(2, column.expand(batch, heads, 1, parts.rows, channels).long()).squeeze(2)
    exact, fit, left = repair_of(
        outputs[:, :, 0], sparse, by_rows=by_rows, invert=lambda matrices: inverses(matrices, most)
    )
    if when is not None and previous is not None and previous_fit is not None:
        # Where kinds are kept nothing was profiled: the rows, and everything derived from them, are undefined.
        anew = when[1] != 0
        exact, left = (torch.where(anew, found, float("nan")) for found in (exact, left))
        fit = torch.where(anew, fit, kept_fit(previous_fit, previous, plan))
    return plan, torch.cat((errors, left[..., None]), dim=-1), exact, fit, parts.missing
