"""The token layout of a video sequence, and how wide a band a density buys."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

from svg_compile.errors import LayoutError

# The kernels count tokens in int32.
_MOST_TOKENS = 2**31 - 1


class HeadKind(enum.IntEnum):
    """The kind of one head's mask; the first column of a plan."""

    SPATIAL = 0
    TEMPORAL = 1
    DENSE = 2


@dataclass(frozen=True)
class VideoLayout:
    """One video segment in raster order (frame, height, width), with at most one text segment before or after it.

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
        if max(self.tokens, self.block) > _MOST_TOKENS:
            raise LayoutError(
                f"{self} has {self.tokens} tokens in blocks of {self.block}, at most {_MOST_TOKENS} can be counted. "
                "Sizes are in tokens of the transformer, not in pixels."
            )

    @classmethod
    def of(cls, grid: Sequence[int]) -> VideoLayout:
        """The layout that `grid` lists."""
        frames, height, width, text_len, text_first, block = grid
        return cls(frames, height, width, text_len, bool(text_first), block)

    @property
    def grid(self) -> list[int]:
        """All of it as integers, which the ops take as one argument: a text that comes first is 1."""
        return [self.frames, self.height, self.width, self.text_len, int(self.text_first), self.block]

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
        if isinstance(half_width, bool) or not isinstance(half_width, int) or half_width < 0:
            raise LayoutError(f"half_width must be an integer of at least 0, in blocks, got {half_width!r}.")
        kind = _kind(kind)
        if kind is HeadKind.DENSE:
            return 1.0
        return _attended_pairs(self, half_width, kind) / self.tokens**2

    def half_width_for(self, density: float, kind: HeadKind | int) -> int:
        """The largest half-width, in blocks, whose density does not exceed `density`; 0 where none is that sparse."""
        return _half_width_for(self, checked_density(density), _kind(kind))


def checked_density(density: float) -> float:
    """The density as a float; LayoutError where it is no number above 0 and up to 1."""
    # NaN fails both comparisons.
    if isinstance(density, bool) or not isinstance(density, Real) or not 0.0 < density <= 1.0:
        raise LayoutError(f"density must lie in (0, 1], got {density!r}.")
    return float(density)


def _kind(kind: HeadKind | int) -> HeadKind:
    try:
        return HeadKind(kind)
    except ValueError:
        known = ", ".join(f"{each.value} ({each.name})" for each in HeadKind)
        raise LayoutError(f"a head's kind must be one of {known}, got {kind!r}.") from None


@lru_cache(maxsize=1024)
def _half_width_for(layout: VideoLayout, density: float, kind: HeadKind) -> int:
    # The density never falls as the half-width grows. Python's own bisect is C code, which Dynamo cannot trace.
    low, high = 0, layout.full_half_width
    while low < high:
        middle = (low + high + 1) // 2
        if layout.density(middle, kind) <= density:
            low = middle
        else:
            high = middle - 1
    return low


def _attended_pairs(layout: VideoLayout, half_width: int, kind: HeadKind) -> int:
    """(query, key) pairs that the mask lets through, in closed form: no loop over tokens or blocks."""
    area, frames = layout.area, layout.frames
    pairs = layout.text_len * layout.tokens + layout.video * (layout.text_len + area)
    # The ranks of the queries (first, step, count): those of frame 0, then those of the body.
    first_frame = (0, frames - 1, area) if kind is HeadKind.TEMPORAL else (-area, 1, area)
    for ranks in (first_frame, (0, 1, layout.body)) if layout.body else ():
        # The keys of a query: from half_width blocks before its own block, to half_width blocks behind it.
        pairs += _block_starts(layout, half_width + 1, *ranks) - _block_starts(layout, -half_width, *ranks)
    return pairs


def _block_starts(layout: VideoLayout, shift: int, first: int, step: int, count: int) -> int:
    """Sum over the ranks first, first + step, ... (count of them) of where the block `shift` blocks on begins in the
    body: clipped to 0 .. body.
    """
    block, body = layout.block, layout.body
    first += shift * block

    def below(rank: int) -> int:
        return min(max((rank - first + step - 1) // step, 0), count)

    low, high = below(block), below((body + block - 1) // block * block)
    return block * _floor_sum(high - low, step, first + low * step, block) + (count - high) * body


def _floor_sum(count: int, step: int, start: int, divisor: int) -> int:
    """The sum of (start + i * step) // divisor over i = 0 .. count - 1, computed as Euclid's algorithm does."""
    total = 0
    while count:
        total += count * (count - 1) // 2 * (step // divisor) + count * (start // divisor)
        step, start = step % divisor, start % divisor
        top = step * count + start
        count, start, step, divisor = top // divisor, top % divisor, divisor, step
    return total
