"""Read the token grid off an attention's axes: which sequences are one video in raster order, with text around it.

query, key, value  [11 | 5*7*3]     ->  Grid(5, 7, 3, text_len=11, text_first=True)
query [5*3*7], of an input 5, 7, 3  ->  UNKNOWN_GRID: its axes were swapped
query [5*7*3], key [11 | 5*7*3]     ->  the keys' grid, of which 11 tokens are no queries
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from svg_compile._compat.sizes import at_most, equal, holds, size_hint
from svg_compile.config import SvgConfig
from svg_compile.decisions import Reason
from svg_compile.layout import VideoLayout
from svg_compile.passes.axes.axis import Atom, Axis, Kind, atoms_of, expand, is_plain, joined, length, same_axis
from svg_compile.passes.axes.part_of_keys import Part, part_of, with_keys_beside, worth_it
from svg_compile.passes.axes.read_grid import Grid, Refusal, read_grid, same_grid
from svg_compile.passes.axes.segments import lost_to, made_before_a_break, segments_of, video_of, why_unknown
from svg_compile.passes.axes.selections import whole_of
from svg_compile.passes.axes.text import show
from svg_compile.passes.axes.tracker import AttentionAxes


def grid_of(
    visit: AttentionAxes, tokens: tuple[Any, Any], config: SvgConfig, marked: Grid | None = None
) -> Grid | Refusal:
    """The grid of one run, or why there is none. marked: the grid that the whole model has, of a block's graph."""
    query, key, value = (axes[-2] for axes in (visit.query, visit.key, visit.value))
    if not holds(equal, *tokens):
        return _grid_of_part(visit, tokens, config, marked)
    given = _given_grid(config, tokens[0], query) if marked is None else _marked_grid(marked, tokens[0])
    too_short = _too_short(config, tokens[0], given)
    if not (same_axis(query, key) and same_axis(key, value)):
        if _other_tokens(visit.query, visit.key) or _other_tokens(visit.query, visit.value):
            return Refusal(Reason.CROSS_ATTENTION)
        return given or Refusal(Reason.UNKNOWN_GRID, too_short or why_unknown(query, key, value) or _APART)
    found = read_grid(query, _unbatched(visit), visit.rises)
    if isinstance(found, Grid) or found.reason is Reason.SINGLE_FRAME:
        part = _part_elsewhere(visit, query)
        found = found if part is None else Refusal(Reason.UNKNOWN_GRID, part)
    readable = isinstance(found, Grid) or found.reason in (Reason.SINGLE_FRAME, Reason.NOT_VIDEO)
    if readable and not _same_samples(visit):
        return Refusal(Reason.CROSS_ATTENTION, "keys or values of other samples of the batch")
    if isinstance(found, Refusal):
        if found.reason not in (Reason.NOT_VIDEO, Reason.UNKNOWN_GRID):
            return found
        return given or Refusal(found.reason, too_short or found.detail)
    agrees = config.layout is None or _agrees(found, config.layout)
    if not (agrees if marked is None else same_grid(found, given)):
        return Refusal(Reason.LAYOUT_CONFLICT, f"found {show(query)}")
    if not holds(equal, found.tokens, tokens[0]):
        return Refusal(Reason.UNKNOWN_GRID, "the segments do not add up to the sequence")
    if marked is None and config.layout is not None:
        # Equal to the sizes that were found, which may be symbols that no graph has at hand.
        layout = config.layout
        return replace(found, frames=layout.frames, height=layout.height, width=layout.width)
    return found


_APART = "query, key and value come from different inputs, which may hold the same tokens"


def _grid_of_part(
    visit: AttentionAxes, tokens: tuple[Any, Any], config: SvgConfig, marked: Grid | None
) -> Grid | Refusal:
    """The grid where there are not as many queries as keys: the queries may be a part of the keys' tokens."""
    query, key, value = (axes[-2] for axes in (visit.query, visit.key, visit.value))
    part = part_of(query, key) if same_axis(key, value) else None
    fits = marked is not None and holds(equal, marked.tokens, tokens[1]) and holds(equal, marked.queries, tokens[0])
    if part is None:
        proven = _other_tokens(visit.query, visit.key) or _other_tokens(visit.query, visit.value)
        if marked is not None and fits and not proven:
            return marked
        beside = Part(tokens[1] - tokens[0], 0)
        why = lost_to(query) if holds(at_most, *tokens) and worth_it(beside, tokens[1]) else None
        return Refusal(Reason.CROSS_ATTENTION if why is None else Reason.UNKNOWN_GRID, why or "")
    if not worth_it(part, tokens[1]):
        queries, keys = map(size_hint, tokens)
        more = f"the queries are {queries} of the keys' {keys} tokens, too few to be computed with the others"
        return Refusal(Reason.CROSS_ATTENTION, more)
    own_keys, own_values = ((*axes[:-2], query, axes[-1]) for axes in (visit.key, visit.value))
    own = grid_of(replace(visit, key=own_keys, value=own_values), (tokens[0], tokens[0]), config)
    if isinstance(own, Refusal):
        hidden = own.reason in (Reason.NOT_VIDEO, Reason.UNKNOWN_GRID)
        same_part = marked is not None and all(map(_same, part, marked.unasked))
        return marked if marked is not None and hidden and fits and same_part else own
    found = with_keys_beside(own, part)
    if not holds(equal, found.tokens, tokens[1]):
        return Refusal(Reason.UNKNOWN_GRID, "the segments do not add up to the keys")
    if marked is not None and not same_grid(found, marked):
        return Refusal(Reason.LAYOUT_CONFLICT, f"found {show(query)}")
    return found


def _same(left: Any, right: Any) -> bool:
    return holds(equal, left, right)


def _other_tokens(query: tuple[Axis, ...], other: tuple[Axis, ...]) -> bool:
    """True if queries and keys, or values, are proven to run over different tokens.

    Those of other samples are. Else they are not where one of them lost its name or was made before a graph break;
    where one enters the graph as it is attended, with heads of its own, for what it was projected from nobody saw; or
    where both are plain axes of inputs that the model itself has run along one another, as tokens and position ids.
    """
    if not all(holds(equal, length(one), length(two)) for one, two in zip(query[:-3], other[:-3])):
        return True
    for axes in (query, other):
        ready_made = any(atom.kind is Kind.NAMED for axis in (axes[-3:-2] + axes[-1:]) for atom in atoms_of(axis))
        if ready_made or any(atom.opaque for atom in atoms_of(axes[-2])) or made_before_a_break(axes[-2]):
            return False
    left, right = segments_of(query[-2]), segments_of(other[-2])
    if len(left) != len(right):
        return True
    return not all(same_axis(one, two) or _aligned(one, two) for one, two in zip(left, right))


def _aligned(left: Axis, right: Axis) -> bool:
    """True if two whole dimensions of two inputs were aligned with each other somewhere in the graph."""
    left, right = joined(left), joined(right)
    if len(left) != 1 or len(right) != 1 or not holds(equal, left[0].size, right[0].size):
        return False
    one, other = left[0], right[0]
    if not (isinstance(one, Atom) and isinstance(other, Atom)) or one.origin is None or other.origin is None:
        return False
    return other.origin.source in one.aligned and one.origin.source in other.aligned


def _unbatched(visit: AttentionAxes) -> bool:
    """True if there is one sample, whose batch axis comes from no input."""
    return not any(expand(axis) for axes in (visit.query, visit.key, visit.value) for axis in axes[:-3])


def _marked_grid(marked: Grid, tokens: Any) -> Grid | None:
    """The grid of the whole model, where it is as long as the sequence."""
    fits = _same(marked.queries, tokens) and _same(marked.tokens, tokens) and not _same(marked.frames, 1)
    return marked if fits else None


def _given_grid(config: SvgConfig, tokens: Any, query: Axis) -> Grid | None:
    """The grid of options["layout"], where it is as long as the sequence, or as one part of it, the rest being text."""
    layout = config.layout
    if layout is None or layout.frames == 1:
        return None
    video = layout.frames, layout.height, layout.width
    if holds(equal, layout.tokens, tokens):
        return Grid(*video, layout.text_len, layout.text_first)
    if layout.text_len:
        return None
    segments = segments_of(query)
    at = [place for place, segment in enumerate(segments) if holds(equal, length(segment), layout.tokens)]
    if len(at) != 1:
        return None
    before, after = segments[: at[0]], segments[at[0] + 1 :]
    if any(video_of(segment) is not None for segment in (*before, *after)):
        return None
    in_front, behind = (sum(length(segment) for segment in side) for side in (before, after))
    both = bool(before and after)
    return Grid(*video, in_front + behind, bool(before) and not both, before=in_front if both else 0)


def _agrees(found: Grid, layout: VideoLayout) -> bool:
    """True if a grid equals that of options["layout"], which may omit the text."""
    given = Grid(layout.frames, layout.height, layout.width, layout.text_len, layout.text_first)
    return same_grid(found if layout.text_len else replace(found, text_len=0, text_first=False, before=0), given)


def _too_short(config: SvgConfig, tokens: Any, given: Grid | None) -> str:
    """The advice for a sequence longer than options["layout"]; "" if it is not longer."""
    layout = config.layout
    if layout is None or given is not None or layout.frames == 1 or layout.text_len:
        return ""
    text = size_hint(tokens) - layout.tokens
    if text <= 0:
        return ""
    video = f"{layout.frames}, {layout.height}, {layout.width}"
    return (
        f"options['layout'] has {layout.tokens} of its {size_hint(tokens)} tokens, and which they are is not proven: "
        f"if all others are text, say on which side, ({video}, {text}, 'first') or ({video}, {text}, 'last')"
    )


def _same_samples(visit: AttentionAxes) -> bool:
    """True if the batch axes of query, key and value agree, so that a sample attends only itself."""
    for one in (visit.key, visit.value):
        for left, right in zip(visit.query[:-3], one[:-3]):
            named = [_of_samples(axis) for axis in (left, right)]
            if not (same_axis(left, right) or all(named) or (is_plain(left) and is_plain(right))):
                return False
    return True


def _of_samples(axis: Axis) -> bool:
    """True if all atoms of an axis come from an input's first dimension, the batch."""
    return all(atom.origin is not None and atom.origin.first for atom in atoms_of(axis))


def _part_elsewhere(visit: AttentionAxes, query: Axis) -> str | None:
    """Why part of the grid may be outside of the sequence (as for windows); None if all of it is inside."""
    elsewhere = "part of the grid stands in the batch or head axis"
    tokens = [atom for part in atoms_of(query) for atom in (part, *atoms_of(whole_of(part)))]
    roots = {id(atom.root) for atom in tokens}
    places = {(atom.origin.source, atom.origin.path[0]) for atom in tokens if atom.origin is not None}
    sources = {source for source, _ in places}
    batch = [axis for axes in (visit.query, visit.key, visit.value) for axis in axes[:-3]]
    for axis in (*batch, *visit.value[-3:-2]):
        if (why := lost_to(axis)) is not None:
            return f"the batch or head axis passed {why}"
    heads = [axis for axes in (visit.query, visit.key, visit.value) for axis in axes[-3:-2]]
    for atom in (atom for axis in (*batch, *heads) for atom in atoms_of(axis)):
        if id(atom.root) in roots:
            return elsewhere
        if atom.origin is not None and (atom.origin.source, atom.origin.path[0]) in places:
            return elsewhere
    # The batch and no axis of the video: not frames in the batch, attention within each of them.
    origins = [atom.origin for axis in batch for atom in atoms_of(axis) if atom.origin is not None]
    beside = any(origin.source in sources and not origin.first for origin in origins)
    return elsewhere if beside else None
