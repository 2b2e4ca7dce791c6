"""The token layout of a video sequence, and how wide a band a density buys."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from functools import lru_cache

from svg_compile.errors import LayoutError
from svg_compile.mask import band_block, band_rank


class HeadKind(enum.IntEnum):
    """What one head attends to; the first column of a plan."""

    SPATIAL = 0
    TEMPORAL = 1
    DENSE = 2


@dataclass(frozen=True)
class VideoLayout:
    """One video segment in raster order (frame, height, width), with at most one text segment beside it.

    frames, height, width: the grid, in tokens. text_len: text tokens, before the video if `text_first`, else after
    it. block: granularity of the band in tokens, a power of two.
    """

    frames: int
    height: int
    width: int
    text_len: int = 0
    text_first: bool = False
    block: int = 128

    def __post_init__(self) -> None:
        for name, least in (("frames", 1), ("height", 1), ("width", 1), ("text_len", 0), ("block", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise LayoutError(f"VideoLayout.{name} must be an integer of at least {least}, got {value!r}.")
        if self.block & (self.block - 1):
            raise LayoutError(f"VideoLayout.block must be a power of two, got {self.block}: try 64, 128 or 256.")
        if not isinstance(self.text_first, bool):
            raise LayoutError(f"VideoLayout.text_first must be True or False, got {self.text_first!r}.")

    @property
    def area(self) -> int:
        """Tokens a frame."""
        return self.height * self.width

    @property
    def body(self) -> int:
        """Video tokens outside frame 0."""
        return (self.frames - 1) * self.area

    @property
    def video(self) -> int:
        """Video tokens."""
        return self.frames * self.area

    @property
    def tokens(self) -> int:
        """Length of the sequence, text included."""
        return self.text_len + self.video

    @property
    def video_start(self) -> int:
        """Position of the first video token."""
        return self.text_len if self.text_first else 0

    @property
    def text_start(self) -> int:
        """Position of the first text token."""
        return 0 if self.text_first else self.video

    @property
    def full_half_width(self) -> int:
        """The smallest half-width at which a head of either kind attends everything."""
        last = max(self.body - 1, 0) // self.block
        return last + (self.area + self.block - 1) // self.block

    def density(self, half_width: int, kind: HeadKind | int) -> float:
        """Share of all tokens**2 (query, key) pairs that a head computes, text and frame 0 included.

        Exact: it counts the pairs of `svg_compile.mask.attends`.
        """
        if half_width < 0:
            raise LayoutError(f"half_width must be at least 0 blocks, got {half_width}.")
        if HeadKind(kind) is HeadKind.DENSE:
            return 1.0
        return _attended_pairs(self, half_width, HeadKind(kind)) / self.tokens**2

    def half_width_for(self, density: float, kind: HeadKind | int) -> int:
        """The largest half-width, in blocks, whose density does not exceed `density`; 0 where none is that sparse."""
        if not (math.isfinite(density) and 0.0 < density <= 1.0):
            raise LayoutError(f"density must lie in (0, 1], got {density!r}.")
        return _half_width_for(self, float(density), HeadKind(kind))


@lru_cache(maxsize=1024)
def _half_width_for(layout: VideoLayout, density: float, kind: HeadKind) -> int:
    # The pair count never falls as the half-width grows, so bisect.
    low, high = 0, layout.full_half_width
    while low < high:
        middle = (low + high + 1) // 2
        if layout.density(middle, kind) <= density:
            low = middle
        else:
            high = middle - 1
    return low


def _attended_pairs(layout: VideoLayout, half_width: int, kind: HeadKind) -> int:
    """(query, key) pairs that the mask lets through, from the size of each query block's run of keys."""
    body, block = layout.body, layout.block
    open_keys = layout.text_len + layout.area
    pairs = layout.text_len * layout.tokens + layout.video * open_keys
    for query_block, queries in _queries_by_block(layout, kind).items():
        first = min(max(query_block - half_width, 0) * block, body)
        last = min(max(query_block + half_width + 1, 0) * block, body)
        pairs += queries * (last - first)
    return pairs


@lru_cache(maxsize=256)
def _queries_by_block(layout: VideoLayout, kind: HeadKind) -> dict[int, int]:
    """How many video queries, frame 0 included, fall in each block of the band."""
    block, area, body = layout.block, layout.area, layout.body
    counts: dict[int, int] = {}
    for index in range((body + block - 1) // block):
        counts[index] = min(block, body - index * block)
    for place in range(area):
        rank = band_rank(0, place, layout.frames, area, int(kind))
        index = band_block(rank, area, block)
        counts[index] = counts.get(index, 0) + 1
    return counts
