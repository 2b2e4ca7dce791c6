"""Video tokens in raster order: the grid must be found, and nothing else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import CUBE, FRAMES, GRID, PACKED, B, C, N, attend, model, positions, tokens, video


@model(GRID)
def _plain(x: Tensor) -> Tensor:
    return attend(tokens(x))


@model("4*4*4", CUBE)
def _cube(x: Tensor) -> Tensor:
    return attend(tokens(x))


@model(GRID)
def _einsum_projections(x: Tensor) -> Tensor:
    w = torch.ones(3, C, C)
    q, k, v = torch.einsum("bnc,kcd->kbnd", tokens(x), w).unbind(0)
    return attend(q, k, v)


@model(GRID)
def _autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return attend(F.linear(tokens(x), torch.ones(C, C)))


@model(GRID)
def _no_grad_inside(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = tokens(x) * 2
    return attend(y)


@model("SINGLE_FRAME", video(2, 2, 4))
def _patches_leave_one_frame(x: Tensor) -> Tensor:
    return attend(tokens(F.conv3d(x, torch.ones(C, C, 2, 1, 1), stride=(2, 1, 1))))


@model("2*2*3", video(4, 4, 6))
def _strided_convolution(x: Tensor) -> Tensor:
    return attend(tokens(F.conv3d(x, torch.ones(C, C, 2, 2, 2), stride=2)))


@model(GRID)
def _dilated_convolution_beside(x: Tensor) -> Tensor:
    y = x + F.conv3d(x, torch.ones(C, C, 3, 1, 1), padding=(2, 0, 0), dilation=(2, 1, 1))
    return attend(tokens(y))


@model(GRID)
def _convolutions_for_q_k_v(x: Tensor) -> Tensor:
    q, k, v = (tokens(F.conv3d(x, torch.full((C, C, 1, 1, 1), float(i)))) for i in range(3))
    return attend(q, k, v)


@model("2*2*3", video(2, 4, 6))
def _patches_by_views(x: Tensor) -> Tensor:
    y = x.reshape(B, C, 2, 2, 2, 3, 2).permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
    return attend(F.linear(y, torch.ones(C, 4 * C)))


@model(GRID)
def _axes_swapped_and_back(x: Tensor) -> Tensor:
    return attend(tokens(x.transpose(2, 4).contiguous().transpose(2, 4)))


@model("2*4*6", video(2, 4, 6))
def _windows_put_back(x: Tensor) -> Tensor:
    y = x.unflatten(3, (2, 2)).unflatten(5, (3, 2)).permute(0, 3, 5, 1, 2, 4, 6).contiguous()
    return attend(tokens(y.permute(0, 3, 4, 1, 5, 2, 6).flatten(5, 6).flatten(3, 4)))


@model(GRID)
def _rope_by_slices_of_a_buffer(x: Tensor) -> Tensor:
    y, out = tokens(x), torch.empty(B, N, C)
    out[..., 0::2] = -y[..., 1::2]
    out[..., 1::2] = y[..., 0::2]
    return attend(y + out, y + out, y)


@model(f"{GRID}+5", video(), torch.randn(B, 5, C))
def _text_after(x: Tensor, text: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x), text], 1))


@model(f"6+{GRID}", video(), torch.randn(B, 5, C))
def _texts_before_nested_and_empty(x: Tensor, text: Tensor) -> Tensor:
    before = torch.cat([text[:, :0], torch.cat([text, text[:, :1]], 1)], 1)
    return attend(torch.cat([before, tokens(x), torch.zeros(B, 0, C)], 1))


@model(f"5+{GRID}", video(), torch.randn(B, 5, C))
def _a_table_written_into_part_of_a_table(x: Tensor, text: Tensor) -> Tensor:
    table = torch.zeros(1, 5 + N, C)
    table[:, 5:].copy_(positions().expand(1, N, C))
    return attend(torch.cat([text, tokens(x)], 1) + table)


@model(GRID, video(), torch.randn(B, 5, C))
def _video_cut_out_of_the_sequence(x: Tensor, text: Tensor) -> Tensor:
    both = torch.cat([text, tokens(x)], 1)
    return attend(both[:, -N:])


@model(GRID, video(), torch.randn(B, 5, C))
def _video_by_split(x: Tensor, text: Tensor) -> Tensor:
    both = torch.cat([text, tokens(x)], 1)
    return attend(both.split([5, N], dim=1)[1])


@model(GRID, video(), torch.randn(B, 5, C))
def _segment_written_in_place(x: Tensor, text: Tensor) -> Tensor:
    both = torch.cat([text, tokens(x)], 1)
    both[:, 5:] += 1
    both[:, :5] = 0
    return attend(both[:, 5:])


@model(GRID, video(), video(FRAMES - 1))
def _later_frames_take_a_pose(x: Tensor, pose: Tensor) -> Tensor:
    y = x * 2
    y[:, :, 1:] = y[:, :, 1:] + pose
    y[:, :, 1:] += pose * 2
    y[:, :, :1] *= 3
    return attend(tokens(y))


@model(GRID, PACKED)
def _packed_with_coordinates(x: Tensor) -> Tensor:
    return attend(x * positions(), x * positions(), x)


@model(GRID)
def _doubled_batch(x: Tensor) -> Tensor:
    return attend(tokens(torch.cat([x, x], 0)))


@model([GRID, "NOT_VIDEO", "CROSS_ATTENTION"], video(), torch.randn(B, N, C))
def _text_of_equal_length_shares_a_table(x: Tensor, text: Tensor) -> Tensor:
    table = torch.arange(N).float()[None, :, None].sin() + 1
    y, words = tokens(x) + table, text + table
    return attend(y) + attend(words) + attend(y, words, words)


@model([GRID, GRID, "CROSS_ATTENTION"], PACKED, torch.randn(B, N, C))
def _two_streams_of_equal_coordinates(x: Tensor, other: Tensor) -> Tensor:
    # Told so by the model, both are videos; they are not the same tokens.
    x, other = x * positions(), other * positions()
    return attend(x) + attend(other) + attend(x, other, other)


@model(["CROSS_ATTENTION", GRID], video(), video())
def _videos_that_are_added_later(x: Tensor, y: Tensor) -> Tensor:
    return attend(tokens(x), tokens(y), tokens(y)) + attend(tokens(x + y))


@model([GRID, "NOT_VIDEO"], video(), torch.randn(B, FRAMES, C))
def _audio_shares_the_frames_table(x: Tensor, audio: Tensor) -> Tensor:
    at = torch.arange(FRAMES).float()
    return attend(tokens(x + at[:, None, None])).sum() + attend(audio + at[:, None])


@model(GRID, video(), video())
def _samples_written_one_by_one(x: Tensor, z: Tensor) -> Tensor:
    y = x * 2
    for i in range(B):
        y[i] = z[i] + x[i]
    return attend(tokens(y))


@model("4*2*3")
def _pooled(x: Tensor) -> Tensor:
    return attend(tokens(F.avg_pool3d(x, (1, 1, 2))))
