"""A head kind's order of the tokens, as the CPU engine gathers them: body keys by rank, query rows by tile of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.mask import tokens_at

# Minimum query rows of a tile: with a smaller `block`, rows of several blocks share a tile and its edges are masked.
MIN_TILE = 64


@dataclass(frozen=True)
class TokenOrder:
    """The order of one head kind, in T tiles of R rows; positions index the whole sequence, text included.

    tile: ranks per tile, a multiple of the block. first_tile: number of the first tile, the one at index 0 of the
    tensors below (negative where frame 0 has negative ranks). body int64 [M]: the body's positions in rank order.
    rows int64 [T, R]: positions of each tile's queries, frame 0 included, padded by repeating the tile's last one.
    counts: T integers, the rows of each tile without padding. row_block int64 [T, R]: the block of each row.
    slot int64 [F * S]: the index in `rows` (flattened) of each video token.
    """

    tile: int
    first_tile: int
    body: Tensor
    rows: Tensor
    counts: tuple[int, ...]
    row_block: Tensor
    slot: Tensor


@lru_cache(maxsize=32)
def token_order(layout: VideoLayout, kind: HeadKind) -> TokenOrder:
    """The order of a spatial or temporal head."""
    tile = max(layout.block, MIN_TILE)
    video = torch.arange(layout.video, device="cpu")
    _, _, rank, block = tokens_at(layout, kind, layout.video_start + video)
    body = torch.empty(layout.body, dtype=torch.int64, device="cpu")
    body[rank[layout.area :]] = video[layout.area :]

    tile_of = torch.div(rank, tile, rounding_mode="floor")
    first_tile = int(tile_of.min())
    # Stable: a tile's rows stay in raster order, which has the best cache locality.
    by_tile = torch.argsort(tile_of, stable=True)
    counts = torch.bincount(tile_of - first_tile)
    starts = counts.cumsum(0) - counts
    widest = int(counts.max())
    column = torch.minimum(torch.arange(widest, device="cpu"), counts[:, None] - 1)
    tokens = by_tile[starts[:, None] + column]
    slot = torch.empty_like(video)
    within = torch.arange(layout.video, device="cpu") - starts[tile_of[by_tile] - first_tile]
    slot[by_tile] = (tile_of[by_tile] - first_tile) * widest + within
    return TokenOrder(
        tile=tile,
        first_tile=first_tile,
        body=body + layout.video_start,
        rows=tokens + layout.video_start,
        counts=tuple(counts.tolist()),
        row_block=block[tokens],
        slot=slot,
    )
