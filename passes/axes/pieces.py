"""Pieces of an axis: what slices take of it, and how pieces that adjoin in order are that axis again.

cut      [5*7*3] at 21      ->  a piece: opaque by itself, but known to be positions 21 to 105 of that axis
joined   [0:21 | 21:105]    ->  [5*7*3] again; [21:105 | 0:21] stays opaque
         [zeros | 21:105]   ->  [5*7*3]: what stands in the place of the first 21 is no data at all
padded   [14] by 2 behind   ->  [16], of the same input: still in order
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from svg_compile._compat.sizes import at_most, equal, expression, holds, negative
from svg_compile.passes.axes.axis import (
    Atom,
    Axis,
    Concat,
    Kind,
    Piece,
    expand,
    flat_segments,
    is_plain,
    is_table,
    joined,
    length,
)
from svg_compile.passes.axes.new_axes import free_axis, opaque_atom, opaque_axis, other_positions


def cut(axis: Axis, start: Any, stop: Any, size: Any) -> Axis:
    """The axis of positions [start, stop) of a longer one."""
    alone = axis[0] if len(axis) == 1 else None
    if isinstance(alone, Atom) and alone.piece is not None and alone.parts is None:
        whole, before, _ = alone.piece
        return piece_of(whole, before + start, before + stop, size)
    axis = expand(axis)
    if len(axis) == 1 and isinstance(axis[0], Concat):
        return _of_segments(axis[0], start, stop, size)
    if len(axis) == 1 and isinstance(axis[0], Atom):
        unpadded = axis[0].derived.get("unpadded")
        if unpadded is not None and _is_zero(start) and holds(equal, size, unpadded.size):
            return (unpadded,)
    # Of what lost its name it is still the same positions each time, of query, key and value.
    if axis and all(isinstance(part, Atom) and part.kind in (Kind.NAMED, Kind.OPAQUE) for part in axis):
        return piece_of(axis, start, stop, size)
    return other_positions(size, axis)


def _is_zero(size: Any) -> bool:
    return holds(equal, size, 0)


def piece_of(whole: Axis, start: Any, stop: Any, size: Any) -> Axis:
    """Positions [start, stop) of an axis of named or opaque atoms: the same atom each time."""
    first = whole[0]
    assert isinstance(first, Atom)
    key = ("piece", whole, expression(start), expression(size))
    atom: Atom | None = first.derived.get(key)
    if atom is None:
        atom = opaque_atom(size, (whole,))
        atom.piece = Piece(whole, start, stop)
        first.derived[key] = atom
    return (atom,)


def _of_segments(concat: Concat, start: Any, stop: Any, size: Any) -> Axis:
    """A cut of a concatenation: whole segments, and pieces of those in which it begins or ends."""
    at: Any = 0
    taken: list[Axis] = []
    for segment in flat_segments(concat):
        end = at + length(segment)
        if holds(at_most, start, at) and holds(at_most, end, stop):
            taken.append(segment)
        elif not (holds(at_most, end, start) or holds(at_most, stop, at)):
            # Which of its positions are taken must be decided, not only true of the example.
            begin = 0 if holds(at_most, start, at) else start - at if holds(at_most, at, start) else None
            close = length(segment) if holds(at_most, end, stop) else stop - at if holds(at_most, stop, end) else None
            if begin is None or close is None:
                return opaque_axis(size, (concat,))
            lost = Atom(1, Kind.MIXED) if is_plain(segment) else opaque_atom(1, (segment,))
            taken.append(cut(segment, begin, close, close - begin) or (lost,))
        at = end
    if not taken or not holds(equal, sum(length(segment) for segment in taken), size):
        return opaque_axis(size, (concat,))
    return taken[0] if len(taken) == 1 else (Concat(tuple(taken), size),)


def put_together(segments: Sequence[Axis], size: Any) -> Axis:
    """The axis of a concatenation: pieces of one axis that adjoin in order are joined to a longer piece, or to it."""
    out: list[Axis] = []
    for segment in segments:
        inner = segment[0] if len(segment) == 1 else None
        for part in flat_segments(inner) if isinstance(inner, Concat) else [segment]:
            adjoined = _adjoined(out[-1], part) if out else None
            out = [*out, part] if adjoined is None else [*out[:-1], adjoined]
    filled = _filled(out, size)
    if filled is not None:
        return filled
    return out[0] if len(out) == 1 else (Concat(tuple(out), size),)


def _piece(segment: Axis) -> Piece | None:
    parts = segment if len(segment) == 1 else joined(segment)
    return parts[0].piece if len(parts) == 1 and isinstance(parts[0], Atom) else None


def _adjoined(left: Axis, right: Axis) -> Axis | None:
    """Two segments as one, where the one goes on where the other ends."""
    x, y = _piece(left), _piece(right)
    if x is None or y is None or x.whole != y.whole or not holds(equal, x.stop, y.start):
        return None
    if _is_zero(x.start) and holds(equal, y.stop, length(x.whole)):
        return expand(x.whole)
    return piece_of(x.whole, x.start, y.stop, y.stop - x.start)


def _filled(segments: Sequence[Axis], size: Any) -> Axis | None:
    """The axis that pieces come from, where each is at its own place and tables stand in the places of the others."""
    whole: Axis | None = None
    at: Any = 0
    for segment in segments:
        piece = _piece(segment)
        if piece is not None:
            if (whole is not None and piece.whole != whole) or not holds(equal, piece.start, at):
                return None
            whole = piece.whole
        elif not is_table(segment):
            return None
        at = at + length(segment)
    if whole is None or not holds(equal, size, length(whole)):
        return None
    return expand(whole)


def of_another_input(opaque: Axis, other: Axis) -> bool:
    """True if `opaque` is a piece of one input's axis and `other` a named axis of another input."""
    x, y = (axis[0] if len(axis) == 1 else None for axis in (opaque, other))
    if not (isinstance(x, Atom) and isinstance(y, Atom)) or y.kind is not Kind.NAMED or y.inner:
        return False
    if x.piece is None or x.made_of is None or y.places is None:
        return False
    if len(x.piece.whole) != 1 and not _may_be_refined(y, x.piece.whole):
        return False
    return not {source for source, _ in x.made_of} & {source for source, _ in y.places}


def _may_be_refined(atom: Atom, whole: Axis) -> bool:
    """True if a named axis may be aligned with tokens that were cut out of several axes, as with all of these."""
    given = atom.origin is not None and atom.origin.given
    return given and all(isinstance(part, Atom) and part.kind is Kind.NAMED and not part.inner for part in whole)


def padded(axis: Axis, before: Any, after: Any, size: Any) -> Axis:
    """The axis with positions that are nobody's put in front of it and behind it."""
    if _is_zero(before) and _is_zero(after):
        return axis
    axis = expand(axis)
    if not axis or is_plain(axis) or not _is_zero(before) or not holds(at_most, 0, after):
        return other_positions(size, axis)
    whole = axis[0] if len(axis) == 1 else None
    if not isinstance(whole, Atom):
        # Behind several coordinates stands a segment of its own.
        return (Concat((axis, free_axis(after) or (Atom(1),)), size),)
    if whole.kind is not Kind.NAMED or whole.inner or whole.origin is None:
        return other_positions(size, axis)
    key = ("padded", expression(after))
    made: Atom | None = whole.derived.get(key)
    if made is None:
        made = whole.derived[key] = Atom(size, Kind.NAMED, whole.origin)
        made.derived["unpadded"] = whole
    return (made,)


def begins_at(position: Any, size: Any) -> Any:
    """A slice's start counted from the front; None where its sign depends on sizes in a way that is not decided."""
    if holds(negative, position):
        return size + position
    return position if holds(at_most, 0, position) else None
