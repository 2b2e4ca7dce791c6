"""Tokens taken apart into squares and windows, and put together again: patches, and what only looks like them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import C, attend, model, tokens, video


@model("4*2*3", video(4, 4, 6))
def _squares_by_pixel_unshuffle(x: Tensor) -> Tensor:
    y = F.pixel_unshuffle(x.transpose(1, 2), 2)
    return attend(F.linear(tokens(y.transpose(1, 2)), torch.ones(C, 4 * C)))


@model("UNKNOWN_GRID", video(4, 4, 4))
def _squares_of_a_turned_image_beside_those_of_the_image(x: Tensor) -> Tensor:
    y, z = (F.pixel_unshuffle(each.transpose(1, 2), 2) for each in (x, x.transpose(3, 4)))
    return attend(F.linear(tokens((y + z).transpose(1, 2)), torch.ones(C, 4 * C)))


@model("4*4*6", video(4, 4, 6))
def _squares_put_back_by_pixel_shuffle(x: Tensor) -> Tensor:
    return attend(tokens(F.pixel_shuffle(F.pixel_unshuffle(x.transpose(1, 2), 2), 2).transpose(1, 2)))


@model("UNKNOWN_GRID", video(4, 4, 6))
def _squares_of_another_size_put_together_by_pixel_shuffle(x: Tensor) -> Tensor:
    y = F.pixel_unshuffle(x.transpose(1, 2), 2).flatten(2).unflatten(2, (C, 4, 6))
    return attend(tokens((y + x.transpose(1, 2)).transpose(1, 2)))


@model("4*2*3", video(4, 4, 6))
def _patches_by_unfold(x: Tensor) -> Tensor:
    y = x.unfold(3, 2, 2).unfold(4, 2, 2)
    return attend(F.linear(y.permute(0, 2, 3, 4, 1, 5, 6).flatten(4).flatten(1, 3), torch.ones(C, 4 * C)))


@model("UNKNOWN_GRID", video(4, 3, 6))
def _windows_that_overlap_by_unfold(x: Tensor) -> Tensor:
    return attend(tokens(x.unfold(2, 2, 1)[..., 1]))


@model("UNKNOWN_GRID", video(4, 4, 4))
def _turned_by_rot90(x: Tensor) -> Tensor:
    return attend(tokens(x.rot90(1, (3, 4)) + x))


@model("4*2*6")
def _turned_by_rot90_four_times_a_quarter(x: Tensor) -> Tensor:
    return attend(tokens(x.rot90(4, (3, 4))))
