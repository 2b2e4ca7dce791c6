"""Buffers that are filled part by part, and other spellings of what models do: found where the order is the tokens'."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import FRAMES, GRID, HEIGHT, WIDTH, B, C, N, attend, model, tokens, video

TEXT = torch.randn(B, 11, C)
WORDS = torch.ones(B, 11, dtype=torch.int64)
FRAME = HEIGHT * WIDTH


def _projected(x: Tensor) -> Tensor:
    return F.linear(tokens(x) if x.dim() == 5 else x, torch.ones(C, C))


# ---- buffers ---------------------------------------------------------------------------------------------------------


@model(f"{GRID}+11", video(), TEXT)
def _video_and_text_into_one_buffer(x: Tensor, text: Tensor) -> Tensor:
    both = torch.empty(B, N + 11, C)
    both[:, :N] = _projected(x)
    both[:, N:] = _projected(text)
    return attend(both)


@model(f"5+{GRID}+11", video(), TEXT)
def _text_on_both_sides_of_a_buffer(x: Tensor, text: Tensor) -> Tensor:
    both, text = torch.zeros(B, N + 16, C), _projected(text)
    both[:, :5] = text[:, :5]
    both[:, -11:] = text
    both[:, 5 : 5 + N] = _projected(x)
    return attend(both)


@model(f"{GRID}+11", video(), TEXT)
def _a_buffer_s_views_made_before_they_are_written(x: Tensor, text: Tensor) -> Tensor:
    both = torch.empty(B, N + 11, C)
    first, last = both[:, :N], both[:, N:]
    first.copy_(_projected(x))
    last.copy_(_projected(text))
    return attend(both)


@model(GRID)
def _frames_written_one_by_one(x: Tensor) -> Tensor:
    out, y = torch.zeros(B, N, C), _projected(x)
    for i in range(FRAMES):
        out[:, i * FRAME : (i + 1) * FRAME] = y[:, i * FRAME : (i + 1) * FRAME]
    return attend(out)


@model("UNKNOWN_GRID")
def _frames_written_one_by_one_backwards(x: Tensor) -> Tensor:
    out, y = torch.zeros(B, N, C), _projected(x)
    for i in range(FRAMES):
        out[:, i * FRAME : (i + 1) * FRAME] = y[:, (FRAMES - 1 - i) * FRAME : (FRAMES - i) * FRAME]
    return attend(out)


@model("UNKNOWN_GRID", video(), TEXT)
def _text_written_over_the_last_tokens(x: Tensor, text: Tensor) -> Tensor:
    both = torch.empty(B, N + 11, C)
    both[:, :N] = _projected(x)
    both[:, N - 11 : N] = _projected(text)
    return attend(both)


@model("UNKNOWN_GRID")
def _every_other_position_of_a_buffer(x: Tensor) -> Tensor:
    out, y = torch.zeros(B, 2 * N, C), _projected(x)
    out[:, ::2] = y
    out[:, 1::2] = y
    return attend(out)


@model("UNKNOWN_GRID")
def _a_buffer_filled_through_two_rows_of_it(x: Tensor) -> Tensor:
    out, y = torch.zeros(B, N, C), _projected(x)
    rows = out.view(B, 2, N // 2, C)
    rows[:, 0] = y[:, N // 2 :]
    rows[:, 1] = y[:, : N // 2]
    return attend(out)


# ---- text that is modulated and cropped by each of query, key and value ----------------------------------------------


def _with_text_of_its_own(x: Tensor, text: Tensor, places: tuple[slice, ...]) -> Tensor:
    gate = F.linear(text[:, 0], torch.ones(C, C))[:, None]
    text = _projected(text) * gate
    operands = [torch.cat([_projected(x), text[:, place]], 1).unflatten(2, (2, -1)).transpose(1, 2) for place in places]
    return F.scaled_dot_product_attention(*operands)


@model(f"{GRID}+8", video(), TEXT)
def _modulated_text_cropped_alike(x: Tensor, text: Tensor) -> Tensor:
    return _with_text_of_its_own(x, text, (slice(8),) * 3)


@model("UNKNOWN_GRID", video(), TEXT)
def _modulated_text_cropped_otherwise_for_the_keys(x: Tensor, text: Tensor) -> Tensor:
    return _with_text_of_its_own(x, text, (slice(8), slice(3, 11), slice(8)))


# ---- masks -----------------------------------------------------------------------------------------------------------


@model(f"{GRID}+11", video(), TEXT, WORDS)
def _the_logarithm_of_a_mask(x: Tensor, text: Tensor, words: Tensor) -> Tensor:
    seen = torch.cat([words.new_ones(B, N), words], 1)
    return attend(torch.cat([tokens(x), text], 1), attn_mask=seen.float().log()[:, None, None])


@model("MASK", video(), TEXT, WORDS)
def _the_logarithm_of_more_than_a_mask(x: Tensor, text: Tensor, words: Tensor) -> Tensor:
    seen = torch.cat([words.new_ones(B, N) * 2, words], 1)
    return attend(torch.cat([tokens(x), text], 1), attn_mask=seen.float().log()[:, None, None])


@model("MASK")
def _frames_that_see_earlier_ones(x: Tensor) -> Tensor:
    frame = torch.arange(FRAMES).repeat_interleave(FRAME)
    return attend(tokens(x), attn_mask=frame[:, None] >= frame[None])


# ---- a number a frame ------------------------------------------------------------------------------------------------


@model(GRID, video(), torch.randn(B, FRAMES, C))
def _scaled_by_frame_repeated_over_its_tokens(x: Tensor, times: Tensor) -> Tensor:
    return attend(_projected(x) * (1 + _projected(times).repeat_interleave(FRAME, 1)))


@model(GRID, video(), torch.randn(B, FRAMES, C))
def _scaled_by_frame_in_its_own_dimension(x: Tensor, times: Tensor) -> Tensor:
    return attend((_projected(x).unflatten(1, (FRAMES, FRAME)) * _projected(times).unsqueeze(2)).flatten(1, 2))


@model("UNKNOWN_GRID")
def _odd_rows_turned_around(x: Tensor) -> Tensor:
    frames = list(x.unbind(2))
    frames[1::2] = [frame.flip(-1) for frame in frames[1::2]]
    return attend(torch.stack(frames, 1).permute(0, 1, 3, 4, 2).flatten(1, 3))


@model("UNKNOWN_GRID")
def _tokens_gathered_backwards(x: Tensor) -> Tensor:
    y = _projected(x)
    return attend(y.gather(1, torch.arange(N - 1, -1, -1)[None, :, None].expand(B, -1, C)))
