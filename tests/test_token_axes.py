"""Toy models that move tokens about: what the analysis proves of each, and what it must not be fooled by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from traced import axes_of, sites_of, verdict

# No two sizes are equal, but for the cube: there only the origin of an axis tells one from another.
B, C, FRAMES, HEIGHT, WIDTH = 2, 8, 4, 2, 6
N = FRAMES * HEIGHT * WIDTH
GRID = f"{FRAMES}*{HEIGHT}*{WIDTH}"
Model = Callable[..., Tensor]


def video(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(B, C, frames, height, width)


def tokens(x: Tensor) -> Tensor:
    """[B, C, F, H, W] -> [B, N, C]."""
    return x.flatten(2).transpose(1, 2)


def attend(q: Tensor, k: Tensor | None = None, v: Tensor | None = None, **more: Any) -> Tensor:
    """Attention of two heads over projections of [B, N, C]."""
    operands = [F.linear(t, torch.ones(C, C)) for t in (q, q if k is None else k, q if v is None else v)]
    heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in operands]
    return F.scaled_dot_product_attention(*heads, **more).transpose(1, 2).flatten(2)


MODELS: dict[str, tuple[Model, tuple[Tensor, ...], list[str]]] = {}


def model(expected: str | list[str], *inputs: Tensor) -> Callable[[Model], Model]:
    """Register a toy with its verdict, one an attention; its input is a video unless others are given."""

    def register(function: Model) -> Model:
        verdicts = [expected] if isinstance(expected, str) else expected
        MODELS[function.__name__.strip("_")] = (function, inputs or (video(),), verdicts)
        return function

    return register


CUBE = video(4, 4, 4)
PACKED = torch.randn(B, N, C)

# ---- in raster order ---------------------------------------------------------------------------------------------


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


def positions() -> Tensor:
    at = [torch.arange(n).float() for n in (FRAMES, HEIGHT, WIDTH)]
    grid = torch.stack(torch.meshgrid(*at, indexing="ij"), -1)
    return grid.flatten(0, 2).sum(-1, keepdim=True)[None]


# ---- not in raster order, or not all of it: must not be named ------------------------------------------------------


@model("UNKNOWN_GRID")
def _frames_last(x: Tensor) -> Tensor:
    return attend(tokens(x.permute(0, 1, 3, 4, 2)))


@model("UNKNOWN_GRID", CUBE)
def _cube_axes_swapped(x: Tensor) -> Tensor:
    return attend(tokens(x.transpose(2, 3)))


@model("UNKNOWN_GRID", torch.randn(B, 4, 4, 4, 4))
def _channels_written_where_the_width_was(x: Tensor) -> Tensor:
    # [B, F, H, W, C] with as many channels as columns, told apart only by where they come from.
    out = torch.zeros_like(x)
    out.transpose(3, 4).copy_(x)
    y = out.flatten(1, 3).unsqueeze(1)
    return F.scaled_dot_product_attention(y, y, y)


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
def _factorised_space(x: Tensor) -> Tensor:
    return attend(tokens(x.transpose(1, 2).flatten(0, 1)))


@model("NOT_VIDEO")
def _factorised_time(x: Tensor) -> Tensor:
    return attend(x.permute(0, 3, 4, 2, 1).flatten(0, 2))


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
def _half_of_the_frames(x: Tensor) -> Tensor:
    return attend(tokens(x[:, :, :2]))


@model("UNKNOWN_GRID", PACKED)
def _half_of_packed_tokens(x: Tensor) -> Tensor:
    return attend((x * positions())[:, : N // 2])


@model("UNKNOWN_GRID")
def _halves_swapped_by_cat(x: Tensor) -> Tensor:
    y = tokens(x)
    return attend(torch.cat([y[:, N // 2 :], y[:, : N // 2]], 1))


@model("UNKNOWN_GRID")
def _halves_swapped_by_cat_residual(x: Tensor) -> Tensor:
    y = tokens(x)
    return attend(y + torch.cat([y[:, N // 2 :], y[:, : N // 2]], 1))


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


@model(GRID, video(), video())
def _samples_written_one_by_one(x: Tensor, z: Tensor) -> Tensor:
    y = x * 2
    for i in range(B):
        y[i] = z[i] + x[i]
    return attend(tokens(y))


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
def _padded(x: Tensor) -> Tensor:
    return attend(tokens(F.pad(x, (1, 1))))


@model("UNKNOWN_GRID")
def _upsampled(x: Tensor) -> Tensor:
    return attend(tokens(F.interpolate(x, scale_factor=2.0)))


@model("UNKNOWN_GRID")
def _pooled(x: Tensor) -> Tensor:
    return attend(tokens(F.avg_pool3d(x, (1, 1, 2))))


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


@model("SEVERAL_GRIDS")
def _repeated_tokens(x: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x)] * 2, 1))


@model("UNKNOWN_GRID")
def _repeated_tokens_then_halved(x: Tensor) -> Tensor:
    return attend(tokens(x).repeat(1, 2, 1)[:, N // 2 : -N // 2])


@model("SEVERAL_GRIDS", video(), video(2))
def _two_videos(x: Tensor, y: Tensor) -> Tensor:
    return attend(torch.cat([tokens(x), tokens(y)], 1))


@model("SEVERAL_GRIDS", video(), torch.randn(B, 5, C))
def _text_on_both_sides(x: Tensor, text: Tensor) -> Tensor:
    return attend(torch.cat([text, tokens(x), text], 1))


@model("SEVERAL_GRIDS", video(), video(1))
def _an_image_before_the_video(x: Tensor, y: Tensor) -> Tensor:
    return attend(torch.cat([tokens(y), tokens(x)], 1))


@model("UNKNOWN_GRID", video(), video(1))
def _a_frame_before_the_frames(x: Tensor, y: Tensor) -> Tensor:
    return attend(tokens(torch.cat([y, x], 2)))


@model("CROSS_ATTENTION", video(), video())
def _another_video_of_equal_length(x: Tensor, y: Tensor) -> Tensor:
    return attend(tokens(x), tokens(y), tokens(y))


@model("CROSS_ATTENTION", video(), video())
def _values_of_another_video(x: Tensor, y: Tensor) -> Tensor:
    return attend(tokens(x), tokens(x), tokens(y))


@model("UNKNOWN_GRID")
def _keys_rolled(x: Tensor) -> Tensor:
    y = tokens(torch.roll(x, 1, 2))
    return attend(tokens(x), y, y)


@model("CROSS_ATTENTION", CUBE)
def _keys_transposed(x: Tensor) -> Tensor:
    y = tokens(x.transpose(2, 3))
    return attend(tokens(x), y, y)


@model("NOT_VIDEO", PACKED)
def _packed_without_coordinates(x: Tensor) -> Tensor:
    return attend(x)


@model("NOT_VIDEO", PACKED)
def _packed_with_one_count(x: Tensor) -> Tensor:
    at = torch.arange(N)
    return attend(x + (at // WIDTH + at % WIDTH).float()[:, None])


@model("NOT_VIDEO", PACKED)
def _packed_windows_with_coordinates(x: Tensor) -> Tensor:
    y = x.view(B, 2, N // 2, C)
    at = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in (2, 2, 6)], indexing="ij"), -1).sum(-1)
    y = y * at.flatten()[:, None]
    return F.scaled_dot_product_attention(y, y, y)


@model("UNKNOWN_GRID")
def _sorted(x: Tensor) -> Tensor:
    return attend(tokens(x).sort(1)[0])


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", MODELS)
def test_verdict(name: str, dynamic: bool) -> None:
    function, inputs, expected = MODELS[name]
    for tensor in inputs:
        # Channel counts are constants of a model.
        torch._dynamo.mark_static(tensor, 1 if tensor.dim() == 5 else 2)
    assert [verdict(site) for site in sites_of(function, *inputs, dynamic=dynamic)] == expected


# ---- models with state, child graphs, control flow ------------------------------------------------------------------


class _Written(nn.Module):
    """Writes a buffer of its own in forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("state", torch.zeros(B, N, C))

    def forward(self, x: Tensor) -> Tensor:
        y = tokens(x)
        if self.how == "flip":
            self.state.copy_(y.flip(1))
        elif self.how == "part":
            self.state[:, : N // 2] = y[:, N // 2 :]
        else:
            self.state.copy_(y)
        return attend(self.state if self.how == "alone" else self.state + y)


@pytest.mark.parametrize(
    ("how", "expected"), [("flip", "UNKNOWN_GRID"), ("part", "UNKNOWN_GRID"), ("straight", GRID), ("alone", GRID)]
)
def test_a_buffer_written_in_forward(how: str, expected: str) -> None:
    assert [verdict(site) for site in sites_of(_Written(how), video())] == [expected]


def test_multihead_attention_modules_are_left_alone() -> None:
    block = nn.MultiheadAttention(C, 2, batch_first=True).eval()
    sites = sites_of(lambda x: block(tokens(x), tokens(x), tokens(x), need_weights=False)[0], video())
    assert all(verdict(site) in (GRID, "UNKNOWN_GRID") for site in sites)


@torch.compiler.nested_compile_region
def _region(x: Tensor) -> Tensor:
    return attend(x * 2)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_shared_child_graph_of_one_grid(dynamic: bool) -> None:
    def forward(x: Tensor) -> Tensor:
        y = tokens(x)
        return _region(_region(y))

    x = video()
    torch._dynamo.mark_static(x, 1)
    found = {verdict(site) for site in sites_of(forward, x, dynamic=dynamic)}
    assert found == {GRID}


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_shared_child_graph_of_two_grids_is_refused(dynamic: bool) -> None:
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return _region(tokens(x)) + _region(tokens(y))

    inputs = video(4, 2, 6), video(2, 4, 6)
    for tensor in inputs:
        torch._dynamo.mark_static(tensor, 1)
    assert [verdict(site) for site in sites_of(forward, *inputs, dynamic=dynamic)] == ["SEVERAL_GRIDS"]


@pytest.mark.parametrize("kind", ["checkpoint", "cond"])
def test_other_higher_order_operators_are_refused(kind: str) -> None:
    def forward(x: Tensor) -> Tensor:
        y = tokens(x)
        if kind == "checkpoint":
            y = torch.utils.checkpoint.checkpoint(attend, y, use_reentrant=False)
        else:
            y = torch.cond(x.sum() > 0, attend, lambda t: (t * 2).contiguous(), (y.contiguous(),))
        return attend(y)

    found = [verdict(site) for site in sites_of(forward, video(), grad=False)]
    assert found[-1] in (GRID, "UNKNOWN_GRID")
    assert all(entry in ("HIGHER_ORDER", GRID, "UNKNOWN_GRID") for entry in found)
    if kind == "cond":
        assert found == ["HIGHER_ORDER", "UNKNOWN_GRID"]


# ---- what the analysis leaves behind --------------------------------------------------------------------------------


def test_a_tensor_that_changes_its_own_shape_leaves_the_examples_alone() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x * 1
        y.unsqueeze_(0)
        return attend(tokens(y[0]))

    assert [verdict(site) for site in sites_of(forward, video())] in ([GRID], ["UNKNOWN_GRID"])


def test_a_failing_run_restores_gradients_and_autocast() -> None:
    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attend(F.linear(tokens(x), torch.ones(C, C)))

    before = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
    axes_of(forward, video())
    assert (torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()) == before
