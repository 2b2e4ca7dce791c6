"""Queries that are a part of the keys' sequence: which part of it, where that is proven.

query [5*7*3]              key [11 | 5*7*3]   ->  Part(11, 0): the queries begin at key 11, and end with the keys
query positions 21 to 105  key [5*7*3]        ->  Part(21, 0): all frames but the first
query [5*7*3]              key [5*7*3 | 5*7*3]  ->  None: which of the two it is nobody can say
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from svg_compile._compat.sizes import at_most, equal, holds, settled, size_hint
from svg_compile.passes.axes.axis import Atom, Axis, joined, length, same_axis
from svg_compile.passes.axes.read_grid import OPEN_TENTHS, Grid
from svg_compile.passes.axes.segments import segments_of


class Part(NamedTuple):
    """How many keys stand in front of the queries' own tokens, and how many behind them."""

    front: Any
    behind: Any


class _Run(NamedTuple):
    """Positions [start, stop) of an axis."""

    whole: Axis
    start: Any
    stop: Any


def part_of(query: Axis, key: Axis) -> Part | None:
    """Which part of the keys the queries are, once, uncut and in their order; None where that is not proven."""
    asked, keys = ([_run_of(segment) for segment in segments_of(axis)] for axis in (query, key))
    found = [part for at in range(len(keys) - len(asked) + 1) if (part := _part_at(asked, keys, at)) is not None]
    return found[0] if len(found) == 1 else None


def _run_of(segment: Axis) -> _Run:
    """A segment as positions of what it was cut out of, or as all of itself."""
    parts = joined(segment)
    first = parts[0] if parts else None
    if not isinstance(first, Atom) or first.piece is None:
        return _Run(parts, 0, length(parts))
    whole, start, stop = first.piece
    # Of frames, say: with the rest of the product each counts for as many tokens.
    each = length(parts[1:])
    outer = _run_of((*joined(whole), *parts[1:]))
    return _Run(outer.whole, outer.start + start * each, outer.start + stop * each)


def _part_at(asked: Sequence[_Run], keys: Sequence[_Run], at: int) -> Part | None:
    """The part where the first of the queries' segments stands in segment `at` of the keys."""
    there = keys[at : at + len(asked)]
    for place, (one, other) in enumerate(zip(asked, there)):
        begins = holds(equal, one.start, other.start) or (place == 0 and holds(at_most, other.start, one.start))
        ends = holds(equal, one.stop, other.stop) or (place == len(asked) - 1 and holds(at_most, one.stop, other.stop))
        # An axis of one position says nothing of which it is.
        if not (one.whole and begins and ends and same_axis(one.whole, other.whole)):
            return None
    front = sum(run.stop - run.start for run in keys[:at]) + asked[0].start - there[0].start
    behind = sum(run.stop - run.start for run in keys[at + len(asked) :]) + there[-1].stop - asked[-1].stop
    return Part(front, behind)


def worth_it(part: Part, keys: Any) -> bool:
    """True if the keys without a query are few enough to be attended in full, and computed as if they were queries."""
    return settled(at_most, 10 * (part.front + part.behind), OPEN_TENTHS * keys)


def with_keys_beside(own: Grid, part: Part) -> Grid:
    """The grid of the keys' sequence: that of the queries; the other keys are open."""
    in_front = own.text_len if own.text_first else own.before
    front, behind = in_front + part.front, own.text_len - in_front + part.behind
    both = not (holds(equal, front, 0) or holds(equal, behind, 0))
    beside = size_hint(part.front + part.behind)
    share = beside / size_hint(own.tokens + part.front + part.behind)
    note = f"{beside} keys that are no queries are attended in full, {share:.0%} of the keys"
    return replace(
        own,
        text_len=front + behind,
        text_first=holds(equal, behind, 0) and not holds(equal, front, 0),
        before=front if both else 0,
        note=f"{own.note}; {note}" if own.note else note,
        unasked=tuple(part),
    )
