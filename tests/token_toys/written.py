"""Tokens written in place, through views and in parts, over tokens of other places: no grid may be named."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import (
    CUBE,
    FRAMES,
    GRID,
    HEIGHT,
    OTHER_CUBE,
    PACKED,
    WIDTH,
    B,
    C,
    N,
    attend,
    model,
    positions,
    tokens,
    video,
)


@model("UNKNOWN_GRID", torch.randn(B, 4, 4, 4, 4))
def _channels_written_where_the_width_was(x: Tensor) -> Tensor:
    # [B, F, H, W, C] with as many channels as columns, told apart only by where they come from.
    out = torch.zeros_like(x)
    out.transpose(3, 4).copy_(x)
    y = out.flatten(1, 3).unsqueeze(1)
    return F.scaled_dot_product_attention(y, y, y)


def _swap(out: Tensor, y: Tensor) -> Tensor:
    out[:, : N // 2] = y[:, N // 2 :]
    out[:, N // 2 :] = y[:, : N // 2]
    return out


@model("UNKNOWN_GRID")
def _halves_swapped_by_writes(x: Tensor) -> Tensor:
    y = tokens(x)
    return attend(_swap(torch.empty_like(y), y) + y)


@model("UNKNOWN_GRID")
def _halves_swapped_in_a_clone(x: Tensor) -> Tensor:
    y = tokens(x)
    return attend(_swap(y.clone(), y))


@model("UNKNOWN_GRID")
def _rows_written_backwards(x: Tensor) -> Tensor:
    y, out = tokens(x), torch.zeros(B, N, C)
    for i in range(3):
        out[:, i] = y[:, N - 1 - i]
    return attend(out + y)


@model("UNKNOWN_GRID")
def _written_through_a_view_of_a_view(x: Tensor) -> Tensor:
    y = tokens(x)
    out = y.clone()
    out.unflatten(1, (2, -1))[:, 0].copy_(y[:, N // 2 :])
    return attend(out)


@model("UNKNOWN_GRID")
def _written_through_as_strided(x: Tensor) -> Tensor:
    y = tokens(x).contiguous()
    out = y.clone()
    out.as_strided((B, N, C), (N * C, C, 1)).copy_(y.flip(1))
    return attend(out)


@model("UNKNOWN_GRID")
def _a_strided_view_taken_before_the_write(x: Tensor) -> Tensor:
    y = torch.cat([tokens(x), tokens(x)], 1)
    out = torch.empty(B, 2 * N, C)
    view = out[:, ::2]
    out.copy_(y)
    return attend(view + tokens(x))


@model("UNKNOWN_GRID")
def _written_by_out(x: Tensor) -> Tensor:
    y, out = tokens(x), torch.empty(B, N, C)
    torch.add(y.flip(1), 0, out=out)
    return attend(out + y)


@model("UNKNOWN_GRID")
def _written_by_index_put(x: Tensor) -> Tensor:
    y, out = tokens(x), torch.zeros(B, N, C)
    out[:, torch.arange(N).flip(0)] = y
    return attend(out + y)


@model("UNKNOWN_GRID")
def _written_by_index_copy(x: Tensor) -> Tensor:
    y, out = tokens(x), torch.zeros(B, N, C)
    out.index_copy_(1, torch.arange(N).flip(0), y)
    return attend(out + y)


@model("UNKNOWN_GRID")
def _another_half_written_into_the_tokens(x: Tensor) -> Tensor:
    y = tokens(x).clone()
    y[:, : N // 2] += y[:, N // 2 :]
    return attend(y)


@model("UNKNOWN_GRID")
def _frames_written_a_frame_later(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :, 1:] = y[:, :, :-1] * 1
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _later_frames_written_backwards(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :, 1:] = y[:, :, 1:].flip(2)
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _frames_written_backwards_one_by_one(x: Tensor) -> Tensor:
    y = x * 2
    for i in range(FRAMES):
        y[:, :, i] = x[:, :, FRAMES - 1 - i]
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _first_frame_written_last(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :, :1] = x[:, :, -1:]
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _tokens_written_backwards_into_others(x: Tensor) -> Tensor:
    y = tokens(x) + 1
    for i in range(N):
        y[:, i] = tokens(x)[:, N - 1 - i]
    return attend(y)


@model("UNKNOWN_GRID", PACKED)
def _packed_tokens_written_backwards(x: Tensor) -> Tensor:
    y = x * positions()
    for i in range(N):
        y[:, i] = x[:, N - 1 - i]
    return attend(y)


@model("UNKNOWN_GRID", video(5, 4, 3))
def _frames_written_along_rows(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :, 1:] = y[:, :, 1:] + y[:, :, :1].transpose(2, 3)
    return attend(tokens(y))


@model("UNKNOWN_GRID", video(5, 4, 3))
def _rows_take_the_place_of_frames(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :, 1:, :, :1] = y[:, :, :4, :, :1].transpose(2, 3)
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _one_frame_written_over_several(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :, :2] = x[:, :, -1:]
    y[:, :, 2:] = x[:, :, :1]
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _one_frame_added_over_several(x: Tensor) -> Tensor:
    y = x * 2
    part = y[:, :, :2]
    part.mul_(0)
    part.add_(x[:, :, 3:])
    return attend(tokens(y))


@model("NOT_VIDEO", PACKED[0])
def _tokens_without_a_batch_written_backwards(x: Tensor) -> Tensor:
    y = x * positions()[0]
    for i in range(N):
        y[i] = x[N - 1 - i]
    return attend(y[None])


@model("UNKNOWN_GRID", CUBE, OTHER_CUBE)
def _another_cube_copied_with_its_axes_swapped(x: Tensor, y: Tensor) -> Tensor:
    out = x * 1
    out.copy_(y.transpose(2, 4))
    return attend(tokens(out))


@model("UNKNOWN_GRID", video(), torch.randn(B, FRAMES, 3, HEIGHT, WIDTH))
def _channels_of_another_copied_over_the_frames(x: Tensor, y: Tensor) -> Tensor:
    out = x * 1
    out.copy_(y.mean(2)[:, None])
    return attend(tokens(out))


@model(GRID, video(), video())
def _another_video_copied_as_it_is(x: Tensor, y: Tensor) -> Tensor:
    out = x * 1
    out.copy_(y)
    return attend(tokens(out))


@model("UNKNOWN_GRID")
def _numbers_written_backwards(x: Tensor) -> Tensor:
    numbers, y = x[0, 0].flatten(), tokens(x) * 1
    for i in range(N):
        y[:, i] = numbers[N - 1 - i]
    return attend(y)


@model("UNKNOWN_GRID", CUBE)
def _written_where_one_axis_stands_twice(x: Tensor) -> Tensor:
    zeros = torch.zeros(4)
    out = zeros[:, None, None] + zeros[None, :, None] + torch.zeros(4)
    view = out.detach()
    out.copy_(x[0, 0])
    y = x[0, 0].mean((1, 2))[:, None, None] + view.mean(1)[None]
    return attend(tokens(y.expand(B, C, 4, 4, 4)))


@model("UNKNOWN_GRID")
def _frames_copied_into_a_buffer_and_added(x: Tensor) -> Tensor:
    y = x * 0
    for i in range(FRAMES):
        buffer = torch.zeros(B, C, FRAMES, HEIGHT, WIDTH)
        buffer.copy_(x[:, :, FRAMES - 1 - i : FRAMES - i])
        y = y + (x * 0 + buffer) * (torch.arange(FRAMES) == i)[:, None, None]
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _a_buffer_filled_number_by_number(x: Tensor) -> Tensor:
    numbers, buffer = x[0, 0].flatten(), torch.zeros(N)
    for i in range(N):
        buffer[i].fill_(numbers[N - 1 - i])
    return attend(tokens(x) * 0 + buffer[:, None])
