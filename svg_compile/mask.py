"""The mask, defined once: which keys a query attends.

Tokens are text, or video at (frame, place) in raster order, `area` = height * width places a frame. A query attends
a key iff

    the key is text, or the key is in frame 0 (the sink), or the query is text,
    or |block(query) - block(key)| <= half_width

where block is the token's rank in the head's order of the body (all frames but the first), in units of `block` tokens:

    spatial   rank = (frame - 1) * area + place             frame-major; negative in frame 0
    temporal  rank = place * (frames - 1) + max(frame - 1, 0)    place-major

The three functions of that formula use nothing but +, -, *, // and comparisons, on non-negative operands of //, so that
the same source runs on Python ints, on tensors, and under `triton.jit` (whose // truncates where Python's floors).
`tokens_at` and `mask_of` apply it to tensors of positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from svg_compile.layout import HeadKind, VideoLayout


def band_rank(frame, place, frames, area, temporal):
    """Rank of a video token in the order of a spatial (`temporal` = 0) or temporal (1) head."""
    body_frame = (frame > 0) * (frame - 1)
    return temporal * (place * (frames - 1) + body_frame) + (1 - temporal) * ((frame - 1) * area + place)


def band_block(rank, area, block):
    """Block of a rank: floor(rank / block), written so that no negative number is divided."""
    shift = (area + block - 1) // block
    return (rank + shift * block) // block - shift


def attends(query_is_text, key_is_text, key_frame, query_block, key_block, half_width):
    """The mask itself; `half_width` in blocks. What `key_frame` and the blocks are for a text token does not matter."""
    near = (query_block - key_block <= half_width) & (key_block - query_block <= half_width)
    return query_is_text | key_is_text | (key_frame == 0) | near


class Tokens(NamedTuple):
    """Of tokens of a sequence, each [N]: whether it is text, its frame, and its rank and block in a head's order.

    What stands for a text token in all but the first does not matter.
    """

    is_text: Tensor
    frame: Tensor
    rank: Tensor
    block: Tensor


def tokens_at(layout: VideoLayout, kind: HeadKind | int, positions: Tensor) -> Tokens:
    """The tokens at these positions of the sequence, int64 [N], for a spatial or temporal head."""
    video = positions - layout.video_start
    is_text = (video < 0) | (video >= layout.video)
    video = video.clamp(0, layout.video - 1)
    frame, place = video // layout.area, video % layout.area
    rank = band_rank(frame, place, layout.frames, layout.area, int(kind == HeadKind.TEMPORAL))
    return Tokens(is_text, frame, rank, band_block(rank, layout.area, layout.block))


def mask_of(layout: VideoLayout, kind: HeadKind | int, half_width: int, queries: Tensor, keys: Tensor) -> Tensor:
    """A head's mask, bool [M, N]: True where a query attends a key. queries, keys: positions, int64 [M] and [N]."""
    if kind == HeadKind.DENSE:
        return torch.ones(len(queries), len(keys), dtype=torch.bool, device=queries.device)
    row, column = tokens_at(layout, kind, queries), tokens_at(layout, kind, keys)
    near = row.block[:, None], column.block[None], half_width
    mask: Tensor = attends(row.is_text[:, None], column.is_text[None], column.frame[None], *near)
    return mask
