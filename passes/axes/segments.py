"""The segments of a sequence: videos in raster order, text, and others, with the reason why they are neither.

[11 | 5*7*3]   text of 11 tokens, then a video of 5x7x3
[1*7*3 | ...]  a frame of its own before the video
[?105]         neither: its name was lost to an operator
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from svg_compile._compat.sizes import divides, holds
from svg_compile.passes.axes.axis import (
    Atom,
    Axis,
    Concat,
    Kind,
    Place,
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
    # The inputs along whose axes it ran, and along whose its frames did.
    beside: frozenset[str] = frozenset()
    beside_frames: frozenset[str] = frozenset()
    # Of how many frames it was cut; None for all of a video.
    cut_of: Any = None

    @property
    def place(self) -> tuple[Any, Any]:
        return self.height, self.width

    @property
    def tokens(self) -> Any:
        return self.frames * self.height * self.width


def segments_of(axis: Axis) -> tuple[Axis, ...]:
    """The segments that a sequence is concatenated from; the sequence itself if it is not concatenated.

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
    two is channels. Whole frames that were cut out of a video are one of so many frames.

    unbatched: the attention has no batch, so that an input [F, H, W, C] may have its frames along its first dimension.
    """
    parts = joined(segment)
    if parts and isinstance(parts[0], Concat):
        return _joined_videos(parts)
    parts, count = _whole_frames(parts)
    atoms = tuple(part for part in parts if isinstance(part, Atom) and part.kind is Kind.NAMED and not part.inner)
    if made_before_a_break(parts) or resized(parts):
        return None
    if len(parts) != 3 or len(atoms) != 3 or len({id(atom.root) for atom in atoms}) != 3:
        return None
    origins = [atom.origin for atom in atoms if atom.origin is not None]
    assert len(origins) == 3
    sources = frozenset(origin.source for origin in origins)
    frames, height, width = (atom.size for atom in atoms)
    aligned = frozenset().union(*(atom.aligned for atom in atoms))
    video = Video(
        frames if count is None else count,
        height,
        width,
        sources,
        aligned,
        frozenset(atoms[0].aligned),
        None if count is None else frames,
    )
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


def _whole_frames(parts: Axis) -> tuple[Axis, Any]:
    """(the axis that frames were cut out of, how many): of a video's tokens, or of its frames; else as it is, None."""
    first = parts[0] if parts else None
    piece = first.piece if isinstance(first, Atom) else None
    if piece is None:
        return parts, None
    whole, start, stop = piece
    whole = joined(whole)
    if len(parts) == 3 and len(whole) == 1:
        return (*whole, *parts[1:]), stop - start
    if len(parts) != 1 or len(whole) != 3:
        return parts, None
    frame = length(whole[1:])
    if not (holds(divides, frame, start) and holds(divides, frame, stop)):
        return parts, None
    return whole, stop // frame - start // frame


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
    sources, beside = (
        frozenset().union(*(getattr(video, name) for video in videos if video is not None))
        for name in ("sources", "beside")
    )
    return Video(frames.size, rest[0].size, rest[1].size, sources, beside)


def is_text(segment: Axis, video: Video | None) -> bool:
    """True if a segment may be attended as text: one axis that is not the video's.

    Any order will do, as text attends all and is attended by all: cut, picked or reordered parts of other inputs are
    text, too. Tokens of the video's own input that are none of its grid are limited in number, as another video is.
    """
    parts = joined(segment)
    if len(parts) > 1:
        return False
    if video is None:
        return not is_opaque(segment)
    places = [_places_of(atom) for atom in atoms_of(parts)]
    if any(place is None for place in places):
        return False
    sources = {source for place in places for source, _ in place or ()}
    return not sources & (video.sources | video.beside if is_opaque(segment) else video.sources)


def _places_of(atom: Atom) -> frozenset[Place] | None:
    """The inputs' dimensions that an atom may run over; None where it may be any."""
    of = atom.rows if atom.piece is None else atom.piece.whole
    if of is None or not atom.opaque:
        return atom.places
    places = [_places_of(part) for part in atoms_of(of)]
    return None if None in places else frozenset().union(*(place for place in places if place is not None))


def may_be_open(segment: Axis) -> bool:
    """True if a segment next to a video may be attended in full, as text is: none of its axes is opaque.

    Full attention is exact for any segment, but an opaque one may be tokens of the video itself.
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
    """True if it has axes of a tensor that the model computed before a graph break, in an unknown order."""
    return any(atom.origin is not None and not atom.origin.given for atom in atoms_of(segment))


def resized(segment: Axis) -> bool:
    """True if it has axes that were interpolated to another size."""
    return any(atom.origin is not None and not atom.origin.exact for atom in atoms_of(segment))


def why_unknown(*axes: Axis) -> str:
    """Why no grid is proven: the operator that made the axes opaque, or the property that rules a grid out."""
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
