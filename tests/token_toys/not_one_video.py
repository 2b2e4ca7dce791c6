"""Sequences that are no one video: several, a part of one, packed tokens, keys of another order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import CUBE, GRID, PACKED, WIDTH, B, C, N, attend, model, positions, tokens, video


@model("UNKNOWN_GRID")
def _factorised_space(x: Tensor) -> Tensor:
    return attend(tokens(x.transpose(1, 2).flatten(0, 1)))


@model("NOT_VIDEO")
def _factorised_time(x: Tensor) -> Tensor:
    return attend(x.permute(0, 3, 4, 2, 1).flatten(0, 2))


@model("2*2*6")
def _half_of_the_frames(x: Tensor) -> Tensor:
    return attend(tokens(x[:, :, :2]))


@model("2*2*6", PACKED)
def _half_of_packed_tokens(x: Tensor) -> Tensor:
    return attend((x * positions())[:, : N // 2])


@model("SEVERAL_GRIDS")
def _repeated_tokens(x: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x)] * 2, 1))


@model("SEVERAL_GRIDS", video(), video(2))
def _two_videos(x: Tensor, y: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x), tokens(y)], 1))


@model(f"5+{GRID}+5", video(), torch.randn(B, 5, C))
def _text_on_both_sides(x: Tensor, text: Tensor) -> Tensor:
    return attend(torch.cat([text, tokens(x), text], 1))


@model("CROSS_ATTENTION", video(), video())
def _another_video_of_equal_length(x: Tensor, y: Tensor) -> Tensor:
    return attend(tokens(x), tokens(y), tokens(y))


@model("CROSS_ATTENTION", video(), video())
def _values_of_another_video(x: Tensor, y: Tensor) -> Tensor:
    return attend(tokens(x), tokens(x), tokens(y))


@model("UNKNOWN_GRID")
def _keys_rolled(x: Tensor) -> Tensor:
    y = tokens(torch.roll(x, 1, 2))
    return attend(tokens(x), y, y)


@model("CROSS_ATTENTION", CUBE)
def _keys_transposed(x: Tensor) -> Tensor:
    y = tokens(x.transpose(2, 3))
    return attend(tokens(x), y, y)


@model("NOT_VIDEO", PACKED)
def _packed_without_coordinates(x: Tensor) -> Tensor:
    return attend(x)


@model("NOT_VIDEO", PACKED)
def _packed_with_one_count(x: Tensor) -> Tensor:
    at = torch.arange(N)
    return attend(x + (at // WIDTH + at % WIDTH).float()[:, None])


@model("NOT_VIDEO", PACKED)
def _packed_windows_with_coordinates(x: Tensor) -> Tensor:
    y = x.view(B, 2, N // 2, C)
    at = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in (2, 2, 6)], indexing="ij"), -1).sum(-1)
    y = y * at.flatten()[:, None]
    return F.scaled_dot_product_attention(y, y, y)
