"""Which part of the keys' axis an axis of queries is, if it is one."""

from __future__ import annotations

import pytest

from svg_compile.passes.axes.axis import Atom, Concat, Kind, Origin, length
from svg_compile.passes.axes.new_axes import axis_of, free_axis
from svg_compile.passes.axes.part_of_keys import Part, part_of
from svg_compile.passes.axes.pieces import cut


def _atom(name: str, size: int) -> tuple:
    return axis_of(size, Kind.NAMED, Origin(name, (1,), 3))


VIDEO_AXIS, TEXT_AXIS = _atom("video", 105), _atom("text", 11)


def joint(*segments: tuple) -> tuple:
    return (Concat(segments, sum(length(segment) for segment in segments)),)


def piece(axis: tuple, start: int, stop: int) -> tuple:
    return cut(axis, start, stop, stop - start)


@pytest.mark.parametrize(
    ("query", "key", "expected"),
    [
        (VIDEO_AXIS, joint(TEXT_AXIS, VIDEO_AXIS), Part(11, 0)),
        (VIDEO_AXIS, joint(VIDEO_AXIS, TEXT_AXIS), Part(0, 11)),
        (piece(VIDEO_AXIS, 21, 105), VIDEO_AXIS, Part(21, 0)),
        (piece(VIDEO_AXIS, 21, 84), piece(VIDEO_AXIS, 10, 90), Part(11, 6)),
        (piece(VIDEO_AXIS, 21, 105), joint(TEXT_AXIS, VIDEO_AXIS), Part(32, 0)),
        (joint(piece(VIDEO_AXIS, 21, 105), TEXT_AXIS), joint(VIDEO_AXIS, TEXT_AXIS), Part(21, 0)),
        (joint(piece(TEXT_AXIS, 4, 11), VIDEO_AXIS), joint(TEXT_AXIS, VIDEO_AXIS), Part(4, 0)),
        # Not one after the other, twice, cut in the middle, of others.
        (joint(VIDEO_AXIS, TEXT_AXIS), joint(TEXT_AXIS, VIDEO_AXIS), None),
        (VIDEO_AXIS, joint(VIDEO_AXIS, VIDEO_AXIS), None),
        (joint(piece(VIDEO_AXIS, 0, 84), TEXT_AXIS), joint(VIDEO_AXIS, TEXT_AXIS), None),
        (piece(VIDEO_AXIS, 0, 84), piece(VIDEO_AXIS, 21, 105), None),
        (_atom("other", 105), joint(TEXT_AXIS, VIDEO_AXIS), None),
        ((), joint(TEXT_AXIS, VIDEO_AXIS, (Atom(1),)), None),
        (free_axis(105), joint(TEXT_AXIS, VIDEO_AXIS), None),
    ],
)
def test_which_part_of_the_keys_the_queries_are(query: tuple, key: tuple, expected: Part | None) -> None:
    assert part_of(query, key) == expected
