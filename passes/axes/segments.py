"""What stands in a sequence: videos in raster order, text, and what is neither, with the reason why.

[11 | 5*7*3]   text of 11 tokens, then a video of 5x7x3
[1*7*3 | ...]  a frame of its own before the video
[?105]         neither: its name was lost to an operator
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from svg_compile.passes.axes.axis import (
    Atom,
    Axis,
    Concat,
    Kind,
    atoms_of,
    flat_segments,
    is_one,
    is_opaque,
    joined,
    length,
    resolve,
)
from svg_compile.passes.axes.naming import counted
from svg_compile.passes.axes.new_axes import opaque_atom


@dataclass(frozen=True)
class Video:
    """A segment that is a raster of frames x height x width, and the inputs that its axes come from."""

    frames: Any
    height: Any
    width: Any
    sources: frozenset[str]
    # The inputs along whose axes its frames ran.
    beside_frames: frozenset[str] = frozenset()

    @property
    def place(self) -> tuple[Any, Any]:
        return self.height, self.width

    @property
    def tokens(self) -> Any:
        return self.frames * self.height * self.width


def segments_of(axis: Axis) -> tuple[Axis, ...]:
    """What a sequence is concatenated of; itself where it is not.

    Videos joined along their frames are segments, too, unless coordinates count through all of their frames.
    """
    parts = resolve(axis)
    if not parts or not isinstance(parts[0], Concat) or (len(parts) > 1 and counted(parts[0])):
        return (parts,)
    rest = parts[1:]
    segments = (_kept(segment, rest) for segment in parts[0].segments)
    return tuple(inner for segment in segments for inner in segments_of(segment))


def _kept(segment: Axis, rest: Axis) -> Axis:
    """A segment of frames as a product: one frame that lost its name is dropped from it, and stays lost."""
    if rest and is_one(length(segment)) and any(atom.opaque for atom in atoms_of(segment)):
        return (opaque_atom(length(rest), (segment, rest)),)
    return (*segment, *rest)


def video_of(segment: Axis, unbatched: bool = False) -> Video | None:
    """The video that a segment is, None where it is not proven to be a raster of one.

    Each of its three axes must count whole tokens (no inner part of a split, as a window would have) and come from an
    axis of an input or what coordinates have proven of one, and no two from one input in another order than there.
    Height and width, where they are dimensions of one input, stand side by side: with something between them one of the
    two is channels.

    unbatched: the attention has no batch, so that an input [F, H, W, C] may have its frames along its first dimension.
    """
    parts = joined(segment)
    if parts and isinstance(parts[0], Concat):
        return _joined_videos(parts)
    atoms = tuple(part for part in parts if isinstance(part, Atom) and part.kind is Kind.NAMED and not part.inner)
    if made_before_a_break(segment) or resized(segment):
        return None
    if len(parts) != 3 or len(atoms) != 3 or len({id(atom.root) for atom in atoms}) != 3:
        return None
    origins = [atom.origin for atom in atoms if atom.origin is not None]
    assert len(origins) == 3
    sources = frozenset(origin.source for origin in origins)
    frames, height, width = (atom.size for atom in atoms)
    video = Video(frames, height, width, sources, frozenset(atoms[0].aligned))
    if unbatched and [origin.path for origin in origins] == [(0,), (1,), (2,)]:
        return video if len(sources) == 1 and origins[0].rank == 4 else None
    last: dict[str, tuple[int, ...]] = {}
    for origin in origins:
        # Dimension 0 is the batch.
        if origin.path <= last.get(origin.source, (0,)):
            return None
        last[origin.source] = origin.path
    _, height, width = origins
    if height.source == width.source and width.path[0] > height.path[0] + 1:
        return None
    return video


def _joined_videos(parts: Axis) -> Video | None:
    """Videos joined along their frames, of one height and width, whose frames coordinates count through."""
    frames, rest = parts[0], parts[1:]
    assert isinstance(frames, Concat)
    if len(rest) != 2 or not counted(frames):
        return None
    videos = [video_of((*segment, *rest)) for segment in flat_segments(frames)]
    if not any(videos) or not all(
        video is not None or frame_of_one((*segment, *rest)) for video, segment in zip(videos, flat_segments(frames))
    ):
        return None
    sources = frozenset().union(*(video.sources for video in videos if video is not None))
    return Video(frames.size, rest[0].size, rest[1].size, sources)


def is_text(segment: Axis, video: Video | None) -> bool:
    """Whether a segment may be attended as text beside a video: one axis that is not the video's.

    Any order will do, for text is seen by all and sees all: a piece of another input's one axis is text, too, and so is
    what was picked of one.
    """
    parts = joined(segment)
    if len(parts) > 1:
        return False
    if not is_opaque(segment):
        return True
    (atom,) = parts
    assert isinstance(atom, Atom)
    of = atom.rows if atom.piece is None else atom.piece.whole
    if of is None or len(of) != 1 or video is None:
        return False
    (whole,) = of
    if not isinstance(whole, Atom) or whole.origin is None or not whole.origin.given or whole.inner:
        return False
    return not video.sources & {whole.origin.source, *whole.aligned}


def may_be_open(segment: Axis) -> bool:
    """Whether a segment beside a video may be attended in full, as text is: nothing of it lost its name.

    That is exact whatever stands there, but what lost its name may be tokens of the video itself.
    """
    return not any(atom.opaque for atom in atoms_of(segment)) and not made_before_a_break(segment)


def frame_of_one(segment: Axis) -> bool:
    """Two neighbouring axes of a 5-D input: height and width of a video of one frame, whose axis of 1 is dropped."""
    parts = joined(segment)
    atoms = [part for part in parts if isinstance(part, Atom)]
    if len(parts) != 2 or len(atoms) != 2 or any(atom.origin is None or atom.inner for atom in atoms):
        return False
    first, second = (atom.origin for atom in atoms)
    assert first is not None
    assert second is not None
    return first.source == second.source and first.rank == 5 and second.path[0] == first.path[0] + 1


def made_before_a_break(segment: Axis) -> bool:
    """Whether it is made of axes of a tensor that the model made before a graph break, in an order that nobody saw."""
    return any(atom.origin is not None and not atom.origin.given for atom in atoms_of(segment))


def resized(segment: Axis) -> bool:
    """Whether it is made of axes that were interpolated to another size."""
    return any(atom.origin is not None and not atom.origin.exact for atom in atoms_of(segment))


def why_unknown(*axes: Axis) -> str:
    """What is known of why no grid is proven: the operator that took the name, or what is odd about the axes."""
    for axis in axes:
        if (why := lost_to(axis)) is not None:
            return why
    for segment in (segment for axis in axes for segment in segments_of(axis)):
        parts = joined(segment)
        atoms = [part for part in parts if isinstance(part, Atom) and part.origin is not None]
        if made_before_a_break(segment):
            return "made before a graph break, in an order that is not seen"
        if resized(segment):
            return "interpolated to another size"
        if len(parts) > 1 and any(atom.inner for atom in atoms):
            return "it runs over windows, parts of an axis"
        if len(atoms) > 1:
            dims = ", ".join(str(atom.origin.path[0]) for atom in atoms if atom.origin is not None)
            return f"it runs over dimensions {dims} of an input, which are not frames, height and width in this order"
    return ""


def lost_to(axis: Axis) -> str | None:
    """The operator, and its source line, that an axis lost its name to; None where none did."""
    atom = next((atom for atom in atoms_of(axis) if atom.opaque), None)
    if atom is None:
        return None
    return "" if atom.why is None else str(atom.why)
