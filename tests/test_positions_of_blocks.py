"""Positions given to a model that is compiled block by block, also inside an object: the blocks receive the grid."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import svg_compile
from lowering import grids_of, watch
from packed_latents import GRID, OPTIONS, latents, positions
from svg_compile.regional import known_calls, traced_grids

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class PackedBlocks(nn.Module):
    """As `Packed`, in two blocks that may be compiled one by one: they see rotary tables, no positions."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = PackedBlocks.Attention()

        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return x + self.attention(x, table)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(32, 96)

        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
            q, k = (t * table for t in (q, k))
            return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed = nn.Linear(8, 32)
            self.blocks = nn.ModuleList(PackedBlocks.Block() for _ in range(2))
        self.eval()

    def forward(self, latents: Tensor, positions: Tensor, timestep: Tensor) -> Tensor:
        x = self.embed(latents)
        table = positions.transpose(1, 2).sum(-1, keepdim=True).cos().unsqueeze(1)
        for block in self.blocks:
            x = block(x, table)
        return x


def test_blocks_are_told_the_grid_of_the_call_s_own_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model = PackedBlocks(), PackedBlocks()
    time, right, other = torch.tensor([500.0]), positions(*GRID), positions(4, 3, 6)
    expected = {}
    for grid, where in ((GRID, right), ((4, 3, 6), other)):
        torch._dynamo.reset()
        layout = torch.compile(PackedBlocks(), backend="svg", options={**OPTIONS, "layout": grid}, dynamic=False)
        expected[grid] = layout(latents(), where, time)
    torch._dynamo.reset()
    seen = watch(monkeypatch, grids_of)
    for block in model.blocks:
        block.compile(backend="svg", options=OPTIONS, dynamic=False)
    with svg_compile.denoising(model, steps=3):
        torch.testing.assert_close(model(latents(), right, time), expected[GRID])
        torch.testing.assert_close(model(latents(), other, time), expected[4, 3, 6])
        torch.testing.assert_close(model(latents(), right.clone(), time), expected[GRID])
        shuffled = right[..., torch.randperm(right.shape[-1], generator=torch.Generator().manual_seed(0))]
        torch.testing.assert_close(model(latents(), shuffled, time), plain(latents(), shuffled, time))
    assert {"3x4x6", "4x3x6"} <= set(seen)


@dataclass(frozen=True)
class Video:
    """As code hands a model all of one modality."""

    latent: Tensor
    positions: Tensor
    sigma: Tensor
    enabled: bool = True


class FromDataclass(PackedBlocks):
    """Reads a flag between the positions and its blocks, which breaks the graph."""

    def forward(self, video: Video) -> Tensor:  # type: ignore[override]
        x = self.embed(video.latent) * video.sigma
        table = video.positions.transpose(1, 2).sum(-1, keepdim=True).cos().unsqueeze(1)
        if not bool(torch.zeros(2).any()):
            torch._dynamo.graph_break()
        for block in self.blocks:
            x = block(x, table)
        return x


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_positions_in_a_dataclass_before_a_break(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = FromDataclass(), FromDataclass()
    where = positions(*GRID)
    report = svg_compile.explain(model, Video(latents(), where, torch.ones(1)), options=OPTIONS)
    assert [site.rewritten for site in report.sites] == [True, True]
    seen = watch(monkeypatch, grids_of)
    options = {**OPTIONS, "density": 1.0}
    if how == "whole":
        model.compile(backend="svg", options=options, dynamic=False)
    else:
        for block in model.blocks:
            block.compile(backend="svg", options=options, dynamic=False)
    traces = []
    whole = traced_grids.trace_grids
    monkeypatch.setattr(known_calls, "trace_grids", lambda *given: traces.append(1) or whole(*given))
    with svg_compile.denoising(model, steps=4) as run:
        for step in range(4):
            # Other latents, the same positions: one trace serves all steps.
            given = Video(latents(seed=step), where, torch.full((1,), 1.0 - step / 4))
            torch.testing.assert_close(model(given), plain(given))
            run.advance()
    assert "3x4x6" in seen
    assert len(traces) == 1
