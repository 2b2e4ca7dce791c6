"""Aligning two axes index by index, as a pointwise operator does: what is then known of the result.

[B, 120, C] + table of arange(5) x arange(6) x arange(4)    ->  the input's 120 is 5*6*4
5*6*4 of the latents  *  120 of a timestep a token          ->  5*6*4 of the latents
5*6*4  +  the same, its first two axes swapped              ->  opaque
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from svg_compile._compat.sizes import equal, holds, product_is
from svg_compile.passes.axes.axis import (
    Atom,
    Axis,
    Concat,
    Kind,
    Part,
    expand,
    expand_segment,
    flat_segments,
    is_one,
    is_opaque,
    is_plain,
    is_table,
    length,
)
from svg_compile.passes.axes.naming import (
    Meaning,
    Pair,
    count_through,
    crossed,
    finer,
    prove,
    prove_piece,
    stronger,
    swapped,
)
from svg_compile.passes.axes.new_axes import axis_of, free_axis, opaque_axis
from svg_compile.passes.axes.pieces import of_another_input, piece_of


def unify_each(
    left: Sequence[Axis | None], right: Sequence[Axis | None], shape: Sequence[Any], meaning: Meaning | None = None
) -> list[Axis | None]:
    """`unify`, dimension by dimension, of two tensors; None where one is broadcast.

    What no dimension shows alone: axes that stand in one order in the one tensor and in another in the other.
    """
    out: list[Axis | None] = []
    pairs: list[list[Pair]] = []
    for one, other, size in zip(left, right, shape, strict=True):
        pairs.append([])
        if one is None or other is None:
            out.append(other if one is None else one)
        else:
            out.append(unify(one, other, size, meaning, pairs[-1]))
    for dim, mine in enumerate(pairs):
        if any(crossed(a, b) for a in mine for theirs in pairs if theirs is not mine for b in theirs):
            out[dim] = opaque_axis(shape[dim], *(axis for axis in (left[dim], right[dim]) if axis is not None))
    return out


def unify(left: Axis, right: Axis, size: Any, meaning: Meaning | None = None, pairs: list[Pair] | None = None) -> Axis:
    """The axis of a result whose index i comes from index i of both; opaque where the two contradict each other.

    `meaning` collects what the atoms of the operands stand for in the result, `pairs` which axes of two inputs met.
    """
    a, b = expand(left), expand(right)
    if a == b:
        return a or _one_position(left, right)
    if is_opaque(a) or is_opaque(b):
        opaque, other = (a, b) if is_opaque(a) else (b, a)
        if is_table(other) and (grid := prove_piece(opaque, other)) is not None:
            return grid
        kept = is_table(other) or of_another_input(opaque, other)
        return opaque if kept else _same_piece(a, b, meaning, pairs) or opaque_axis(size, opaque, other)
    common = _matched(a, b, {} if meaning is None else meaning, [] if pairs is None else pairs)
    if common is not None:
        return common
    # Tables and channels that are built up differently: their order is of no interest.
    if is_table(a) and is_table(b):
        return free_axis(size)
    return axis_of(size, Kind.MIXED) if is_plain(a) and is_plain(b) else opaque_axis(size, a, b)


def _one_position(left: Axis, right: Axis) -> Axis:
    """Two axes of size 1: a piece of one position stays that piece, where the other is none of another position."""
    pieces = {part for part in (*left, *right) if isinstance(part, Atom) and part.piece is not None}
    return (pieces.pop(),) if len(pieces) == 1 else ()


def _same_piece(a: Axis, b: Axis, meaning: Meaning | None, pairs: list[Pair] | None) -> Axis | None:
    """Two axes that are the same positions of two longer ones are those positions of what the longer ones unify to."""
    x, y = (axis[0].piece if len(axis) == 1 and isinstance(axis[0], Atom) else None for axis in (a, b))
    if x is None or y is None or not holds(equal, x.start, y.start) or not holds(equal, x.stop, y.stop):
        return None
    size = length(x.whole)
    if not holds(equal, size, length(y.whole)):
        return None
    whole = unify(x.whole, y.whole, size, None, pairs)
    if is_opaque(whole):
        return None
    common = piece_of(whole, x.start, x.stop, a[0].size)
    if meaning is not None:
        meaning.update({part: common for part in (a[0], b[0]) if isinstance(part, Atom) and (part,) != common})
    return common


def _matched(a: Axis, b: Axis, meaning: Meaning, pairs: list[Pair]) -> Axis | None:
    """The common parts of two expanded axes, None where they contradict each other."""
    out: list[Part] = []
    while a and b:
        x, y = a[0], b[0]
        if x is y or holds(equal, x.size, y.size):
            common, a, b = _pair(x, y, meaning, pairs), a[1:], b[1:]
        elif count := _leading(b, x.size):
            common, a, b = _group(x, b[:count], meaning), a[1:], b[count:]
        elif count := _leading(a, y.size):
            common, a, b = _group(y, a[:count], meaning), a[count:], b[1:]
        else:
            return None
        if common is None:
            return None
        out += common
    return None if a or b or swapped(pairs) else tuple(out)


def _leading(parts: Axis, size: Any) -> int:
    """How many leading parts multiply to `size`; 0 where none do."""
    for count in range(2, len(parts) + 1):
        if product_is([part.size for part in parts[:count]], size):
            return count
    return 0


def _pair(x: Part, y: Part, meaning: Meaning, pairs: list[Pair]) -> Axis | None:
    """Two parts of one size; None where they contradict each other."""
    if x is y:
        return (x,)
    if isinstance(x, Concat) and isinstance(y, Concat):
        return _concats(x, y, meaning)
    if isinstance(x, Concat):
        assert isinstance(y, Atom)
        return _group(y, (x,), meaning)
    if isinstance(y, Concat):
        return _group(x, (y,), meaning)
    winner = stronger(x, y)
    if winner is None:
        return None
    if x.origin and y.origin and x.origin.source != y.origin.source:
        pairs.append((x.origin, y.origin))
        x.aligned.add(y.origin.source)
        y.aligned.add(x.origin.source)
    loser = y if winner is x else x
    meaning[loser] = (winner,)
    return (winner,)


def _concats(x: Concat, y: Concat, meaning: Meaning) -> Axis | None:
    """Two concatenations, segment by segment; a table of the one may run through several of the other."""
    left, right = flat_segments(x), flat_segments(y)
    segments: list[Axis] = []
    while left and right:
        p, q = left[0], right[0]
        size = length(p)
        if holds(equal, size, length(q)):
            # One position is dropped from products: then what is data of the two.
            segments.append((q if is_table(p) else p) if is_one(size) else unify(p, q, size, meaning))
            left, right = left[1:], right[1:]
        elif is_table(p) and (count := _segments_of(right, size)):
            segments += _through(p, right[:count], meaning)
            left, right = left[1:], right[count:]
        elif is_table(q) and (count := _segments_of(left, length(q))):
            segments += _through(q, left[:count], meaning)
            left, right = left[count:], right[1:]
        else:
            return None
    return None if left or right else (Concat(tuple(segments), x.size),)


def _segments_of(segments: Sequence[Axis], size: Any) -> int:
    """How many leading segments add up to `size`; 0 where none do."""
    total: Any = 0
    for count, segment in enumerate(segments, 1):
        total = total + length(segment)
        if holds(equal, total, size):
            return count
    return 0


def _through(table: Axis, segments: Sequence[Axis], meaning: Meaning) -> list[Axis]:
    """A table's segment against several: these, or an opaque one where the two contradict each other."""
    size = length(table)
    common = unify(table, (Concat(tuple(segments), size),), size, meaning)
    alone = common[0] if len(common) == 1 else None
    return flat_segments(alone) if isinstance(alone, Concat) else [common]


def _group(atom: Part, group: Axis, meaning: Meaning) -> Axis | None:
    """One atom against several parts, or one concatenation, of the same size."""
    if not isinstance(atom, Atom):
        return _frame_by_frame(atom, group)
    if atom.kind is Kind.TABLE or (atom.kind is Kind.COORD and not is_table(group)):
        meaning[atom] = group
        if atom.kind is Kind.COORD and "arange" in atom.derived and len(group) == 1 and isinstance(group[0], Concat):
            count_through(group[0])
        return group
    if is_table(group):
        grid = prove(atom, group)
        for part in group:
            # A concatenation or several parts have no names of their own in an atom that is one whole.
            if isinstance(part, Atom):
                meaning[part] = opaque_axis(part.size, (atom,)) if grid is None else (grid[group.index(part)],)
        return (atom,) if grid is None else grid
    if atom.kind is Kind.MIXED:
        return group if is_plain(group) else None
    return finer(atom, group, meaning)


def _frame_by_frame(concat: Concat, group: Axis) -> Axis | None:
    """A concatenation of frames and videos against a table of frames x rows x columns that runs through all of it.

    Each segment has the table's rows and columns, and so many of its frames; the table tells them nothing new.
    """
    _, *inner = group
    if not is_table(group) or not all(isinstance(part, Atom) for part in group):
        return None
    segments, frames = [], []
    for segment in flat_segments(concat):
        lead = segment[: max(len(segment) - len(inner), 0)]
        frames.append(length(lead))
        size = length(segment)
        segments.append(unify(segment, (*free_axis(length(lead)), *inner), size))
        if len(segment) < len(inner) or is_opaque(segments[-1]):
            return None
    return (Concat(tuple(segments), concat.size),) if holds(equal, sum(frames), group[0].size) else None


def aligned_with(axis: Axis, meaning: Meaning) -> Axis:
    """The axis with its atoms replaced by what they stand for."""
    out: list[Part] = []
    for part in expand_segment(axis):
        if isinstance(part, Concat):
            out.append(Concat(tuple(aligned_with(s, meaning) for s in flat_segments(part)), part.size))
        else:
            out += meaning.get(part, (part,))
    return tuple(out)
