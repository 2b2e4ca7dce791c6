"""Slices of the tokens that return to their place, tokens concatenated with them, and imitations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import FRAMES, GRID, HEIGHT, MASK, PACKED, WIDTH, B, C, N, attend, model, positions, tokens, video

TEXT = torch.randn(B, 5, C)
TIMES = torch.randn(B, 3, C)
FRAME = HEIGHT * WIDTH


# ---- pieces in their places ------------------------------------------------------------------------------------------


@model(f"{GRID}+5", video(), TEXT, TIMES)
def _first_frame_scaled_in_place(x: Tensor, text: Tensor, times: Tensor) -> Tensor:
    y = tokens(x).clone()
    y[:, :FRAME] *= times[:, 0:1]
    y[:, FRAME:] *= times[:, 2:3]
    return attend(torch.cat([y, text], 1))


@model(f"5+{GRID}", video(), TEXT, TIMES)
def _first_frame_scaled_and_concatenated(x: Tensor, text: Tensor, times: Tensor) -> Tensor:
    y = tokens(x)
    y = torch.cat([y[:, :FRAME] * times[:, :1], y[:, FRAME:] * times[:, 2:]], 1)
    return attend(torch.cat([text, y], 1))


@model(GRID, video(), TIMES)
def _first_latent_frame_scaled_and_concatenated(x: Tensor, times: Tensor) -> Tensor:
    a, _, b = (t[:, :, None, None] for t in times.unbind(1))
    return attend(tokens(torch.cat([x[:, :, :1] * a.unsqueeze(2), x[:, :, 1:] * b.unsqueeze(2)], 2)))


@model(GRID, video(), TIMES)
def _scaled_and_written_back(x: Tensor, times: Tensor) -> Tensor:
    y = tokens(x) * 1
    y[:, :FRAME] = y[:, :FRAME] * times[:, 0:1]
    y[:, FRAME:] = F.layer_norm(y[:, FRAME:], (C,)) * times[:, 2:3]
    return attend(y)


@model(GRID)
def _three_pieces_of_pieces(x: Tensor) -> Tensor:
    y = tokens(x)
    rest = y[:, 5:]
    return attend(torch.cat([y[:, :5] * 2, torch.cat([rest[:, :20] + 1, rest[:, 20:]], 1)], 1))


@model(GRID)
def _by_chunks(x: Tensor) -> Tensor:
    return attend(torch.cat([F.linear(t, torch.ones(C, C)) for t in tokens(x).chunk(3, 1)], 1))


@model(GRID, video(), TEXT)
def _video_cut_out_across_the_text(x: Tensor, text: Tensor) -> Tensor:
    both = torch.cat([text, tokens(x)], 1)
    head, tail = both[:, :9] * 2, both[:, 9:] * 3
    return attend(torch.cat([head, tail], 1)[:, 5:])


@model(GRID, PACKED)
def _packed_pieces_with_coordinates(x: Tensor) -> Tensor:
    y = torch.cat([x[:, :FRAME] * 2, x[:, FRAME:]], 1)
    return attend(y * positions())


@model(GRID, video(), torch.randn(B, N))
def _scaled_apart_by_a_number_a_token(x: Tensor, times: Tensor) -> Tensor:
    y = tokens(x)
    pieces = [y[:, s] * times[:, s, None] for s in (slice(None, FRAME), slice(FRAME, None))]
    return attend(torch.cat(pieces, 1))


@model(GRID)
def _a_table_in_the_place_of_the_first_frame(x: Tensor) -> Tensor:
    return attend(tokens(torch.cat([torch.zeros(B, C, 1, HEIGHT, WIDTH), x[:, :, 1:]], 2) * 2 + x))


@model(GRID)
def _a_mask_of_the_first_frame_in_the_channels(x: Tensor) -> Tensor:
    mask = torch.cat([torch.ones_like(x[:, :1, :1]), torch.zeros_like(x[:, :1, 1:])], 2)
    return attend(tokens(torch.cat([x, mask.expand(-1, C, -1, -1, -1)], 1)) @ torch.ones(2 * C, C))


# ---- pieces out of their places --------------------------------------------------------------------------------------


@model("UNKNOWN_GRID")
def _pieces_swapped(x: Tensor) -> Tensor:
    y = tokens(x)
    return attend(torch.cat([y[:, FRAME:], y[:, :FRAME]], 1))


@model("UNKNOWN_GRID")
def _three_pieces_in_another_order(x: Tensor) -> Tensor:
    a, b, c = tokens(x).split([12, 24, 12], 1)
    return attend(torch.cat([c, b, a], 1))


@model("UNKNOWN_GRID")
def _pieces_with_a_gap(x: Tensor) -> Tensor:
    y = tokens(x)
    return attend(torch.cat([y[:, :FRAME], y[:, 2 * FRAME :]], 1))


@model("UNKNOWN_GRID")
def _pieces_that_overlap(x: Tensor) -> Tensor:
    y = tokens(x)
    return attend(torch.cat([y[:, :30], y[:, 20:]], 1))


@model("UNKNOWN_GRID")
def _pieces_moved_by_one_token(x: Tensor) -> Tensor:
    y = tokens(x)
    return attend(torch.cat([y[:, 1:], y[:, :1]], 1) + y)


@model("UNKNOWN_GRID")
def _a_piece_turned_around(x: Tensor) -> Tensor:
    y = tokens(x)
    return attend(torch.cat([y[:, :FRAME].flip(1), y[:, FRAME:]], 1))


@model("UNKNOWN_GRID", video(), MASK)
def _another_frame_in_the_place_of_the_first(x: Tensor, mask: Tensor) -> Tensor:
    return attend(tokens(torch.cat([x[:, :, 3:4], x[:, :, 1:]], 2) * mask))


@model("12+3*2*6")
def _another_frame_added_to_nothing_of_the_first(x: Tensor) -> Tensor:
    return attend(tokens(torch.cat([x[:, :, :1] * 0 + x[:, :, 3:4], x[:, :, 1:]], 2)))


@model("12+3*2*6")
def _another_frame_by_a_mean_over_the_first(x: Tensor) -> Tensor:
    other = x[:, :, 3:4].mean(2, keepdim=True)
    return attend(tokens(torch.cat([x[:, :, :1] * 0 + other, x[:, :, 1:]], 2)))


@model("UNKNOWN_GRID")
def _first_frame_over_all_others(x: Tensor) -> Tensor:
    return attend(tokens(torch.cat([x[:, :, :1], x[:, :, 1:] * 0 + x[:, :, :1]], 2)))


@model("UNKNOWN_GRID")
def _first_frame_written_over_all_others(x: Tensor) -> Tensor:
    y = x * 1
    y[:, :, 1:] *= 0
    y[:, :, 1:] += y[:, :, :1]
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _last_frame_added_to_the_first_in_place(x: Tensor) -> Tensor:
    y = x * 1
    y[:, :, :1] *= 0
    y[:, :, :1] += x[:, :, 3:].mean(2, keepdim=True)
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _a_piece_at_another_place_than_its_own(x: Tensor) -> Tensor:
    return attend(tokens(torch.cat([x[:, :, :3], torch.zeros(B, C, 1, HEIGHT, WIDTH)], 2).roll(1, 2) + x))


@model("UNKNOWN_GRID")
def _a_table_before_a_piece_that_is_not_its_own_place(x: Tensor) -> Tensor:
    return attend(tokens(torch.cat([torch.zeros(B, C, 1, HEIGHT, WIDTH), x[:, :, :3]], 2) + x))


def _at(i: int) -> Tensor:
    return (torch.arange(FRAMES) == i).float()[:, None, None]


@model("UNKNOWN_GRID")
def _frames_of_a_piece_put_elsewhere(x: Tensor) -> Tensor:
    y, piece = x * 0, x[:, :, 1:]
    for i in range(3):
        y = y + _at(i) * piece[:, :, 2 - i : 3 - i]
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _every_other_frame_put_elsewhere(x: Tensor) -> Tensor:
    even = x[:, :, ::2]
    return attend(tokens(x * 0 + _at(0) * even[:, :, 1:] + _at(2) * even[:, :, :1]))


@model("UNKNOWN_GRID", video(2 * FRAMES))
def _frames_of_the_input_put_beside_pairs_of_them(x: Tensor) -> Tensor:
    y = F.conv3d(x, torch.ones(C, C, 2, 1, 1), stride=(2, 1, 1))
    for i in range(FRAMES):
        y = y * 0.5 + _at(i) * x[:, :, 7 - 2 * i : 8 - 2 * i]
    return attend(tokens(y))


# ---- whole frames ----------------------------------------------------------------------------------------------------


@model("3*2*6")
def _without_its_first_frame(x: Tensor) -> Tensor:
    return attend(tokens(x)[:, FRAME:])


@model("3*2*6+5", video(), TEXT)
def _some_frames_and_text(x: Tensor, text: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x[:, :, :3]) * 2, text], 1))


@model(["2*2*6", "2*2*6"])
def _runs_of_frames_attended_apart(x: Tensor) -> Tensor:
    return torch.cat([attend(part) for part in tokens(x).chunk(2, 1)], 1)


@model(["2*2*6", GRID])
def _runs_of_frames_attended_apart_and_then_together(x: Tensor) -> Tensor:
    first, last = torch.split(tokens(x), [2 * FRAME, 2 * FRAME], 1)
    return attend(torch.cat([attend(first), last], 1))


@model("UNKNOWN_GRID")
def _a_frame_and_a_half(x: Tensor) -> Tensor:
    return attend(tokens(x)[:, : FRAME + FRAME // 2])


@model("UNKNOWN_GRID")
def _frames_cut_half_a_frame_late(x: Tensor) -> Tensor:
    return attend(tokens(x)[:, FRAME // 2 : FRAME // 2 + 2 * FRAME])


@model("UNKNOWN_GRID")
def _rows_without_their_last_columns(x: Tensor) -> Tensor:
    return attend(tokens(x[..., :4]))


@model("UNKNOWN_GRID")
def _every_other_frame(x: Tensor) -> Tensor:
    return attend(tokens(x[:, :, ::2]))


@model("UNKNOWN_GRID")
def _frames_added_to_the_ones_before_them(x: Tensor) -> Tensor:
    return attend(tokens(x[:, :, 1:] + x[:, :, :-1]))


@model("UNKNOWN_GRID", video(), torch.randn(B, N, C))
def _frames_beside_those_that_come_later(x: Tensor, other: Tensor) -> Tensor:
    y = tokens(x) + other
    return attend(torch.cat([torch.zeros(B, FRAME, C), y[:, :-FRAME]], 1) + tokens(x))
