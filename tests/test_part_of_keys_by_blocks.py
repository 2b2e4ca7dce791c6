"""Blocks whose video looks at text as well, compiled one by one: the whole model says which part of the keys asks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svg_compile
from block_model import Block
from lowering import kind, watch

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

B, H, D, VIDEO, TEXT = 2, 2, 8, (5, 7, 3), 11


class Looking(nn.Module):
    """Attention of video [B, N, C] over text [B, T, C] and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(H * D, H * D), nn.Linear(H * D, 2 * H * D)

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        query = 3 * self.q(video)
        key, value = self.kv(torch.cat([text, video], 1)).chunk(2, -1)
        q, k, v = (tensor.unflatten(-1, (H, D)).transpose(1, 2) for tensor in (query, key, value))
        return video + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class LookingBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Looking()

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        return self.attn(video, text)


class LookingModel(nn.Module):
    """Video that looks at text in each block, and text that looks at itself."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(LookingBlock() for _ in range(2))
        self.words = Block(H * D)

    def forward(self, video: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
        x, words = video.flatten(2).transpose(1, 2) * timestep, self.words(text.transpose(1, 2))
        for block in self.blocks:
            x = block(x, words)
        return x


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_blocks_have_it_from_the_whole_model(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    built = watch(monkeypatch, kind)
    torch.manual_seed(0)
    made = LookingModel().eval()
    given = torch.randn(B, H * D, *VIDEO), torch.randn(B, H * D, TEXT), torch.tensor(0.5)
    keep = {"min_tokens": 0, "dense_steps": 0, "dense_layers": 0, "block": 8, "on_error": "raise", "density": density}
    with torch.no_grad():
        eager = made(*given)
        whole = torch.compile(made, backend="svg", options=keep)(*given)
        torch._dynamo.reset()
        built.clear()
        for block in made.blocks:
            block.compile(backend="svg", options=keep)
        with svg_compile.denoising(made, steps=1):
            torch.testing.assert_close(made(*given), whole)
    assert built == ["sparse"]
    difference = float((whole - eager).abs().max())
    assert difference < 1e-5 if density == 1.0 else difference > 1e-3
