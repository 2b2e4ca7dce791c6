"""Operands, plans and a plain reference on the GPU, for the tests of tests/gpu."""

from __future__ import annotations

import torch
from torch import Tensor

from svg_compile.kernels import reference
from svg_compile.layout import VideoLayout


def rand(layout: VideoLayout, heads: int = 2, head_dim: int = 64, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Query, key and value [1, H, N, D], as views of [1, N, H, D]."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (1, layout.tokens, heads, head_dim)
    return [torch.randn(shape, generator=generator, device="cuda").to(dtype).transpose(1, 2) for _ in range(3)]


def plan_of(*heads: tuple[int, int]) -> Tensor:
    """The plan of one sample: kind and half-width of each head."""
    return torch.tensor([heads], dtype=torch.int32, device="cuda")


def masked_sdpa(query: Tensor, key: Tensor, value: Tensor, plan: Tensor, layout: VideoLayout) -> Tensor:
    """The same attention in the inputs' dtype, head by head, with the whole mask."""
    out = torch.empty_like(value)
    for head in range(query.shape[1]):
        kind, half_width = plan[0, head].tolist()
        mask = reference.attention_mask(layout, half_width, kind, "cuda")
        scores = (query[0, head] @ key[0, head].mT * query.shape[3] ** -0.5).masked_fill(~mask, float("-inf"))
        out[0, head] = torch.softmax(scores, -1) @ value[0, head]
    return out
