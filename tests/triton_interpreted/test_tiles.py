"""Every tile shape that a table holds, the defaults of all GPUs and what max_autotune may choose, gives the oracle's
results: the other tests run with the interpreter's own small tile."""

from __future__ import annotations

import pytest
import torch

from svg_compile.kernels import reference
from svg_compile.kernels.triton import attention as triton_attention
from svg_compile.kernels.triton import profile as triton_profile
from svg_compile.kernels.triton.configs import (
    ATTENTION,
    ATTENTION_CHOICES,
    PROFILE,
    PROFILE_CHOICES,
    Choices,
    Table,
    TileConfig,
)
from svg_compile.layout import VideoLayout
from tolerances import assert_matches_oracle

# Whole tiles of 128 keys in the text and in the bands, and ragged ends.
LAYOUT = VideoLayout(4, 8, 10, text_len=135, block=32)


def shapes(table: Table, choices: Choices) -> list[tuple[int, int]]:
    """(block_m, block_n) of every tile."""
    tiles = [tile for row in table.values() for tile in row.values()]
    tiles += [tile for more in choices.values() for several in more.values() for tile in several]
    return sorted({(tile.block_m, tile.block_n) for tile in tiles} - {(16, 16)})


def rand() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, LAYOUT.tokens, 16, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("shape", shapes(ATTENTION, ATTENTION_CHOICES), ids=str)
def test_attention(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_attention, "attention_tiles", lambda *case: (TileConfig(*shape, 1, 1),))
    tensors = rand()
    plan = torch.tensor([[[0, 4], [1, 4]]], dtype=torch.int32)
    out = triton_attention.sparse_attention(*tensors, plan, None, LAYOUT.grid, None)
    assert_matches_oracle(out, *tensors, plan, LAYOUT)


@pytest.mark.parametrize("shape", shapes(PROFILE, PROFILE_CHOICES), ids=str)
def test_profile(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_profile, "profile_tiles", lambda *case: (TileConfig(*shape, 1, 1),))
    tensors = rand()
    plan, errors, _ = triton_profile.profile_heads(*tensors, None, LAYOUT.grid, [0.4], 70, False, None)
    exact = reference.profile_errors(*tensors, LAYOUT, density=0.4, sampled_rows=70)
    torch.testing.assert_close(errors.double(), exact, rtol=1e-4, atol=1e-7)
    assert torch.equal(plan, reference.plan_from_errors(exact, LAYOUT, 0.4))
