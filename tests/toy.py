"""The smallest video transformer with everything the backend looks for, so that a compile takes seconds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ToyVideoDiT(nn.Module):
    """latents [B, 4, F, H, W] -> [B, F*H*W, 32]: a patch convolution of size 1, then self-attention layers."""

    def __init__(self, layers: int = 2, *, attend: object = F.scaled_dot_product_attention) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.patch = nn.Conv3d(4, 32, 1)
            self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(layers))
        self.attend = attend
        self.eval()

    def forward(self, latents: Tensor) -> Tensor:
        x = self.patch(latents).flatten(2).transpose(1, 2)
        for qkv in self.qkv:
            q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (3 * qkv(x)).chunk(3, dim=-1))
            x = x + self.attend(q, k, v).transpose(1, 2).flatten(2)
        return x


def latents(batch: int = 1, frames: int = 5, height: int = 7, width: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, frames, height, width, generator=generator)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention that no operator of a graph names."""
    return torch.softmax(q @ k.transpose(-1, -2) / 4, dim=-1) @ v
