"""Queries that are a part of the keys: video that attends to text too, frames that attend to earlier frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from token_toys import CUBE, GRID, OTHER_CUBE, B, C, N, attend, model, tokens, video

TEXT = torch.randn(B, 11, C)
AREA = 12


def _over(query: Tensor, keys: Tensor, **more: Tensor) -> Tensor:
    return attend(query, keys, keys, **more)


@model(f"11+{GRID}", video(), TEXT)
def _video_looks_at_text_in_front_of_it(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([text, tokens(x)], 1))


@model(f"{GRID}+11", video(), TEXT)
def _video_looks_at_text_behind_it(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([tokens(x), text], 1))


@model(f"5+{GRID}+6", video(), TEXT)
def _video_looks_at_text_on_both_sides(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([text[:, :5], tokens(x), text[:, 5:]], 1))


@model(f"12+{GRID}", video(), video(1))
def _video_looks_at_a_frame_of_another_one(x: Tensor, y: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([tokens(y), tokens(x)], 1))


@model("12+4*2*6", video(5))
def _frames_look_at_the_one_before_them(x: Tensor) -> Tensor:
    return _over(tokens(x)[:, AREA:], tokens(x))


@model("12+4*2*6", video(5))
def _frames_that_were_cut_before_they_were_tokens(x: Tensor) -> Tensor:
    return _over(tokens(x[:, :, 1:]), tokens(x))


@model("4*2*6+12", video(5))
def _frames_look_at_the_one_behind_them(x: Tensor) -> Tensor:
    return _over(tokens(x)[:, :-AREA], tokens(x))


@model("12+4*2*6+11", video(5), TEXT)
def _frames_and_text_look_at_the_frame_before_them(x: Tensor, text: Tensor) -> Tensor:
    both = torch.cat([tokens(x), text], 1)
    return _over(both[:, AREA:], both)


@model(f"11+{GRID}", video(), TEXT)
def _queries_scaled_and_keys_of_text_backwards(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x) * 2, torch.cat([text.flip(1), tokens(x)], 1))


# ---- refused --------------------------------------------------------------------------------------------------------


@model("CROSS_ATTENTION", video(), video(), TEXT)
def _another_video_of_equal_length_looks(x: Tensor, y: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(y), torch.cat([text, tokens(x)], 1))


@model("UNKNOWN_GRID", video(), TEXT)
def _video_backwards_looks(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x).flip(1), torch.cat([text, tokens(x)], 1))


@model("CROSS_ATTENTION", video(), TEXT)
def _video_looks_at_itself_backwards(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([text, tokens(x).flip(1)], 1))


@model("CROSS_ATTENTION", CUBE, TEXT)
def _queries_of_a_cube_turned(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x.transpose(2, 3)), torch.cat([text, tokens(x)], 1))


@model("CROSS_ATTENTION", CUBE, OTHER_CUBE, TEXT)
def _a_cube_looks_at_another_one(x: Tensor, y: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([text, tokens(y)], 1))


@model("CROSS_ATTENTION")
def _keys_with_the_video_twice(x: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([tokens(x), tokens(x)], 1))


@model("CROSS_ATTENTION", video(), TEXT)
def _keys_with_the_video_twice_and_text(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([tokens(x), text[:, :5], tokens(x)], 1))


@model("CROSS_ATTENTION", video(8))
def _every_other_frame_looks(x: Tensor) -> Tensor:
    return _over(tokens(x[:, :, ::2]), tokens(x))


@model("UNKNOWN_GRID", video(8))
def _all_frames_but_one_in_the_middle_look(x: Tensor) -> Tensor:
    return _over(torch.cat([tokens(x)[:, : 3 * AREA], tokens(x)[:, 4 * AREA :]], 1), tokens(x))


@model("UNKNOWN_GRID", video(8))
def _every_other_token_but_as_many_as_frames_behind(x: Tensor) -> Tensor:
    return _over(tokens(x).unflatten(1, (-1, 4))[:, :, 1:].flatten(1, 2), tokens(x))


@model("CROSS_ATTENTION")
def _the_last_half_looks(x: Tensor) -> Tensor:
    return _over(tokens(x)[:, N // 2 :], tokens(x))


@model("UNKNOWN_GRID", video(5))
def _tokens_that_begin_within_a_frame(x: Tensor) -> Tensor:
    return _over(tokens(x)[:, 5:], tokens(x))


@model("CROSS_ATTENTION", video(), torch.randn(B, 40, C))
def _more_text_than_is_worth_it(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([text, tokens(x)], 1))


@model("CROSS_ATTENTION", video(), TEXT)
def _values_in_another_order_than_keys(x: Tensor, text: Tensor) -> Tensor:
    return attend(tokens(x), torch.cat([text, tokens(x)], 1), torch.cat([tokens(x), text], 1))


@model("UNKNOWN_GRID", video(), TEXT)
def _keys_and_text_of_the_next_sample(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([text, tokens(x)], 1).roll(1, 0))


@model("MASK", video(), TEXT)
def _a_mask_that_hides_pairs(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([text, tokens(x)], 1), attn_mask=torch.ones(N, N + 11, dtype=torch.bool).tril(11))


@model("12+4*2*6", video(5), torch.ones(B, 1, 1, 60, dtype=torch.bool))
def _a_mask_that_hides_keys(x: Tensor, mask: Tensor) -> Tensor:
    return _over(tokens(x)[:, AREA:], tokens(x), attn_mask=mask)


@model("SINGLE_FRAME", video(1), torch.randn(B, 4, C))
def _one_frame_looks(x: Tensor, text: Tensor) -> Tensor:
    return _over(tokens(x), torch.cat([text, tokens(x)], 1))


@model("CROSS_ATTENTION", torch.randn(B, N, C), TEXT)
def _windows_that_look_at_all(x: Tensor, text: Tensor) -> Tensor:
    keys = torch.cat([text, x], 1)
    return F.scaled_dot_product_attention(x[:, None, : N // 3], keys[:, None], keys[:, None])
