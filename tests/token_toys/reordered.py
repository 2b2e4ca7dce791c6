"""Tokens moved by an operator, so that they no longer stand in raster order: no grid may be named."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import CUBE, GRID, B, C, N, attend, model, positions, tokens


@model("UNKNOWN_GRID")
def _frames_last(x: Tensor) -> Tensor:
    return attend(tokens(x.permute(0, 1, 3, 4, 2)))


@model("UNKNOWN_GRID", CUBE)
def _cube_axes_swapped(x: Tensor) -> Tensor:
    return attend(tokens(x.transpose(2, 3)))


@model("UNKNOWN_GRID", CUBE)
def _cube_plus_its_transpose(x: Tensor) -> Tensor:
    return attend(tokens(x + x.transpose(2, 3)))


@model("UNKNOWN_GRID", CUBE, CUBE)
def _cube_plus_another_transposed(x: Tensor, y: Tensor) -> Tensor:
    return attend(tokens(x + y.transpose(3, 4)))


@model("UNKNOWN_GRID")
def _windows_in_the_batch(x: Tensor) -> Tensor:
    y = x.unflatten(2, (2, 2)).permute(0, 2, 1, 3, 4, 5).flatten(0, 1)
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _dilated_windows_in_the_batch(x: Tensor) -> Tensor:
    y = x.unflatten(2, (2, 2)).permute(0, 3, 1, 2, 4, 5).flatten(0, 1)
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _windows_in_the_heads(x: Tensor) -> Tensor:
    y = x.unflatten(2, (2, 2)).permute(0, 3, 2, 4, 5, 1).flatten(2, 4)
    return F.scaled_dot_product_attention(y, y, y)


@model("UNKNOWN_GRID")
def _dilated_windows_in_the_heads_by_stack(x: Tensor) -> Tensor:
    y = torch.stack(x.unflatten(2, (2, 2)).unbind(3), 1).flatten(3).transpose(2, 3)
    return F.scaled_dot_product_attention(y, y, y)


@model("UNKNOWN_GRID")
def _convolution_over_windows(x: Tensor) -> Tensor:
    y = x.unflatten(2, (2, 2)).permute(0, 3, 1, 2, 4, 5).flatten(0, 1)
    return attend(tokens(F.conv3d(y, torch.ones(C, C, 1, 1, 1))))


@model("UNKNOWN_GRID")
def _rolled(x: Tensor) -> Tensor:
    return attend(tokens(torch.roll(x, 1, 3)))


@model("UNKNOWN_GRID")
def _rolled_residual(x: Tensor) -> Tensor:
    return attend(tokens(x + torch.roll(x, (1, 1), (3, 4))))


@model("UNKNOWN_GRID")
def _flipped(x: Tensor) -> Tensor:
    return attend(tokens(x.flip(2)))


@model("UNKNOWN_GRID")
def _shuffled(x: Tensor) -> Tensor:
    return attend(tokens(x)[:, torch.arange(N).flip(0)])


@model("UNKNOWN_GRID")
def _gathered(x: Tensor) -> Tensor:
    index = torch.arange(N).flip(0)[None, :, None].expand(B, N, C)
    return attend(tokens(x).gather(1, index))


@model("UNKNOWN_GRID")
def _index_selected(x: Tensor) -> Tensor:
    return attend(tokens(x).index_select(1, torch.arange(N).flip(0)))


@model("UNKNOWN_GRID")
def _looked_up(x: Tensor) -> Tensor:
    rows = F.embedding(torch.arange(N).flip(0), tokens(x)[0])
    return attend(rows[None])


@model(["UNKNOWN_GRID", GRID])
def _shuffled_then_a_table_of_the_other_stream(x: Tensor) -> Tensor:
    table = torch.zeros(1, N, C) + 1
    y = tokens(x)
    shuffled = y[:, torch.arange(N).flip(0)] + table
    return attend(shuffled) + attend(y + table)


@model("UNKNOWN_GRID")
def _permuted_by_a_matrix(x: Tensor) -> Tensor:
    y = torch.eye(N).flip(0) @ tokens(x)
    return attend(y + tokens(x))


@model("NOT_VIDEO")
def _permuted_by_a_matrix_then_coordinates(x: Tensor) -> Tensor:
    return attend(torch.eye(N).flip(0) @ tokens(x) + positions())


@model("NOT_VIDEO")
def _mixed_by_a_sum(x: Tensor) -> Tensor:
    y = (torch.eye(N).flip(0)[None, :, :, None] * tokens(x)[:, None]).sum(2)
    return attend(y + positions())


@model("UNKNOWN_GRID")
def _stacked_backwards(x: Tensor) -> Tensor:
    return attend(tokens(torch.stack(x.unbind(2)[::-1], 2)) + tokens(x))


@model("UNKNOWN_GRID")
def _every_other_row(x: Tensor) -> Tensor:
    return attend(tokens(x[:, :, ::2]))


@model("UNKNOWN_GRID")
def _every_other_row_by_select(x: Tensor) -> Tensor:
    return attend(tokens(x.unflatten(2, (2, 2)).select(3, 0)))


@model("UNKNOWN_GRID")
def _halves_swapped_by_cat(x: Tensor) -> Tensor:
    y = tokens(x)
    return attend(torch.cat([y[:, N // 2 :], y[:, : N // 2]], 1))


@model("UNKNOWN_GRID")
def _halves_swapped_by_cat_residual(x: Tensor) -> Tensor:
    y = tokens(x)
    return attend(y + torch.cat([y[:, N // 2 :], y[:, : N // 2]], 1))


@model("UNKNOWN_GRID")
def _padded_on_both_sides(x: Tensor) -> Tensor:
    return attend(tokens(F.pad(x, (1, 1))))


@model("UNKNOWN_GRID")
def _upsampled(x: Tensor) -> Tensor:
    return attend(tokens(F.interpolate(x, scale_factor=2.0)))


@model("UNKNOWN_GRID")
def _transposed_convolution(x: Tensor) -> Tensor:
    return attend(tokens(F.conv_transpose3d(x, torch.ones(C, C, 2, 1, 1), stride=(2, 1, 1))))


@model("UNKNOWN_GRID")
def _pixel_shuffled(x: Tensor) -> Tensor:
    y = F.pixel_shuffle(x.transpose(1, 2), 2).transpose(1, 2)
    return attend(tokens(torch.cat([y] * 4, 1)))


@model("UNKNOWN_GRID")
def _unfolded(x: Tensor) -> Tensor:
    y = x.unfold(2, 2, 1).movedim(-1, 1)
    return attend(tokens(y[:, 0] + y[:, 1]))


@model("UNKNOWN_GRID")
def _repeated_frames(x: Tensor) -> Tensor:
    return attend(tokens(x.repeat_interleave(2, 2)))


@model("UNKNOWN_GRID")
def _repeated_tokens_then_halved(x: Tensor) -> Tensor:
    return attend(tokens(x).repeat(1, 2, 1)[:, N // 2 : -N // 2])


@model("UNKNOWN_GRID")
def _sorted(x: Tensor) -> Tensor:
    return attend(tokens(x).sort(1)[0])


@model("UNKNOWN_GRID")
def _rows_of_a_table_by_data_in_another_order(x: Tensor) -> Tensor:
    rows = tokens(x).flip(1).argmax(-1)[0]
    return attend(tokens(x) + torch.ones(C, C).index_select(0, rows))


@model(GRID)
def _rows_of_a_table_by_data_in_order(x: Tensor) -> Tensor:
    return attend(tokens(x) + torch.ones(C, C).index_select(0, tokens(x).argmax(-1)[0]))
