"""A tile's queries, and the keys that some or all of them attend: arithmetic that Triton's and Gluon's kernels share.

A tile's queries are consecutive in one of three runs: the text, frame 0, or the body (all frames but the first), whose
queries are in the head's order. All values fit into int32, and no negative number is divided: the tests run the same
source in Python. Kernels in Gluon call these functions as they are, as both languages have the same scalars.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from svg_compile.kernels.triton.tiles import band_block, band_rank


@triton.jit
def clamped_width(half_width, area, body, BAND):
    """The half-width, at most one that covers the whole body: the products of the band then fit into int32."""
    blocks = tl.cdiv(body, BAND)
    return tl.minimum(tl.maximum(half_width, -1), blocks + tl.cdiv(area, BAND))


@triton.jit
def query_run(tile, is_text, area, body, text_len, text_start, video_start, BLOCK_M: tl.constexpr):
    """(is_body, begin, length, start): the queries are begin, begin + 1, ... of a run; `start` is its first token."""
    first_tiles = tl.cdiv(area, BLOCK_M)
    is_body = (tile >= first_tiles) & (is_text == 0)
    begin = tl.where(is_body, tile - first_tiles, tile) * BLOCK_M
    length = tl.where(is_text, text_len, tl.where(is_body, body, area))
    start = tl.where(is_text, text_start, tl.where(is_body, video_start + area, video_start))
    return is_body, begin, length, start


@triton.jit
def open_keys(sees_all, area, video, text_len, TEXT_FIRST: tl.constexpr, APART: tl.constexpr):
    """(x_end, y_begin, y_end): the open keys are tokens [0, x_end) and [y_begin, y_end).

    APART: text and video are not in one run, also where they are adjacent.
    """
    seen = tl.where(sees_all, video, area)
    if TEXT_FIRST:
        x_end = text_len if APART else text_len + seen
        y_begin = x_end
        y_end = text_len + seen
    else:
        x_end = seen if APART else tl.where(sees_all, video + text_len, area)
        y_begin = tl.maximum(x_end, video)
        y_end = video + text_len
    return x_end, y_begin, y_end


@triton.jit
def query_ranks(begin, length, is_body, turn, frames, area, BLOCK_M: tl.constexpr):
    """(first, last): the ranks of a tile's first and last query. turn: 1 for a temporal head, else 0."""
    last = tl.minimum(begin + BLOCK_M, length) - 1
    first_rank = tl.where(is_body, begin, band_rank(0, begin, frames, area, turn))
    last_rank = tl.where(is_body, last, band_rank(0, last, frames, area, turn))
    return first_rank, last_rank


@triton.jit
def band_ranks(first_rank, last_rank, sees_all, half_width, area, body, BAND):
    """(low, high, full_low, full_high): ranks that some query of the tile attends, and that all attend."""
    first_block = band_block(first_rank, area, BAND)
    last_block = band_block(last_rank, area, BAND)
    end = tl.where(sees_all, 0, body)
    low = tl.minimum(tl.maximum((first_block - half_width) * BAND, 0), end)
    high = tl.minimum(tl.maximum((last_block + half_width + 1) * BAND, low), end)
    full_low = tl.minimum(tl.maximum((last_block - half_width) * BAND, low), high)
    full_high = tl.minimum(tl.maximum((first_block + half_width + 1) * BAND, full_low), high)
    return low, high, full_low, full_high
