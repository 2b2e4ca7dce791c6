"""Packed latents, and a model that takes them with the positions of their tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

OPTIONS: dict[str, Any] = {"min_tokens": 0, "block": 8, "dense_steps": 0, "dense_layers": 0, "on_error": "raise"}
GRID = (3, 4, 6)


def positions(frames: int, height: int, width: int) -> Tensor:
    """[1, 3, N] seconds and pixels of each token in raster order."""
    ids = torch.cartesian_prod(torch.arange(frames), torch.arange(height), torch.arange(width)).float()
    return (ids * torch.tensor([8 / 24, 32.0, 32.0])).T[None].contiguous()


class Packed(nn.Module):
    """Self-attention over packed latents [B, N, 8], each rotated by an angle that follows from its position."""

    def __init__(self, use: Callable[[Tensor], Tensor] = lambda angles: angles) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed, self.qkv = nn.Linear(8, 32), nn.Linear(32, 96)
        self.use = use
        self.eval()

    def forward(self, latents: Tensor, positions: Tensor) -> Tensor:
        x = self.embed(latents)
        angles = self.use((positions.transpose(1, 2).unsqueeze(-1) * torch.ones(5)).flatten(2).sum(-1, keepdim=True))
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        q, k = (t * angles.cos().unsqueeze(1) for t in (q, k))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def latents(batch: int = 1, seed: int = 0) -> Tensor:
    frames, height, width = GRID
    return torch.randn(batch, frames * height * width, 8, generator=torch.Generator().manual_seed(seed))
