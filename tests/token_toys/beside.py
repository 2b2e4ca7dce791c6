"""What stands beside the video in a sequence, or in the place of its batch: text in parts, frames of another video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import FRAMES, GRID, HEIGHT, WIDTH, B, C, N, attend, model, tokens, video

TEXT = torch.randn(B, 11, C)
LATENTS = torch.randn(FRAMES, HEIGHT, WIDTH, C)


def _coordinates(*sizes: int) -> Tensor:
    """What is known of the places of a raster of these sizes, [N, 1]."""
    at = torch.meshgrid(*(torch.arange(size).float() for size in sizes), indexing="ij")
    return torch.stack(at, -1).flatten(0, -2).cos().sum(-1, keepdim=True)


# ---- text -----------------------------------------------------------------------------------------------------------


@model(f"{GRID}+8", video(), TEXT)
def _cropped_text(x: Tensor, text: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x), text[:, :8]], 1))


@model(f"6+{GRID}", video(), TEXT)
def _every_other_word(x: Tensor, text: Tensor) -> Tensor:
    return attend(torch.cat([text[:, :3], text[:, 8:], tokens(x)], 1))


@model("UNKNOWN_GRID")
def _own_tokens_cropped(x: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x), tokens(x)[:, :8]], 1))


@model("UNKNOWN_GRID", video(), torch.randn(B, N, C))
def _cropped_tokens_that_run_along_the_video(x: Tensor, other: Tensor) -> Tensor:
    other = other + tokens(x)
    return attend(torch.cat([tokens(x), other[:, :8]], 1))


@model(f"{GRID}+11", video(), TEXT)
def _text_in_another_order(x: Tensor, text: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x), text.flip(1)], 1))


@model(f"{GRID}+11", video(), TEXT)
def _text_modulated_by_its_own_mean_word(x: Tensor, text: Tensor) -> Tensor:
    gate = F.linear(text[:, 0], torch.ones(C, C)).tanh()[:, None]
    return attend(torch.cat([tokens(x), text + gate * text], 1))


@model("UNKNOWN_GRID", video(), TEXT)
def _tokens_modulated_by_another_frame(x: Tensor, text: Tensor) -> Tensor:
    return attend(torch.cat([text, tokens(x + x[:, :, 2:3])], 1))


@model("UNKNOWN_GRID", video())
def _its_own_tokens_backwards_in_the_place_of_text(x: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x), tokens(x).flip(1)[:, :8]], 1))


# ---- text and video packed into one input, told apart by coordinates ------------------------------------------------


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


# ---- other videos ---------------------------------------------------------------------------------------------------


@model(f"12+{GRID}", video(), video(1))
def _a_frame_in_front(x: Tensor, y: Tensor) -> Tensor:
    return attend(tokens(torch.cat([y, x], 2)))


@model(f"{GRID}+12", video(), video(1))
def _a_frame_behind(x: Tensor, y: Tensor) -> Tensor:
    return attend(tokens(torch.cat([x, y], 2)))


@model(f"{GRID}+15", video(), video(1, 3, 5))
def _an_image_of_another_size_behind(x: Tensor, y: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x), tokens(y)], 1))


@model("8*2*6+24", video(8), video(1), video(1))
def _two_reference_frames_behind(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x), tokens(y), tokens(z)], 1))


@model("SEVERAL_GRIDS", video(), video(1), video(1))
def _a_frame_on_both_sides(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return attend(torch.cat([tokens(y), tokens(x), tokens(z)], 1))


@model("12+8*2*6+12", video(8), video(1), video(1))
def _a_frame_on_both_sides_of_a_longer_video(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return attend(tokens(torch.cat([y, x, z], 2)))


@model(f"5+{GRID}+6", video(), TEXT)
def _words_on_both_sides(x: Tensor, text: Tensor) -> Tensor:
    return attend(torch.cat([text[:, :5], tokens(x), text[:, 5:]], 1))


@model("16+8*2*6+14", video(8), video(2, 1, 2), video(1), torch.randn(B, 14, C))
def _coarse_history_and_a_frame_in_front_of_video_and_text(
    x: Tensor, old: Tensor, last: Tensor, text: Tensor
) -> Tensor:
    return attend(torch.cat([tokens(old), tokens(last), tokens(x), text], 1))


@model("SEVERAL_GRIDS", video(), video(4), TEXT)
def _two_videos_of_one_size_and_text(x: Tensor, y: Tensor, text: Tensor) -> Tensor:
    return attend(torch.cat([tokens(y), tokens(x), text], 1))


@model("SEVERAL_GRIDS", video(), video(3), video(3))
def _history_on_both_sides_that_is_longer_than_the_video(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return attend(tokens(torch.cat([y, x, z], 2)))


@model("UNKNOWN_GRID", video(8), video(1), TEXT)
def _halves_swapped_between_a_frame_and_text(x: Tensor, y: Tensor, text: Tensor) -> Tensor:
    x = tokens(x)
    return attend(torch.cat([tokens(y), x[:, N:], x[:, :N], text], 1))


@model("UNKNOWN_GRID", video(8), video(1))
def _a_frame_in_front_and_one_of_its_own_behind(x: Tensor, y: Tensor) -> Tensor:
    return attend(torch.cat([tokens(y), tokens(x), tokens(x)[:, :12]], 1))


@model("UNKNOWN_GRID", video(8))
def _its_own_first_frame_in_front(x: Tensor) -> Tensor:
    longer = F.pad(x, (0, 0, 0, 0, 0, 1))
    return attend(tokens(torch.cat([longer[:, :, :1], longer[:, :, :8]], 2)))


@model("UNKNOWN_GRID", video(8), video(1), TEXT)
def _windows_between_a_frame_and_text(x: Tensor, y: Tensor, text: Tensor) -> Tensor:
    windows = x.unflatten(4, (2, 3)).permute(0, 2, 4, 3, 5, 1).flatten(1, 4)
    return attend(torch.cat([tokens(y), windows, text], 1))


@model("UNKNOWN_GRID", video(8), video(1), TEXT)
def _rolled_with_what_stands_on_both_sides(x: Tensor, y: Tensor, text: Tensor) -> Tensor:
    return attend(torch.cat([tokens(y), tokens(x), text], 1).roll(1, 1))


@model("SEVERAL_GRIDS", video(), video(2))
def _videos_joined_in_time(x: Tensor, y: Tensor) -> Tensor:
    return attend(tokens(torch.cat([x, y], 2)))


def _counted(x: Tensor, at: Tensor) -> Tensor:
    return attend(tokens(x * at.float().cos()[:, None, None]))


@model("6*2*6", video(), video(2))
def _videos_joined_in_time_and_counted_through(x: Tensor, y: Tensor) -> Tensor:
    both = torch.cat([x, y], 2)
    return _counted(both, torch.arange(both.shape[2]))


@model("5*2*6", video(), video(1))
def _a_frame_joined_and_counted_through(x: Tensor, y: Tensor) -> Tensor:
    both = torch.cat([x, y], 2)
    return _counted(both, torch.arange(both.shape[2]))


@model("SEVERAL_GRIDS", video(), video(2))
def _videos_counted_apart(x: Tensor, y: Tensor) -> Tensor:
    return _counted(torch.cat([x, y], 2), torch.cat([torch.arange(FRAMES), torch.arange(2)]))


@model("SEVERAL_GRIDS", video(), video(2))
def _videos_counted_by_positions_that_were_picked(x: Tensor, y: Tensor) -> Tensor:
    return _counted(torch.cat([x, y], 2), torch.arange(9)[torch.tensor([0, 1, 2, 3, 0, 1])])


@model("UNKNOWN_GRID", video(), video(2))
def _videos_joined_and_rolled(x: Tensor, y: Tensor) -> Tensor:
    both = torch.cat([x, y], 2)
    return _counted(both.roll(1, 2), torch.arange(both.shape[2]))


@model(f"{GRID}+12", video(), video(2, 2, 3))
def _videos_of_different_width_in_one_sequence(x: Tensor, y: Tensor) -> Tensor:
    both = torch.cat([tokens(x), tokens(y)], 1)
    return attend(both * torch.arange(both.shape[1]).float().cos()[:, None])


@model("UNKNOWN_GRID", video(FRAMES, 4, 4), video(2, 4, 4))
def _videos_of_which_one_is_turned(x: Tensor, y: Tensor) -> Tensor:
    both = torch.cat([x, y.transpose(3, 4)], 2)
    return _counted(both, torch.arange(both.shape[2]))


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
