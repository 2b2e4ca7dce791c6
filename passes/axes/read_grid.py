"""Read a sequence's axis: its largest video, and the tokens before and after it, which are attended in full.

[11 | 5*7*3]          ->  Grid(5, 7, 3, text_len=11, text_first=True)
[7*3 | 5*7*3 | 11]    ->  Grid(5, 7, 3, text_len=32, before=21): the 21 in front are moved behind the 11
[4*7*3 | 5*7*3]       ->  SEVERAL_GRIDS: more other tokens than are worth attending in full
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from svg_compile._compat.sizes import at_most, equal, holds, settled, size_hint
from svg_compile.decisions import Reason
from svg_compile.passes.axes.axis import Axis, length
from svg_compile.passes.axes.new_axes import free_axis
from svg_compile.passes.axes.segments import frame_of_one, is_text, may_be_open, segments_of, video_of, why_unknown
from svg_compile.passes.axes.text import show


@dataclass(frozen=True)
class Grid:
    """The token grid of one sequence; sizes may be symbolic.

    text_len: open tokens, which attend all and are attended by all. before: how many of these precede the video, where
    some follow it as well: for the attention, they are moved behind all others. note: the report's note on open tokens
    that are not text on one side. by_numbers: the number of frames is known from the values of an input that numbers
    them. unasked: how many keys at the beginning and at the end of the sequence have no query.
    """

    frames: Any
    height: Any
    width: Any
    text_len: Any = 0
    text_first: bool = False
    note: str = ""
    before: Any = 0
    by_numbers: bool = False
    unasked: tuple[Any, Any] = (0, 0)

    @property
    def sizes(self) -> tuple[Any, Any, Any, Any]:
        return self.frames, self.height, self.width, self.text_len

    @property
    def tokens(self) -> Any:
        return self.frames * self.height * self.width + self.text_len

    @property
    def moves(self) -> bool:
        """True if the open tokens in front of the video are moved behind all others."""
        return not (isinstance(self.before, int) and self.before == 0)

    @property
    def of_part(self) -> bool:
        """True if some keys are not queries."""
        return not all(isinstance(count, int) and count == 0 for count in self.unasked)

    @property
    def queries(self) -> Any:
        """How many of the tokens are queries."""
        return self.tokens - self.unasked[0] - self.unasked[1]


@dataclass(frozen=True)
class Refusal:
    """Why an attention has no grid."""

    reason: Reason
    detail: str = ""


def same_grid(left: Grid | None, right: Grid | None) -> bool:
    """True if two grids are equal; without text its side is irrelevant."""
    if left is None or right is None:
        return False
    if left.text_first is not right.text_first and not (left.text_len is right.text_len == 0):
        return False
    sizes = ((*grid.sizes, grid.before, *grid.unasked) for grid in (left, right))
    return all(holds(equal, a, b) for a, b in zip(*sizes))


# The largest share of a sequence that may be open, in tenths. At three of them half of all pairs are: more
# is not worth a plan.
OPEN_TENTHS = 3


def read_grid(axis: Axis, unbatched: bool, rises: Mapping[str, int]) -> Grid | Refusal:
    """Read a sequence axis: the largest video, with text or few other tokens before or after it.

    rises: by input, how many of its frame numbers rise; frames behind these are open, too.
    """
    segments = segments_of(axis)
    videos = [(video, at) for at, segment in enumerate(segments) if (video := video_of(segment, unbatched)) is not None]
    if not videos:
        return _no_video(axis, segments)
    video, at = max(videos, key=lambda found: size_hint(found[0].tokens))
    before, after = list(segments[:at]), list(segments[at + 1 :])
    others = [segment for segment in (*before, *after) if not is_text(segment, video)]
    unknown = [segment for segment in others if not may_be_open(segment)]
    if unknown:
        return Refusal(Reason.UNKNOWN_GRID, why_unknown(*unknown))
    frames = min((rises[source] for source in video.beside_frames if source in rises), default=None)
    if frames is not None and video.cut_of is not None:
        if not holds(equal, video.cut_of, frames):
            return Refusal(Reason.UNKNOWN_GRID, "frames were cut out of a video behind which others stand")
        frames = None
    if frames is not None:
        if not holds(equal, video.frames, frames):
            # The last frames of a raster are a segment behind it.
            tail = tuple(part for size in (video.frames - frames, *video.place) for part in free_axis(size))
            others, after = [*others, tail], [tail, *after]
        video = replace(video, frames=frames)
    if holds(equal, video.frames, 1):
        return Refusal(Reason.SINGLE_FRAME)
    in_front, behind = (sum(length(segment) for segment in side) for side in (before, after))
    beside = in_front + behind
    if others and not settled(at_most, 10 * beside, OPEN_TENTHS * (beside + video.tokens)):
        return Refusal(Reason.SEVERAL_GRIDS, f"{size_hint(beside)} of {size_hint(length(axis))} tokens are beside it")
    both = bool(before and after)
    note = _note(before, after, size_hint(beside) / size_hint(length(axis))) if others or both else ""
    sizes = video.frames, video.height, video.width, beside
    return Grid(*sizes, bool(before) and not both, note, in_front if both else 0, frames is not None)


def _no_video(axis: Axis, segments: Sequence[Axis]) -> Refusal:
    rest = [segment for segment in segments if not frame_of_one(segment)]
    plain = all(is_text(segment, None) for segment in rest)
    if plain and len(segments) - len(rest) == 1:
        return Refusal(Reason.SINGLE_FRAME)
    if plain and len(rest) < len(segments):
        return Refusal(Reason.UNKNOWN_GRID, "it was put together of single frames")
    return Refusal(Reason.NOT_VIDEO) if plain else Refusal(Reason.UNKNOWN_GRID, why_unknown(axis))


def _note(before: Sequence[Axis], after: Sequence[Axis], share: float) -> str:
    """The report's note on open tokens."""
    sides = [
        f"[{' | '.join(show(segment) for segment in side)}] {where}"
        for side, where in ((before, "in front of the video"), (after, "behind it" if before else "behind the video"))
        if side
    ]
    verb = "are" if len(before) + len(after) > 1 else "is"
    return f"{' and '.join(sides)} {verb} attended in full, {share:.0%} of the sequence"
