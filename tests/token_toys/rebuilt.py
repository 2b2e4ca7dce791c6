"""Tokens taken one by one and put together again by arithmetic, in another order: no grid may be named.

Each of these is exactly a shuffle, unless a comment says otherwise. No real model does this, but a proof must not
accept it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import CUBE, FRAMES, GRID, HEIGHT, MASK, OTHER_CUBE, WIDTH, B, C, N, attend, model, tokens, video


def frame(x: Tensor, i: int) -> Tensor:
    """The frame that takes the place of frame i: [B, C, 1, H, W]."""
    return x[:, :, FRAMES - 1 - i : FRAMES - i]


def at(i: int) -> Tensor:
    """1 at frame i, 0 elsewhere: [F, 1, 1]."""
    return (torch.arange(FRAMES) == i).float()[:, None, None]


def backwards() -> Tensor:
    """The matrix [N, N] that turns tokens around."""
    return torch.eye(N).flip(0)


def named(y: Tensor, mask: Tensor) -> Tensor:
    """Tokens [B, N, C] times a mask that has the video's axes."""
    return y * tokens(mask)


# ---- sums of terms, each at one place ------------------------------------------------------------------------------


@model("UNKNOWN_GRID")
def _concatenated_frame_by_frame(x: Tensor) -> Tensor:
    return attend(tokens(x + torch.cat(x.split(1, 2)[::-1], 2)))


@model("UNKNOWN_GRID", video(), MASK)
def _concatenated_token_by_token(x: Tensor, mask: Tensor) -> Tensor:
    return attend(named(torch.cat(tokens(x).split(1, 1)[::-1], 1), mask))


@model("UNKNOWN_GRID", video(), MASK)
def _concatenated_and_added_to_nothing(x: Tensor, mask: Tensor) -> Tensor:
    nothing = torch.cat([torch.zeros(B, C, 1, HEIGHT, WIDTH)] * FRAMES, 2)
    return attend(tokens((nothing + torch.cat(x.split(1, 2)[::-1], 2)) * mask))


@model("UNKNOWN_GRID", video(), MASK)
def _concatenated_row_by_row_and_written(x: Tensor, mask: Tensor) -> Tensor:
    y, out = torch.cat(x.split(1, 3)[::-1], 3), torch.zeros_like(x)
    for i, view in enumerate(out.unbind(1)):
        view.copy_(y.select(1, i))
    return attend(tokens(out * mask))


@model("UNKNOWN_GRID")
def _keys_concatenated_frame_by_frame(x: Tensor) -> Tensor:
    y = tokens(x + torch.cat(x.split(1, 2)[::-1], 2))
    return attend(tokens(x), y, y)


@model("UNKNOWN_GRID", video(), MASK)
def _summed(x: Tensor, mask: Tensor) -> Tensor:
    return attend(tokens(sum(at(i) * frame(x, i) for i in range(FRAMES)) * mask))


@model("UNKNOWN_GRID", video(), MASK)
def _summed_under_a_mask(x: Tensor, mask: Tensor) -> Tensor:
    return attend(tokens(sum(mask * at(i) * frame(x, i) for i in range(FRAMES))))


@model("UNKNOWN_GRID")
def _added_to_nothing(x: Tensor) -> Tensor:
    y = x * 0
    for i in range(FRAMES):
        y = y + (x * 0 + at(i)) * frame(x, i)
    return attend(tokens(y))


@model("UNKNOWN_GRID", video(), MASK)
def _chosen(x: Tensor, mask: Tensor) -> Tensor:
    y = x[:, :, :1]
    for i in range(FRAMES):
        y = torch.where(at(i) == 1, frame(x, i), y)
    return attend(tokens(y * mask))


@model("UNKNOWN_GRID")
def _filled_where_masked(x: Tensor) -> Tensor:
    y, numbers = tokens(x) * 1, x[0, 0].flatten()
    for i in range(N):
        y = y.masked_fill((torch.arange(N) == i)[:, None], numbers[N - 1 - i])
    return attend(y)


@model("UNKNOWN_GRID")
def _accumulated_in_place(x: Tensor) -> Tensor:
    y = x * 0
    for i in range(FRAMES):
        y.addcmul_(at(i), frame(x, i))
    return attend(tokens(y))


@model("UNKNOWN_GRID")
def _the_larger_of_two(x: Tensor) -> Tensor:
    y = x * 0
    for i in range(FRAMES):
        y = torch.maximum(y, at(i) * frame(x, i))
    return attend(tokens(y))


def _summed_of(pick: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
    """The sum of frames [B, C, 1, H, W] that `pick` takes, each at the place of another."""
    return attend(tokens(sum((pick(x, FRAMES - 1 - i) * at(i) for i in range(FRAMES)), x * 0)))


@model("UNKNOWN_GRID")
def _picked_by_a_tensor(x: Tensor) -> Tensor:
    return _summed_of(lambda x, i: x[:, :, torch.tensor([i])], x)


@model("UNKNOWN_GRID")
def _picked_by_a_list(x: Tensor) -> Tensor:
    return _summed_of(lambda x, i: x[:, :, [i]], x)


@model("UNKNOWN_GRID")
def _picked_by_index_select(x: Tensor) -> Tensor:
    return _summed_of(lambda x, i: x.index_select(2, torch.tensor([i])), x)


@model("UNKNOWN_GRID")
def _picked_by_a_gather(x: Tensor) -> Tensor:
    return _summed_of(lambda x, i: x.gather(2, torch.full((B, C, 1, HEIGHT, WIDTH), i)), x)


@model("UNKNOWN_GRID")
def _picked_by_padding_away(x: Tensor) -> Tensor:
    return _summed_of(lambda x, i: F.pad(x, (0, 0, 0, 0, -i, i + 1 - FRAMES)), x)


@model("UNKNOWN_GRID", video(), video())
def _picked_after_another_videos_frames_were_put_beside(x: Tensor, other: Tensor) -> Tensor:
    y, both = other * 0, other.unsqueeze(2) * 0 + x.unsqueeze(3)
    for i in range(FRAMES):
        y = y + both[:, :, FRAMES - 1 - i] * at(i)
    return attend(tokens(y))


@model("UNKNOWN_GRID", video(), MASK)
def _last_of_a_running_sum(x: Tensor, mask: Tensor) -> Tensor:
    y = (torch.eye(FRAMES).flip(0)[:, :, None, None] * x[:, :, None]).cumsum(3)[:, :, :, -1]
    return attend(tokens(y * mask))


@model("UNKNOWN_GRID", video(), MASK)
def _repeated_and_concatenated(x: Tensor, mask: Tensor) -> Tensor:
    y = torch.cat([x[:, :, 3:].expand(-1, -1, 2, -1, -1), x[:, :, :1].repeat(1, 1, 2, 1, 1)], 2)
    return attend(tokens(y * mask))


@model("UNKNOWN_GRID", video(), MASK)
def _padded_and_summed(x: Tensor, mask: Tensor) -> Tensor:
    pieces = (F.pad(frame(x, i), (0, 0, 0, 0, i, FRAMES - 1 - i)) for i in range(FRAMES))
    return attend(tokens(sum(pieces) * mask))


@model(f"{GRID}+1")
def _their_mean_as_a_token(x: Tensor) -> Tensor:
    # In order.
    both = torch.cat([tokens(x).mean(1, keepdim=True), tokens(x)], 1)
    return attend(torch.cat([both[:, 1:], both[:, :1]], 1))


@model(GRID, video(), torch.randn(B, 5, C))
def _a_word_added_to_all(x: Tensor, text: Tensor) -> Tensor:
    # In order: what is taken at a position is no token of the video's.
    return attend(tokens(x) * text[:, :1] + text[:, 0, None])


# ---- products with a permutation, and operators that hide one ------------------------------------------------------


@model("UNKNOWN_GRID", video(), MASK)
def _outer_products(x: Tensor, mask: Tensor) -> Tensor:
    y = sum((torch.arange(N) == i).float()[:, None] @ tokens(x)[0, N - 1 - i : N - i] for i in range(N))
    return attend(named(y, mask))


@model("UNKNOWN_GRID", video(), MASK)
def _a_batch_of_products(x: Tensor, mask: Tensor) -> Tensor:
    y = torch.bmm(backwards()[:, None], tokens(x)[0].expand(N, N, C))
    return attend(named(y.transpose(0, 1).expand(B, N, C), mask))


@model("UNKNOWN_GRID", video(), MASK)
def _attention_from_a_table(x: Tensor, mask: Tensor) -> Tensor:
    query, key = backwards().expand(B, 1, N, N) * 1e4, torch.eye(N).expand(B, 1, N, N)
    weights = (query @ key).softmax(-1)
    return attend(named((weights @ tokens(x)[:, None])[:, 0], mask))


@model(["CROSS_ATTENTION", "UNKNOWN_GRID"], torch.randn(1, 2, 6, 4), torch.randn(FRAMES, 12, 4))
def _attention_of_one_query_over_a_batch(x: Tensor, keys: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(x.flatten(1, 2)[:, None], keys[:, None], keys[:, None])
    y = y.reshape(1, 1, 12 * FRAMES, 4)
    return F.scaled_dot_product_attention(y, y, y)


@model("UNKNOWN_GRID", video(), MASK)
def _what_attention_returns_beside_its_result(x: Tensor, mask: Tensor) -> Tensor:
    y = tokens(x)[:, None]
    _, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(y.flip(2), y, y)
    return attend(named(sums.reshape(B, N, 1).expand(B, N, C), mask))


@model("UNKNOWN_GRID", video(), MASK)
def _the_bias_of_a_norm(x: Tensor, mask: Tensor) -> Tensor:
    y = F.layer_norm(torch.zeros(B, N, C), (N, C), bias=tokens(x).flip(1)[0])
    return attend(named(y, mask))


@model("UNKNOWN_GRID", video(), MASK)
def _the_bias_of_a_projection(x: Tensor, mask: Tensor) -> Tensor:
    y = F.linear(torch.zeros(B, C, 3), torch.zeros(N, 3), tokens(x)[0, :, 0].flip(0))
    return attend(named(y.transpose(1, 2), mask))


@model("UNKNOWN_GRID", video(), MASK)
def _the_kernel_of_a_convolution(x: Tensor, mask: Tensor) -> Tensor:
    y = F.conv1d(torch.ones(B, 1, C), tokens(x)[0, :, :1].flip(0)[:, :, None])
    return attend(named(y, mask))


@model("UNKNOWN_GRID", video(), MASK)
def _the_channels_of_a_convolution(x: Tensor, mask: Tensor) -> Tensor:
    y = F.conv1d(backwards()[None] * tokens(x)[:, :, :1], torch.ones(C, N, 1))
    return attend(named(y.transpose(1, 2), mask))


@model("UNKNOWN_GRID", video(5))
def _a_convolution_of_two_ends(x: Tensor) -> Tensor:
    # Frames 0, 2, 4, 1, 3.
    kernel = torch.eye(C)[:, :, None] * torch.tensor([1.0, 0, 0, 0, 0, 1])
    return attend(tokens(F.conv3d(x, kernel[..., None, None], stride=(2, 1, 1), padding=(5, 0, 0))))


@model("UNKNOWN_GRID", torch.randn(N // 2, C), MASK)
def _rows_looked_up_backwards(x: Tensor, mask: Tensor) -> Tensor:
    y = F.embedding(torch.arange(N - 1, -1, -1) % (N // 2), x)
    return attend(named(y.expand(B, N, C), mask))


# ---- what only two dimensions together, or the batch, show ---------------------------------------------------------


@model("UNKNOWN_GRID", CUBE, OTHER_CUBE)
def _named_by_a_cube_whose_axes_stand_otherwise(x: Tensor, mask: Tensor) -> Tensor:
    return attend(tokens(mask * x.transpose(3, 4)))


@model("UNKNOWN_GRID", CUBE, OTHER_CUBE)
def _beside_a_cube_whose_axes_stand_otherwise(x: Tensor, other: Tensor) -> Tensor:
    return attend(tokens(torch.cat([other, x.transpose(2, 4)], 1)) @ torch.ones(2 * C, C))


@model("UNKNOWN_GRID")
def _keys_of_the_next_sample(x: Tensor) -> Tensor:
    y = tokens(x).roll(1, 0)
    return attend(tokens(x), y, y)


@model("CROSS_ATTENTION")
def _keys_of_the_first_sample(x: Tensor) -> Tensor:
    y = tokens(x)[:1].expand(B, -1, -1)
    return attend(tokens(x), y, y)


@model("UNKNOWN_GRID")
def _frames_in_the_heads_of_query_and_key(x: Tensor) -> Tensor:
    y = x.unflatten(2, (2, 2)).permute(0, 3, 2, 4, 5, 1).flatten(2, 4) @ torch.eye(C)
    value = y.mean(1, keepdim=True).expand(-1, 2, FRAMES // 2 * HEIGHT * WIDTH, C)
    return F.scaled_dot_product_attention(y, y, value)
