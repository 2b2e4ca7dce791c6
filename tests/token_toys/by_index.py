"""Tokens written and read at an index that is an input: found by the values of the index, and what only looks like it.

Found: numbers that are consecutive, or a few runs of such. Refused: any other order, holes, numbers that occur twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from token_toys import CUBE, FRAMES, GRID, HEIGHT, OTHER_CUBE, PACKED, WIDTH, B, C, N, attend, model, tokens, video

TEXT = torch.randn(B, 11, C)
AREA = HEIGHT * WIDTH
FIRST, BEHIND = torch.arange(11), torch.arange(11, 11 + N)
Write = Callable[[Tensor, Tensor, Tensor], Tensor]


def _by_copy(buffer: Tensor, index: Tensor, x: Tensor) -> Tensor:
    return buffer.index_copy(1, index, x)


def _in_place(buffer: Tensor, index: Tensor, x: Tensor) -> Tensor:
    buffer[:, index] = x
    return buffer


def _joined(x: Tensor, at: Tensor, words: Tensor, words_at: Tensor, write: Write = _by_copy, more: int = 0) -> Tensor:
    """Text and video, written into one buffer."""
    buffer = torch.zeros(B, N + 11 + more, C)
    return write(write(buffer, words_at, words), at, x)


def _positions(before: int = 0) -> Tensor:
    """[N, 3] the places of a video's tokens in raster order; in front of them text, of which each token is later."""
    ids = torch.cartesian_prod(*(torch.arange(size) for size in (FRAMES, HEIGHT, WIDTH)))
    text = torch.arange(before)[:, None].expand(before, 3)
    return torch.cat([text, ids + torch.tensor([100, 0, 0])]).float()


# ---- found ----------------------------------------------------------------------------------------------------------


@model(f"11+{GRID}", video(), BEHIND, TEXT, FIRST)
def _text_and_video_by_index_copy(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at))


@model(f"{GRID}+11", video(), torch.arange(N), TEXT, torch.arange(N, N + 11))
def _video_and_text_by_index_put(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at, _in_place))


@model(f"5+{GRID}+6", video(), torch.arange(5, 5 + N), TEXT, torch.cat([torch.arange(5), torch.arange(N + 5, N + 11)]))
def _text_on_both_sides_by_one_index(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at))


@model(f"11+{GRID}", video(), BEHIND, TEXT, FIRST)
def _text_and_video_by_scatter(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    def write(buffer: Tensor, index: Tensor, y: Tensor) -> Tensor:
        return buffer.scatter(1, index[None, :, None].expand(B, -1, C), y)

    return attend(_joined(tokens(x), at, text, text_at, write))


@model(f"11+{GRID}", video(), BEHIND, TEXT, FIRST)
def _text_and_video_added_into_zeros(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at, lambda buffer, index, y: buffer.index_add(1, index, y)))


@model(GRID, video(), BEHIND, TEXT, FIRST)
def _video_read_back_by_index_select(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at).index_select(1, at))


@model(GRID, video(), BEHIND, TEXT, FIRST)
def _video_read_back_by_gather(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at).gather(1, at[None, :, None].expand(B, -1, C)))


@model(f"11+{GRID}", video(), BEHIND, TEXT, FIRST)
def _video_looks_at_text_by_index(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    both = _joined(tokens(x), at, text, text_at)
    return attend(both[:, at], both, both)


@model(GRID, video(), torch.arange(N))
def _video_read_at_all_of_its_places(x: Tensor, at: Tensor) -> Tensor:
    return attend(tokens(x)[:, at])


@model(GRID, video(), torch.cat([torch.arange(24), torch.arange(35, 59)]), TEXT, torch.arange(24, 35))
def _video_written_on_both_sides_of_text_and_read_back(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at).index_select(1, at))


@model(GRID, video(), torch.arange(1, FRAMES), torch.randn(B, N - AREA, C))
def _something_added_to_all_frames_but_the_first(x: Tensor, frames: Tensor, times: Tensor) -> Tensor:
    index = (frames[:, None] * AREA + torch.arange(AREA)).flatten()
    return attend(tokens(x).scatter_add(1, index[None, :, None].expand(B, -1, C), times))


@model(f"11+{GRID}", PACKED, BEHIND, TEXT, FIRST, _positions(11))
def _packed_latents_with_positions(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor, where: Tensor) -> Tensor:
    return attend(_joined(x, at, text, text_at) * where.sum(-1, keepdim=True).cos())


@model(f"11+{GRID}", PACKED, BEHIND, TEXT, FIRST, _positions(11).T.contiguous())
def _packed_latents_with_positions_in_columns(
    x: Tensor, at: Tensor, text: Tensor, text_at: Tensor, where: Tensor
) -> Tensor:
    return attend(_joined(x, at, text, text_at) * where.sum(0)[:, None].cos())


_A_FRAME_BEFORE = torch.cat([torch.arange(AREA), torch.arange(AREA + 5, AREA + 5 + N)])


@model(f"17+{GRID}", torch.randn(B, N + AREA, C), _A_FRAME_BEFORE, TEXT[:, :5], torch.arange(12, 17), _positions(17))
def _a_frame_of_its_own_before_text_and_video(
    x: Tensor, at: Tensor, text: Tensor, text_at: Tensor, where: Tensor
) -> Tensor:
    both = _joined(x, at, text, text_at, more=AREA - 6)
    return attend(both * where.sum(-1, keepdim=True).cos())


@model(GRID, PACKED, torch.tensor([0, 1] * (N // 2)), torch.randn(2), _positions())
def _scaled_by_a_look_up_of_two_times(x: Tensor, which: Tensor, times: Tensor, where: Tensor) -> Tensor:
    scales = torch.nn.functional.linear(times[:, None], torch.ones(C, 1))
    return attend(x * scales.index_select(0, which) * where.sum(-1, keepdim=True).cos())


# ---- refused --------------------------------------------------------------------------------------------------------

_UNKNOWN = "UNKNOWN_GRID"
_TURNED = torch.arange(11, 11 + N).view(FRAMES, HEIGHT, WIDTH).transpose(1, 2).flatten()


@model(_UNKNOWN, video(), BEHIND[torch.randperm(N, generator=torch.Generator().manual_seed(0))], TEXT, FIRST)
def _video_at_a_permutation(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at))


@model(_UNKNOWN, video(), BEHIND.flip(0), TEXT, FIRST)
def _video_written_backwards(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at))


@model(_UNKNOWN, video(), _TURNED, TEXT, FIRST)
def _video_written_column_by_column(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at))


@model(_UNKNOWN, video(), torch.cat([BEHIND[N // 2 :], BEHIND[: N // 2]]), TEXT, FIRST)
def _halves_of_the_video_swapped(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at))


@model(_UNKNOWN, video(), torch.cat([BEHIND[:20], BEHIND[20:] + 1]), TEXT, FIRST)
def _a_hole_in_the_video(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at, more=1))


@model(_UNKNOWN, video(), torch.cat([BEHIND[:20], BEHIND[18:-2]]), TEXT, FIRST)
def _a_place_written_twice(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at))


@model(_UNKNOWN, video(), BEHIND - 3, TEXT, FIRST)
def _video_written_over_text(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_joined(tokens(x), at, text, text_at))


@model(_UNKNOWN, video(), torch.arange(N), TEXT, torch.arange(20, 31))
def _text_written_over_video(x: Tensor, at: Tensor, text: Tensor, text_at: Tensor) -> Tensor:
    return attend(_by_copy(_by_copy(torch.zeros(B, N, C), at, tokens(x)), text_at, text))


@model(_UNKNOWN, video(), torch.arange(N).view(FRAMES, HEIGHT, 3, 2).transpose(1, 2).flatten())
def _windows_read_by_index(x: Tensor, at: Tensor) -> Tensor:
    return attend(tokens(x)[:, at])


@model(_UNKNOWN, video(), torch.arange(N))
def _an_index_counted_from_the_end(x: Tensor, at: Tensor) -> Tensor:
    return attend(tokens(x)[:, N - 1 - at])


@model(_UNKNOWN, video(), torch.arange(N))
def _an_index_written_before_it_is_used(x: Tensor, at: Tensor) -> Tensor:
    at = at.clone()
    at[3:5] = at[3:5].flip(0)
    return attend(tokens(x)[:, at])


@model(_UNKNOWN, video(), torch.arange(N))
def _an_index_written_through_a_view(x: Tensor, at: Tensor) -> Tensor:
    at = at * 1
    rows = at.view(2, -1)
    rows.copy_(rows.flip(0))
    return attend(tokens(x)[:, at])


@model(_UNKNOWN, video(), torch.arange(N))
def _an_index_computed_into_itself(x: Tensor, at: Tensor) -> Tensor:
    at = at.clone()
    torch.sub(torch.full((N,), N - 1), at, out=at)
    return attend(tokens(x)[:, at])


@model(_UNKNOWN, video(), torch.arange(N))
def _an_index_rolled(x: Tensor, at: Tensor) -> Tensor:
    return attend(tokens(x).index_select(1, at.roll(7)))


@model(_UNKNOWN, video(), torch.arange(N - 6) + 6)
def _the_video_added_to_itself_a_row_later(x: Tensor, at: Tensor) -> Tensor:
    return attend(tokens(x).index_add(1, at, tokens(x)[:, : N - 6]))


@model(_UNKNOWN, CUBE, torch.arange(64))
def _a_cube_turned_and_added(x: Tensor, at: Tensor) -> Tensor:
    return attend(tokens(x).index_add(1, at, tokens(x.transpose(2, 3))))


@model(_UNKNOWN, video(), torch.stack([torch.arange(N), torch.arange(N).flip(0)]))
def _a_sample_read_backwards(x: Tensor, at: Tensor) -> Tensor:
    return attend(tokens(x).gather(1, at[:, :, None].expand(B, -1, C)))


@model("SEVERAL_GRIDS", CUBE, torch.arange(64), OTHER_CUBE, torch.arange(64, 128))
def _two_videos_of_equal_length(x: Tensor, at: Tensor, y: Tensor, y_at: Tensor) -> Tensor:
    return attend(_by_copy(_by_copy(torch.zeros(B, 128, C), at, tokens(x)), y_at, tokens(y)))


@model(_UNKNOWN, CUBE, torch.arange(64), OTHER_CUBE, torch.arange(64, 128))
def _one_of_two_videos_looks_at_the_other(x: Tensor, at: Tensor, y: Tensor, y_at: Tensor) -> Tensor:
    both = _by_copy(_by_copy(torch.zeros(B, 128, C), at, tokens(x)), y_at, tokens(y))
    return attend(both[:, at], both[:, y_at], both[:, y_at])


@model(_UNKNOWN, PACKED, BEHIND, TEXT, FIRST, _positions(10)[torch.randperm(N + 10)])
def _packed_latents_whose_positions_are_shuffled(
    x: Tensor, at: Tensor, text: Tensor, text_at: Tensor, where: Tensor
) -> Tensor:
    where = torch.nn.functional.pad(where, (0, 0, 1, 0))
    return attend(_joined(x, at, text, text_at) * where.sum(-1, keepdim=True).cos())


@model(_UNKNOWN, torch.randn(N, C), torch.randperm(N), _positions())
def _a_look_up_of_as_many_rows_as_there_are_tokens(x: Tensor, which: Tensor, where: Tensor) -> Tensor:
    return attend((x.index_select(0, which) * where.sum(-1, keepdim=True).cos())[None])
