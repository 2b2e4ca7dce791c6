"""Toy models that move tokens, each with the expected verdict of the analysis.

One file a way of moving them; `test_token_axes.py` traces them all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# No two sizes are equal, but for the cube: there only the origin of an axis tells one from another.
B, C, FRAMES, HEIGHT, WIDTH = 2, 8, 4, 2, 6
N = FRAMES * HEIGHT * WIDTH
GRID = f"{FRAMES}*{HEIGHT}*{WIDTH}"
Model = Callable[..., Tensor]


def video(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(B, C, frames, height, width)


def tokens(x: Tensor) -> Tensor:
    """[B, C, F, H, W] -> [B, N, C]."""
    return x.flatten(2).transpose(1, 2)


def attend(q: Tensor, k: Tensor | None = None, v: Tensor | None = None, **more: Any) -> Tensor:
    """Attention of two heads over projections of [B, N, C]."""
    operands = [F.linear(t, torch.ones(C, C)) for t in (q, q if k is None else k, q if v is None else v)]
    heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in operands]
    return F.scaled_dot_product_attention(*heads, **more).transpose(1, 2).flatten(2)


MODELS: dict[str, tuple[Model, tuple[Tensor, ...], list[str]]] = {}


def model(expected: str | list[str], *inputs: Tensor) -> Callable[[Model], Model]:
    """Register a toy with its verdict, one an attention; its input is a video unless others are given."""

    def register(function: Model) -> Model:
        verdicts = [expected] if isinstance(expected, str) else expected
        MODELS[function.__name__.strip("_")] = (function, inputs or (video(),), verdicts)
        return function

    return register


def positions() -> Tensor:
    at = [torch.arange(n).float() for n in (FRAMES, HEIGHT, WIDTH)]
    grid = torch.stack(torch.meshgrid(*at, indexing="ij"), -1)
    return grid.flatten(0, 2).sum(-1, keepdim=True)[None]


CUBE = video(4, 4, 4)
OTHER_CUBE = video(4, 4, 4)
# A second input that has a video's axes, and gives its name to what it is multiplied with.
MASK = torch.ones(B, 1, FRAMES, HEIGHT, WIDTH)
PACKED = torch.randn(B, N, C)

# Each registers its models.
PARTS = ("in_order", "reordered", "rebuilt", "written", "filled", "not_one_video", "pieces", "padded", "beside")
for part in (*PARTS, "counted", "squares", "part_of_keys", "by_index"):
    importlib.import_module(f"{__name__}.{part}")
