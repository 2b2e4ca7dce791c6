"""The axes of a tensor: atoms, their products and concatenations.

An axis is a tuple of parts, its ordered (row-major) product; () has size 1. A part is an `Atom`, one coordinate, or a
`Concat`, segments laid one after another. An atom is, by its `kind`,

    TABLE    of no input's data (a weight, a constant, an empty buffer): fits whatever it is aligned with
    COORD    a table that counts positions (arange): evidence of a grid for the input axis that it is aligned with
    NAMED    an axis of an input, or one derived from it that keeps its order
    MIXED    made by the model out of data (channels, heads): of no order that matters, never tokens
    OPAQUE   known to be something else than it looks like (rolled, shuffled, cut); absorbs whatever meets it

so that an axis ends up NAMED only where every operation that made it keeps the order of the tokens. An opaque atom
remembers the operator that made it so (`why`). Aligning axes changes neither of them: a table shared by a video and a
text of equal length must not carry names from one to the other. Three things alone are written into an atom: how it is
split by a view, which is only its structure; the grid that coordinates prove of an input's packed axis; and which other
inputs' axes it was aligned with.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Union

from svg_compile._compat.sizes import product_of
from svg_compile.passes.axes.why import Why

Part = Union["Atom", "Concat"]
Axis = tuple[Part, ...]


class Kind(enum.Enum):
    """The kind of an atom; see the module's docstring."""

    TABLE = "table"
    COORD = "coord"
    NAMED = "named"
    MIXED = "mixed"
    OPAQUE = "opaque"


@dataclass(frozen=True)
class Origin:
    """The input axis a named atom comes from: its dimension, then which coordinate of it; the input's rank.

    given: the input is an argument of the model. Else the model computed it before a graph break, and
    nobody saw how. exact: each position is one of the input's, or a patch of them; False for an axis that was resized.
    """

    source: str
    path: tuple[int, ...]
    rank: int
    given: bool = True
    exact: bool = True

    @property
    def first(self) -> bool:
        """True for an input's first axis, usually the batch."""
        return self.path == (0,)

    @property
    def of_samples(self) -> bool:
        """True if the order is irrelevant (batch): an input's first axis, unless the rank is 4 (it may be frames)."""
        return self.first and self.rank != 4


# An input, and one of its dimensions.
Place = tuple[str, int]


class Piece(NamedTuple):
    """Of an opaque atom: it is positions [start, stop) of `whole`, in order."""

    whole: Axis
    start: Any
    stop: Any


class Atom:
    """One coordinate of `size` values; `parts` is what a view has split it into, or what coordinates have proven."""

    __slots__ = (
        *("aligned", "derived", "inner", "kind", "made_of", "origin", "parent", "parts", "piece", "root", "size"),
        *("covers", "rows", "why"),
    )

    def __init__(self, size: Any, kind: Kind = Kind.TABLE, origin: Origin | None = None) -> None:
        self.size = size
        self.kind = kind
        self.origin = origin
        self.parts: Axis | None = None
        # An atom split off another one: the leading part counts tokens, an inner part only positions in a token.
        self.root: Atom = self
        self.parent: Atom | None = None
        self.inner = False
        # What convolutions made of it, by their geometry, what it is once data flowed along it, and the pieces cut out
        # of it: the same each time.
        self.derived: dict[Any, Any] = {}
        # The other inputs along whose axes it ran.
        self.aligned: set[str] = set()
        # Of an opaque atom: the operator that took its name, what it is a piece of, or was picked of by a mask, and
        # which input dimensions' positions it may run over (None: any), and the atoms that it was made of.
        self.why: Why | None = None
        self.piece: Piece | None = None
        self.rows: Axis | None = None
        self.made_of: frozenset[Place] | None = None
        self.covers: frozenset[Atom] = frozenset()

    @property
    def opaque(self) -> bool:
        return self.kind is Kind.OPAQUE

    @property
    def places(self) -> frozenset[Place] | None:
        """The input dimensions whose positions it may run over; None where that is not known."""
        if self.opaque:
            return self.made_of
        return frozenset() if self.origin is None else frozenset({(self.origin.source, self.origin.path[0])})


class Concat:
    """Segments, each an axis, along one dimension."""

    __slots__ = ("segments", "size")

    def __init__(self, segments: tuple[Axis, ...], size: Any) -> None:
        self.segments = segments
        self.size = size


TABLES = (Kind.TABLE, Kind.COORD)


def is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def expand(axis: Axis) -> Axis:
    """The axis with every split or refined atom replaced by its parts, sizes of 1 dropped."""
    out: list[Part] = []
    for part in axis:
        if isinstance(part, Atom) and part.parts is not None:
            out += expand(part.parts)
        elif not is_one(part.size):
            out.append(part)
    return tuple(out)


def resolve(axis: Axis) -> Axis:
    """`expand`, also inside segments; a segment list of one segment is that segment."""
    out: list[Part] = []
    for part in expand_segment(axis):
        if isinstance(part, Concat):
            segments = tuple(resolve(segment) for segment in flat_segments(part))
            if len(segments) == 1:
                out += segments[0]
                continue
            part = Concat(segments, part.size)
        out.append(part)
    return tuple(out)


def flat_segments(concat: Concat) -> list[Axis]:
    """The segments with nested concatenations spliced in and empty ones dropped."""
    out: list[Axis] = []
    for segment in concat.segments:
        segment = expand_segment(segment)
        if len(segment) == 1 and isinstance(segment[0], Concat):
            out += flat_segments(segment[0])
        elif not any(isinstance(part.size, int) and part.size == 0 for part in segment):
            out.append(segment)
    return out


def expand_segment(segment: Axis) -> Axis:
    """`expand`; a segment of one position keeps its atom, so that it stays a segment."""
    return segment if len(segment) == 1 and is_one(segment[0].size) else expand(segment)


def joined(axis: Axis) -> Axis:
    """`expand`, with atoms whose parts stand whole and in order put together again, as after a window's reverse."""
    out: list[Part] = []
    for part in expand(axis):
        out.append(part)
        while True:
            parent = out[-1].parent if isinstance(out[-1], Atom) else None
            if parent is None or parent.parts is None or len(out) < 2:
                break
            whole = tuple(part for part in joined(parent.parts[:1]) + joined(parent.parts[1:]))
            if len(whole) != 2 or out[-2] is not whole[0] or out[-1] is not whole[1]:
                break
            out[-2:] = [parent]
    return tuple(out)


def same_axis(left: Axis, right: Axis) -> bool:
    """True if two axes are proven to run over the same coordinates; an opaque atom is the same as itself only."""
    left, right = resolve(left), resolve(right)
    if len(left) != len(right):
        return False
    for a, b in zip(left, right):
        if isinstance(a, Concat) and isinstance(b, Concat):
            if len(a.segments) != len(b.segments):
                return False
            if not all(same_axis(x, y) for x, y in zip(a.segments, b.segments)):
                return False
        elif a is not b:
            return False
    return True


def length(axis: Axis) -> Any:
    return product_of([part.size for part in axis])


def atoms_of(axis: Axis) -> Iterator[Atom]:
    """Every atom, also those of segments."""
    for part in expand_segment(axis):
        if isinstance(part, Atom):
            yield part
        else:
            for segment in part.segments:
                yield from atoms_of(segment)


def is_opaque(axis: Axis) -> bool:
    """True if the product itself has an opaque part; False for a concatenation with an opaque segment."""
    return any(isinstance(part, Atom) and part.opaque for part in expand(axis))


def is_table(axis: Axis) -> bool:
    """True if the values along the axis do not depend on an input's data."""
    return all(atom.kind in TABLES for atom in atoms_of(axis))


def is_plain(axis: Axis) -> bool:
    """True if the order along the axis is irrelevant: tables, channels, heads."""
    return all(atom.kind in TABLES or atom.kind is Kind.MIXED for atom in atoms_of(axis))
