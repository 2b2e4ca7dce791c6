"""Heads that processes exchange tokens for: found in the graph, and gathered in what Inductor makes of it for a GPU.

torch's fake process group stands for the others; the model and the GPU are those of tests/test_cuda_lowering.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single
from torch.testing._internal.distributed.fake_pg import FakeStore

from absent_gpu import absent_gpu
from test_cuda_lowering import OPTIONS

RANKS, RANK, HEADS, CHANNELS = 2, 1, 4, 32
GRID = (4, 6, 7)
TOKENS = 4 * 6 * 7


@pytest.fixture
def _processes() -> Iterator[None]:
    dist.init_process_group("fake", rank=RANK, world_size=RANKS, store=FakeStore())
    yield
    dist.destroy_process_group()


class Exchanges(torch.nn.Module):
    """Attention over tokens [B, N / ranks, heads * D] of this process, exchanged for all tokens of its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (torch.nn.Linear(HEADS * CHANNELS, HEADS * CHANNELS) for _ in range(3))

    def exchanged(self, rows: Tensor) -> Tensor:
        batch, tokens, _ = rows.shape
        parts = rows.reshape(batch, tokens, RANKS, HEADS // RANKS, CHANNELS).transpose(0, 2).contiguous()
        parts = all_to_all_single(parts.flatten(), None, None, dist.group.WORLD).reshape(parts.shape)
        return parts.reshape(RANKS * tokens, batch, HEADS // RANKS, CHANNELS).permute(1, 2, 0, 3)

    def forward(self, rows: Tensor) -> Tensor:
        """rows [B, N / ranks, heads * D] -> [B, heads / ranks, N, D]."""
        query, key, value = (self.exchanged(project(rows)) for project in (self.to_q, self.to_k, self.to_v))
        return torch.nn.functional.scaled_dot_product_attention(query * 0.5, key, value)


@pytest.mark.usefixtures("_processes")
@pytest.mark.parametrize("more", [{}, {"share_processes": False}, {"widths": "uniform"}])
def test_half_widths_by_need_are_decided_for_the_heads_of_all_processes(more: dict[str, object]) -> None:
    with absent_gpu() as machine:
        options = {**OPTIONS, "layout": GRID, **more}
        model = torch.compile(machine.move(Exchanges()), backend="svg", fullgraph=True, options=options)
        with torch.no_grad(), machine.mode:
            out = model(machine.tensor(torch.empty(1, TOKENS // RANKS, HEADS * CHANNELS)))
        assert out.shape == (1, HEADS // RANKS, TOKENS, CHANNELS)
        launches = {launch.name: launch.arguments for launch in machine.launches}
        gathers = sum(code.count("all_gather_into_tensor.default(") for code in machine.code)
        assert gathers == (not more)
        assert launches["sparse_attention_fwd_kernel"]["plan"].shape == (HEADS // RANKS, 2)
        if "widths" in more:
            assert "plan_by_need_fwd_kernel" not in launches
        else:
            assert launches["plan_by_need_fwd_kernel"]["heads"] == (HEADS // RANKS if more else HEADS)
