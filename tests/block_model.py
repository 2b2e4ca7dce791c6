"""The smallest denoiser that can be compiled whole or block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """x [B, N, width] -> the same, by two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (3 * self.qkv(x)).chunk(3, dim=-1))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """One attention with its residual connection."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.attn = Attention(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x)


class BlockModel(nn.Module):
    """latents [B, 4, F, H, W], timestep [B], prompt [B, 32] -> latents."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.patch, self.out = nn.Conv3d(4, 32, 1), nn.Linear(32, 4)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.eval()

    def forward(self, latents: Tensor, timestep: Tensor, prompt: Tensor | None = None) -> Tensor:
        x = self.patch(latents).flatten(2).transpose(1, 2) + torch.sin(timestep / 1000)[:, None, None]
        if prompt is not None:
            x = x + prompt[:, None]
        for block in self.blocks:
            x = block(x)
        return self.out(x).transpose(1, 2).unflatten(2, latents.shape[2:])

    def compile_in_place(self, how: str, **arguments: Any) -> None:
        """Compile the model, or each block of it."""
        for part in self.blocks if how == "blocks" else [self]:
            part.compile(backend="svg", dynamic=False, **arguments)
