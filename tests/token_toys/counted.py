"""Tables that run through several segments, frames counted with the video, and latents without a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import FRAMES, GRID, HEIGHT, WIDTH, B, C, N, attend, model, tokens, video
from token_toys.beside import TEXT

LATENTS = torch.randn(FRAMES, HEIGHT, WIDTH, C)


def _coordinates(*sizes: int) -> Tensor:
    """What is known of the places of a raster of these sizes, [N, 1]."""
    at = torch.meshgrid(*(torch.arange(size).float() for size in sizes), indexing="ij")
    return torch.stack(at, -1).flatten(0, -2).cos().sum(-1, keepdim=True)


# ---- tables of several segments, and pooled ones -----------------------------------------------------------------


@model("16+8*2*6+14", video(8), video(2, 1, 2), video(1), torch.randn(B, 14, C), torch.randn(B, 1, C))
def _a_scale_for_all_history_and_one_for_the_rest(
    x: Tensor, old: Tensor, last: Tensor, text: Tensor, scale: Tensor
) -> Tensor:
    y = torch.cat([tokens(old), tokens(last), tokens(x), text], 1)
    return attend(y * torch.cat([torch.ones(B, 16, C), scale.expand(B, y.shape[1] - 16, C)], 1))


@model("UNKNOWN_GRID", video(8), video(1), TEXT)
def _a_scale_that_ends_within_the_video(x: Tensor, y: Tensor, text: Tensor) -> Tensor:
    both = torch.cat([tokens(y), tokens(x)], 1)
    return attend(both + torch.cat([torch.ones(B, 97, C), text], 1))


@model(f"6+{GRID}", video(), video(4, 2, 3))
def _pooled_coordinates_beside_pooled_history(x: Tensor, old: Tensor) -> Tensor:
    old = F.avg_pool3d(old, (2, 2, 1))
    table = F.avg_pool3d(_coordinates(4, 2, 3).T.unflatten(1, (4, 2, 3))[None], (2, 2, 1))
    y = torch.cat([tokens(old), tokens(x)], 1)
    return attend(y * torch.cat([tokens(table), _coordinates(FRAMES, HEIGHT, WIDTH)[None]], 1))


@model("UNKNOWN_GRID")
def _pooled_over_windows_that_overhang(x: Tensor) -> Tensor:
    return attend(tokens(x + F.avg_pool3d(x, (3, 1, 3), 1, (1, 0, 1))))


@model("UNKNOWN_GRID", video(8))
def _pooled_frames_put_in_the_place_of_others(x: Tensor) -> Tensor:
    coarse = F.avg_pool3d(x, (2, 1, 1))
    return attend(tokens(x[:, :, :4] + coarse))


# ---- a frame in front, counted with the video -----------------------------------------------------------------------

REFERENCE = torch.randn(B, C, HEIGHT, WIDTH)


def _behind_a_reference(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([tokens(y), tokens(x)], 1)


@model(f"12+{GRID}", video(), REFERENCE)
def _a_reference_image_counted_with_the_video(x: Tensor, y: Tensor) -> Tensor:
    return attend(_behind_a_reference(x, y) * _coordinates(FRAMES + 1, HEIGHT, WIDTH))


@model(f"12+{GRID}", video(), REFERENCE)
def _a_reference_image_counted_by_rows(x: Tensor, y: Tensor) -> Tensor:
    return attend(_behind_a_reference(x, y) * _coordinates(HEIGHT * (FRAMES + 1), WIDTH))


@model("UNKNOWN_GRID", video(), REFERENCE)
def _a_reference_image_and_coordinates_of_other_rows(x: Tensor, y: Tensor) -> Tensor:
    return attend(_behind_a_reference(x, y) * _coordinates(FRAMES + 1, WIDTH, HEIGHT))


@model("UNKNOWN_GRID", video(), torch.randn(B, C, WIDTH, HEIGHT))
def _a_reference_image_on_its_side(x: Tensor, y: Tensor) -> Tensor:
    return attend(_behind_a_reference(x, y) * _coordinates(FRAMES + 1, HEIGHT, WIDTH))


@model("UNKNOWN_GRID", video(4, 4, 4), torch.randn(B, C, 4, 4))
def _a_video_on_its_side_behind_a_reference(x: Tensor, y: Tensor) -> Tensor:
    return attend(_behind_a_reference(x.transpose(3, 4), y) * _coordinates(5, 4, 4))


@model("UNKNOWN_GRID", video(), REFERENCE)
def _a_reference_image_counted_with_a_rolled_video(x: Tensor, y: Tensor) -> Tensor:
    return attend(_behind_a_reference(x, y).roll(12, 1) * _coordinates(FRAMES + 1, HEIGHT, WIDTH))


@model("UNKNOWN_GRID", video(), REFERENCE)
def _coordinates_are_overwritten_by_the_tokens(x: Tensor, y: Tensor) -> Tensor:
    # What was a table holds tokens now, along its own three axes.
    table = (_coordinates(FRAMES + 1, HEIGHT, WIDTH) * torch.ones(B, 1, C)).unflatten(1, (FRAMES + 1, HEIGHT, WIDTH))
    flat = table.view(B, -1, C)
    flat *= _behind_a_reference(x, y)
    return attend(table.transpose(1, 2).flatten(1, 3))


# ---- parts of video and text, scaled in place -----------------------------------------------------------------------


@model(f"{GRID}+11", video(), TEXT, torch.randn(B, C), torch.randn(B, C))
def _a_frame_and_the_rest_scaled_in_place(x: Tensor, text: Tensor, first: Tensor, rest: Tensor) -> Tensor:
    y, scale = torch.cat([tokens(x), text], 1), torch.cat([first[:, None], rest[:, None]], 1)
    y[:, :12] *= scale[:, 0, None]
    y[:, 12:] *= scale[:, 1, None]
    return attend(y)


@model("UNKNOWN_GRID", video(), TEXT)
def _a_frame_of_video_and_text_written_over_another(x: Tensor, text: Tensor) -> Tensor:
    y = torch.cat([tokens(x), text], 1)
    y[:, :12] += y[:, 12:24].clone()
    return attend(y)


@model("UNKNOWN_GRID", video(), TEXT)
def _a_token_of_video_and_text_written_over_another(x: Tensor, text: Tensor) -> Tensor:
    y = torch.cat([tokens(x), text], 1)
    y[:, 3] = tokens(x)[:, 30]
    return attend(y)


@model("UNKNOWN_GRID", video(), TEXT)
def _tokens_of_video_and_text_written_backwards(x: Tensor, text: Tensor) -> Tensor:
    y = torch.cat([tokens(x), text], 1)
    for i in range(N):
        y[:, i] = tokens(x)[:, N - 1 - i]
    return attend(y)


# ---- no batch -------------------------------------------------------------------------------------------------------


@model(GRID, LATENTS)
def _latents_without_a_batch(x: Tensor) -> Tensor:
    return attend(x.flatten(0, 2)[None])


@model("UNKNOWN_GRID", LATENTS)
def _images_in_the_batch(x: Tensor) -> Tensor:
    return attend(x.flatten(1, 2))


@model("UNKNOWN_GRID", torch.randn(FRAMES, C, HEIGHT, WIDTH))
def _channels_between_frames_and_rows(x: Tensor) -> Tensor:
    return attend(x.transpose(1, 3).transpose(1, 2).flatten(0, 2)[None])


@model("UNKNOWN_GRID", LATENTS)
def _frames_without_a_batch_backwards(x: Tensor) -> Tensor:
    return attend(x.flip(0).flatten(0, 2)[None])


@model("UNKNOWN_GRID", LATENTS)
def _frames_without_a_batch_written_backwards(x: Tensor) -> Tensor:
    y = x * 1
    for i in range(FRAMES):
        y[i] = x[FRAMES - 1 - i]
    return attend(y.flatten(0, 2)[None])


@model("UNKNOWN_GRID", LATENTS)
def _rows_before_frames(x: Tensor) -> Tensor:
    return attend(x.transpose(0, 1).flatten(0, 2)[None])


@model("UNKNOWN_GRID", LATENTS, LATENTS)
def _one_of_two_beside_the_other(x: Tensor, y: Tensor) -> Tensor:
    q, k = x.flatten(0, 2)[None], y.flatten(0, 2)[None]
    both = torch.cat([q, k], 0)
    return attend(both.roll(1, 1))


# ---- text and video packed into one input; coordinates show which tokens are video ----------------------------------


def _placed(before: int, after: int) -> Tensor:
    sides = [torch.zeros(before, 1), _coordinates(FRAMES, HEIGHT, WIDTH), torch.ones(after, 1)]
    return torch.cat([side for side in sides if len(side)])


@model(f"6+{GRID}", torch.randn(B, N + 6, C))
def _text_packed_in_front_of_the_video(x: Tensor) -> Tensor:
    return attend(x * _placed(6, 0))


@model(f"6+{GRID}+4", torch.randn(B, N + 10, C))
def _text_packed_on_both_sides_of_the_video(x: Tensor) -> Tensor:
    return attend(x * _placed(6, 4))


@model("SEVERAL_GRIDS", torch.randn(B, 2 * N, C))
def _as_many_tokens_packed_behind_the_video(x: Tensor) -> Tensor:
    return attend(x * _placed(0, N))


@model("UNKNOWN_GRID", torch.randn(B, N + 6, C))
def _packed_text_moved_behind_by_one_token(x: Tensor) -> Tensor:
    return attend((x * _placed(6, 0)).roll(1, 1))


@model("UNKNOWN_GRID", torch.randn(B, N + 6, C))
def _coordinates_that_were_turned_around(x: Tensor) -> Tensor:
    return attend(x * _placed(6, 0).flip(0))
