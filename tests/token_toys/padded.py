"""Videos and tokens that are padded, or resized."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import FRAMES, GRID, HEIGHT, WIDTH, B, C, attend, model, tokens, video

# ---- padding ---------------------------------------------------------------------------------------------------------


@model("4*2*8")
def _columns_padded_with_zeros(x: Tensor) -> Tensor:
    return attend(tokens(F.pad(x, (0, 2))))


@model("4*3*7")
def _padded_in_a_circle(x: Tensor) -> Tensor:
    return attend(tokens(F.pad(x, (0, 1, 0, 1, 0, 0), mode="circular")))


@model("4*2*7")
def _padded_by_the_last_column(x: Tensor) -> Tensor:
    return attend(tokens(F.pad(x, (0, 1, 0, 0, 0, 0), mode="replicate")))


@model("4*2*3", video(4, 3, 5))
def _padded_to_the_patch(x: Tensor) -> Tensor:
    y = F.pad(x, (0, -x.shape[-1] % 2, 0, -x.shape[-2] % 2))
    return attend(tokens(F.conv3d(y, torch.ones(C, C, 1, 2, 2), stride=(1, 2, 2))))


@model(GRID)
def _padded_and_cut_back(x: Tensor) -> Tensor:
    return attend(tokens(F.pad(x, (0, 2))[..., :WIDTH] + x))


@model(f"{GRID}+3")
def _tokens_padded_at_the_end(x: Tensor) -> Tensor:
    return attend(F.pad(tokens(x), (0, 0, 0, 3)))


@model("UNKNOWN_GRID")
def _padded_in_front(x: Tensor) -> Tensor:
    return attend(tokens(F.pad(x, (1, 0))))


@model("UNKNOWN_GRID")
def _padded_around(x: Tensor) -> Tensor:
    return attend(tokens(F.pad(x, (1, 1, 0, 0, 0, 0), mode="circular")))


@model("UNKNOWN_GRID")
def _tokens_padded_in_front(x: Tensor) -> Tensor:
    return attend(F.pad(tokens(x), (0, 0, 3, 0)))


@model("UNKNOWN_GRID")
def _padded_in_the_middle(x: Tensor) -> Tensor:
    return attend(tokens(torch.cat([x[..., :3], torch.zeros(B, C, FRAMES, HEIGHT, 1), x[..., 3:]], 4)))


@model("UNKNOWN_GRID")
def _padded_and_added_to_its_roll(x: Tensor) -> Tensor:
    y = F.pad(x, (0, 2))
    return attend(tokens(y + y.roll(1, 4)))


@model("UNKNOWN_GRID")
def _front_cut_off_by_padding(x: Tensor) -> Tensor:
    return attend(tokens(F.pad(x, (-1, 1)) + x))


# ---- resized ---------------------------------------------------------------------------------------------------------


@model(GRID, video(), torch.ones(1, 1, 8, 9))
def _a_resized_mask_in_the_channels(x: Tensor, mask: Tensor) -> Tensor:
    mask = F.interpolate(mask, size=(HEIGHT, WIDTH), mode="nearest")
    mask = mask.unsqueeze(2).repeat(B, C, FRAMES, 1, 1)
    return attend(tokens(torch.cat([x, mask], 1)) @ torch.ones(2 * C, C))


@model("UNKNOWN_GRID", video(FRAMES, 4, 3))
def _tokens_resized(x: Tensor) -> Tensor:
    y = F.interpolate(x.flatten(0, 1), size=(HEIGHT, WIDTH)).unflatten(0, (B, C))
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _turned_and_resized_beside(x: Tensor) -> Tensor:
    return attend(tokens(x + F.interpolate(x.transpose(2, 4), size=(FRAMES, HEIGHT, WIDTH))))
