"""Read the token grid off an attention's axes: which sequences are one video in raster order, text beside it.

query, key, value  [11 | 5*7*3]     ->  Grid(5, 7, 3, text_len=11, text_first=True)
query [5*3*7], of an input 5, 7, 3  ->  UNKNOWN_GRID: its axes were swapped
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from svg_compile._compat.sizes import equal, holds
from svg_compile.config import SvgConfig
from svg_compile.decisions import Reason
from svg_compile.passes.axes.axis import (
    Atom,
    Axis,
    Concat,
    Kind,
    atoms_of,
    is_opaque,
    is_plain,
    joined,
    length,
    resolve,
    same_axis,
)
from svg_compile.passes.axes.infer import AttentionAxes, show
from svg_compile.passes.axes.selections import is_batch


@dataclass(frozen=True)
class Grid:
    """The token grid of one sequence; sizes may be symbolic."""

    frames: Any
    height: Any
    width: Any
    text_len: Any = 0
    text_first: bool = False

    @property
    def sizes(self) -> tuple[Any, Any, Any, Any]:
        return self.frames, self.height, self.width, self.text_len

    @property
    def tokens(self) -> Any:
        return self.frames * self.height * self.width + self.text_len


Verdict = tuple["Grid | None", "Reason | None", str]


def grid_of(
    visit: AttentionAxes, tokens: tuple[Any, Any], config: SvgConfig, marked: Grid | None = None
) -> Verdict:
    """The grid of one visit, or why there is none. marked: the grid that the whole model has, of a block's graph."""
    query, key, value = (axes[-2] for axes in (visit.query, visit.key, visit.value))
    if not holds(equal, *tokens):
        return None, Reason.CROSS_ATTENTION, ""
    given = _given_grid(config, tokens[0], query) if marked is None else _marked_grid(marked, tokens[0])
    if not (same_axis(query, key) and same_axis(key, value)):
        if not any(_has_opaque(axis) for axis in (query, key, value)):
            return None, Reason.CROSS_ATTENTION, ""
        return (given, None, "") if given else (None, Reason.UNKNOWN_GRID, "")
    grid, reason, detail = _segments(query)
    if reason in (None, Reason.SINGLE_FRAME) and not _whole_sequence(visit, query):
        grid, reason, detail = None, Reason.UNKNOWN_GRID, "part of the grid stands in the batch or head axis"
    if reason in (None, Reason.SINGLE_FRAME, Reason.NOT_VIDEO) and not _same_samples(visit):
        return None, Reason.CROSS_ATTENTION, "keys or values of other samples of the batch"
    if reason in (Reason.NOT_VIDEO, Reason.UNKNOWN_GRID) and given:
        return given, None, ""
    if reason is None and (config.layout or marked) is not None and not (given and same_grid(grid, given)):
        return None, Reason.LAYOUT_CONFLICT, f"found {show(query)}"
    if reason is None and grid is not None and not holds(equal, grid.tokens, tokens[0]):
        return None, Reason.UNKNOWN_GRID, "the segments do not add up to the sequence"
    return grid, reason, detail


def _marked_grid(marked: Grid, tokens: Any) -> Grid | None:
    """The grid of the whole model, where it is as long as the sequence."""
    fits = holds(equal, marked.tokens, tokens) and not holds(equal, marked.frames, 1)
    return marked if fits else None


def _given_grid(config: SvgConfig, tokens: Any, query: Axis) -> Grid | None:
    """The grid of options["layout"], where it is as long as the sequence, or as one part of it with text beside it."""
    layout = config.layout
    if layout is None or layout.frames == 1:
        return None
    video = layout.frames, layout.height, layout.width
    if holds(equal, layout.tokens, tokens):
        return Grid(*video, layout.text_len, layout.text_first)
    if layout.text_len:
        return None
    segments = _parts(query)
    at = [place for place, segment in enumerate(segments) if holds(equal, length(segment), layout.tokens)]
    if len(at) != 1 or at[0] not in (0, len(segments) - 1):
        return None
    text = segments[1:] if at[0] == 0 else segments[:-1]
    if any(video_grid(segment) is not None for segment in text):
        return None
    return Grid(*video, sum(length(segment) for segment in text), at[0] != 0)


def _parts(axis: Axis) -> tuple[Axis, ...]:
    """What a sequence is concatenated of; itself where it is not."""
    parts = resolve(axis)
    return parts[0].segments if len(parts) == 1 and isinstance(parts[0], Concat) else (parts,)


def same_grid(left: Grid | None, right: Grid | None) -> bool:
    if left is None or right is None or left.text_first is not right.text_first:
        # Where there is no text its side does not matter.
        if left is None or right is None or not (left.text_len is right.text_len == 0):
            return False
    return all(holds(equal, a, b) for a, b in zip(left.sizes, right.sizes))


def _has_opaque(axis: Axis) -> bool:
    return any(atom.opaque for atom in atoms_of(axis))


def _segments(axis: Axis) -> Verdict:
    """Read a sequence axis: one video segment, plain (text) segments on one side of it."""
    segments = _parts(axis)
    videos = [position for position, segment in enumerate(segments) if video_grid(segment) is not None]
    if len(videos) > 1:
        return None, Reason.SEVERAL_GRIDS, ""
    plain = [len(joined(segment)) <= 1 and not is_opaque(segment) for segment in segments]
    if not videos:
        if any(_frame_of_one(segment) for segment in segments):
            return None, Reason.SINGLE_FRAME, ""
        made_before = "its axes are of a tensor made before a graph break, in an order that is not seen"
        unseen = any(len(joined(segment)) > 1 and _made_before(segment) for segment in segments)
        return None, Reason.NOT_VIDEO if all(plain) else Reason.UNKNOWN_GRID, made_before if unseen else ""
    at = videos[0]
    before, after = segments[:at], segments[at + 1 :]
    if not all(plain[:at] + plain[at + 1 :]):
        grids = any(len(segment) > 1 for segment in (*before, *after))
        return None, Reason.SEVERAL_GRIDS if grids else Reason.UNKNOWN_GRID, ""
    if before and after:
        return None, Reason.SEVERAL_GRIDS, "text on both sides of the video"
    grid = video_grid(segments[at])
    assert grid is not None
    frames, height, width = (atom.size for atom in grid)
    if holds(equal, frames, 1):
        return None, Reason.SINGLE_FRAME, ""
    text_len = sum(length(segment) for segment in (*before, *after))
    return Grid(frames, height, width, text_len, bool(before)), None, ""


def video_grid(segment: Axis) -> tuple[Atom, ...] | None:
    """The three atoms of (frames, height, width), or None where the segment is not proven to be a raster of them.

    Each must count whole tokens (no inner part of a split, as a window would have) and come from an axis of an input
    or what coordinates have proven of one, and no two from one input in another order than there. Height and width,
    where they are dimensions of one input, stand side by side: with something between them one of the two is channels.
    """
    parts = joined(segment)
    atoms = tuple(part for part in parts if isinstance(part, Atom) and part.kind is Kind.NAMED and not part.inner)
    if _made_before(segment):
        return None
    if len(parts) != 3 or len(atoms) != 3 or len({id(atom.root) for atom in atoms}) != 3:
        return None
    last: dict[str, tuple[int, ...]] = {}
    for atom in atoms:
        assert atom.origin is not None
        source, path = atom.origin.source, atom.origin.path
        # Dimension 0 is the batch.
        if path <= last.get(source, (0,)):
            return None
        last[source] = path
    height, width = (atom.origin for atom in atoms[1:])
    assert height is not None
    assert width is not None
    if height.source == width.source and width.path[0] > height.path[0] + 1:
        return None
    return atoms


def _made_before(segment: Axis) -> bool:
    """Whether it is made of axes of a tensor that the model made before a graph break, in an order that nobody saw."""
    return any(atom.origin is not None and not atom.origin.given for atom in atoms_of(segment))


def _frame_of_one(segment: Axis) -> bool:
    """Two neighbouring axes of a 5-D input: height and width of a video of one frame, whose axis of 1 is dropped."""
    parts = joined(segment)
    atoms = [part for part in parts if isinstance(part, Atom)]
    if len(parts) != 2 or len(atoms) != 2 or any(atom.origin is None or atom.inner for atom in atoms):
        return False
    first, second = (atom.origin for atom in atoms)
    assert first is not None
    assert second is not None
    return first.source == second.source and first.rank == 5 and second.path[0] == first.path[0] + 1


def _same_samples(visit: AttentionAxes) -> bool:
    """Whether query, key and value of a sample are of one sample, as far as they say where samples come from."""
    for one in (visit.key, visit.value):
        for left, right in zip(visit.query[:-3], one[:-3]):
            named = [all(is_batch(atom.origin) for atom in atoms_of(axis)) for axis in (left, right)]
            if not (same_axis(left, right) or all(named) or (is_plain(left) and is_plain(right))):
                return False
    return True


def _whole_sequence(visit: AttentionAxes, query: Axis) -> bool:
    """Whether the sequence holds all of the grid: none of it stands in the batch or head axis, as windows would."""
    tokens = list(atoms_of(query))
    roots = {id(atom.root) for atom in tokens}
    places = {(atom.origin.source, atom.origin.path[0]) for atom in tokens if atom.origin is not None}
    sources = {source for source, _ in places}
    batch = [axis for axes in (visit.query, visit.key, visit.value) for axis in axes[:-3]]
    if any(atom.opaque for axis in (*batch, visit.value[-3]) for atom in atoms_of(axis)):
        return False
    heads = [axis for axes in (visit.query, visit.key, visit.value) for axis in axes[-3:-2]]
    for atom in (atom for axis in (*batch, *heads) for atom in atoms_of(axis)):
        if id(atom.root) in roots:
            return False
        if atom.origin is not None and (atom.origin.source, atom.origin.path[0]) in places:
            return False
    # Beside the batch, no axis of the video: not frames in the batch, attention within each of them.
    origins = [atom.origin for axis in batch for atom in atoms_of(axis) if atom.origin is not None]
    return not any(origin.source in sources and origin.path[0] != 0 for origin in origins)
