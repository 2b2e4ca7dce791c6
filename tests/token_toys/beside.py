"""Other tokens in the sequence of a video, or in its batch axis: text in parts, frames of another video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import FRAMES, GRID, B, C, N, attend, model, tokens, video

TEXT = torch.randn(B, 11, C)


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
