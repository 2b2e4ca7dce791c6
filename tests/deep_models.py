"""Models of blocks that run alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

DEPTH = 12


def rolled(x: Tensor) -> Tensor:
    return x.roll(5, 1)


class Block(nn.Module):
    """Attention over [B, N, C], after `before` of it."""

    def __init__(self, before: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.before = before

    def attended(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + self.attended(x if self.before is None else self.before(x), mask)


class Deep(nn.Module):
    """latents [B, 4, F, H, W] -> [B, F*H*W, 32], through blocks in a list."""

    def __init__(self, make: Callable[[int], nn.Module] = lambda number: Block(), depth: int = DEPTH) -> None:
        super().__init__()
        self.patch = nn.Conv3d(4, 32, 1)
        self.blocks = nn.ModuleList(make(number) for number in range(depth))
        self.eval()

    def tokens(self, latents: Tensor) -> Tensor:
        return self.patch(latents).flatten(2).transpose(1, 2)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.tokens(latents)
        for number, block in enumerate(self.blocks):
            x = self.step(number, block, x)
        return x

    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        out: Tensor = block(x)
        return out


class Two(nn.Module):
    """A block of two streams, the second of which attends to itself, too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Block(), Block()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.two(y)


class TwoStreams(Deep):
    def __init__(self) -> None:
        super().__init__(lambda number: Two())

    def forward(self, latents: Tensor) -> Any:
        x = y = self.tokens(latents)
        for block in self.blocks:
            x, y = block(x=x, y=y)
        return x


class LeftOut(Deep):
    """Runs all blocks but one."""

    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        return x if number == 8 else super().step(number, block, x)


class Kept(Deep):
    """Keeps the results of some blocks."""

    def forward(self, latents: Tensor) -> Any:
        x, kept = self.tokens(latents), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in (1, 5, 9):
                kept.append(x)
        return F.scaled_dot_product_attention(*(each.unflatten(-1, (2, 16)).transpose(1, 2) for each in kept))


class WrittenAfter(Deep):
    """Keeps a result of a block whose axes are lost, and writes tokens of known ones into that of a later block."""

    def forward(self, latents: Tensor) -> Any:
        tokens = self.tokens(latents)
        x, kept = rolled(tokens), tokens
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 6:
                kept = x
        x.copy_(tokens)
        return self.blocks[0].attended(kept)


ALIKE = {"plain": Deep, "two streams": TwoStreams, "one left out": LeftOut, "results kept": Kept}
