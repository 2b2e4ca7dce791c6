"""The cost model of machine code: it finds the loops of the kernels, and counts in them what their tiles need."""

from __future__ import annotations

import pytest
import torch

from cost_model import CLOCK, Loop, count, disassembled, loops
from svg_compile.kernels.triton.configs import ATTENTION, tiles_for
from triton_binaries import attention_binary


def test_bounds_follow_from_the_counts() -> None:
    # 128 x 128 x 128 twice in 8 warps: 2048 clocks of the tensor cores; 66 exponentials, 8 clocks each in 2 warps.
    loop = Loop(products=2 * 128**3 // 8, exponentials=66, instructions=300, bytes=8192)
    assert loop.cycles(8) == (2048 + 66 * 8 * 2, 2048)
    assert loop.tflops(8)[1] == pytest.approx(790)
    assert Loop(loop.products, 66, 800, 0).cycles(8) == (2048 + 1600, 2048)
    assert Loop(loop.products, 66, 1200, 0).cycles(8)[1] == 2400
    assert pytest.approx(790e12) == CLOCK * 132 * 4096


def test_loops_are_the_smallest_that_multiply() -> None:
    inner = (
        "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24",
        "MUFU.EX2 R1, R2",
        "@P0 LDGSTS.E.BYPASS.128 [R1], desc[R2]",
    )
    code = (
        *(".L_x_0", "IADD R1, R1, 1", "@P0 BRA `(.L_x_0)"),
        *(".L_x_1", "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24"),
        *(".L_x_2", *inner, "@P1 BRA `(.L_x_2)"),
        *(".L_x_3", "HMMA.16816.F32.BF16 R4, R8, R2, R4", "LDG.E.64 R2, desc[R4]", "@!P1 BRA `(.L_x_3)"),
        "@P2 BRA `(.L_x_1)",
    )
    first, second = loops(code)
    assert first == Loop(products=64 * 128 * 16 // 4, exponentials=1, instructions=4, bytes=512)
    assert second == Loop(products=2048, exponentials=0, instructions=3, bytes=256)
    assert count(inner).instructions == 3


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_attention_kernels_loops_do_the_work_of_their_tiles(head_dim: int) -> None:
    (tile,) = tiles_for(ATTENTION, {}, "sm_90", torch.bfloat16, head_dim)
    whole, temporal, masked = loops(disassembled(attention_binary("sm_90", torch.bfloat16, head_dim, tile).cubin))
    warps, pairs = tile.num_warps, tile.block_m * tile.block_n
    for loop in (whole, temporal):
        assert loop.products * warps == 2 * pairs * head_dim
        assert loop.bytes * warps == 2 * tile.block_n * head_dim * 2
        # One for each pair, and one for each row's rescaling.
        assert pairs // (32 * warps) <= loop.exponentials <= pairs // (32 * warps) + 4
    assert masked.products * warps == 2 * tile.block_m * tile.block_edge * head_dim
    assert whole.instructions < temporal.instructions < 1.6 * whole.instructions
    # What stands in docs/benchmarks/log.md.
    apart, together = whole.tflops(warps)
    assert {64: 350, 128: 480}[head_dim] < apart < together <= 790 * (1 + 1e-9)
