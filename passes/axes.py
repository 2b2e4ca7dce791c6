"""What an axis of a tensor is made of: atoms, their products and concatenations, and how two axes are unified.

An axis is a tuple of parts, its ordered (row-major) product; () has size 1. A part is an `Atom`, one coordinate, or a
`Concat`, segments laid one after another. Two axes are unified when an operation aligns them index by index: then
their coordinates are the same. An atom is

    free      nothing is known of it (a table, a weight, an empty buffer); takes the meaning of what it is aligned with
    named     an axis of an input, or an axis derived from one; never merged with a contradicting axis
    opaque    known to be something else than it looks like (rolled, shuffled, cut); absorbs whatever meets it

so that an axis ends up named only where every operation that made it keeps the order of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Union

from svg_compile._compat import divides, equal, holds

Part = Union["Atom", "Concat"]
Axis = tuple[Part, ...]


@dataclass(frozen=True)
class Origin:
    """Where a named atom comes from: dimension `dim` of input `source`; of an arange where `source` is "arange"."""

    source: str
    dim: int
    rank: int


class Atom:
    """One coordinate of `size` values. Union-find: `same_as` forwards to an equal atom, `parts` to a product."""

    __slots__ = ("inner", "opaque", "origin", "parts", "root", "same_as", "size")

    def __init__(self, size: Any, origin: Origin | None = None, *, opaque: bool = False) -> None:
        self.size = size
        self.origin = origin
        self.opaque = opaque
        self.same_as: Atom | None = None
        self.parts: Axis | None = None
        # An atom split off another one: the leading part counts tokens, an inner part only positions in a token.
        self.root: Atom = self
        self.inner = False

    @property
    def free(self) -> bool:
        return self.origin is None and self.root is self and not self.opaque

    @property
    def is_arange(self) -> bool:
        return self.origin is not None and self.origin.source == "arange" and not self.inner and not self.opaque


class Concat:
    """Segments, each an axis, along one dimension."""

    __slots__ = ("segments", "size")

    def __init__(self, segments: tuple[Axis, ...], size: Any) -> None:
        self.segments = segments
        self.size = size


def free_axis(size: Any) -> Axis:
    return () if is_one(size) else (Atom(size),)


def opaque_axis(size: Any) -> Axis:
    return () if is_one(size) else (Atom(size, opaque=True),)


def is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def expand(axis: Axis) -> Axis:
    """The axis with every forwarded or refined atom replaced by what it stands for, sizes of 1 dropped."""
    out: list[Part] = []
    for part in axis:
        if isinstance(part, Atom):
            while part.same_as is not None:
                part = part.same_as
            if part.parts is not None:
                out += expand(part.parts)
                continue
        if not is_one(part.size):
            out.append(part)
    return tuple(out)


def resolve(axis: Axis) -> Axis:
    """`expand`, also inside segments; a segment list of one segment is that segment."""
    out: list[Part] = []
    for part in expand(axis):
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
        segment = expand(segment)
        if len(segment) == 1 and isinstance(segment[0], Concat):
            out += flat_segments(segment[0])
        elif not any(isinstance(part.size, int) and part.size == 0 for part in segment):
            out.append(segment)
    return out


def same_axis(left: Axis, right: Axis) -> bool:
    """Whether two axes are proven to run over the same coordinates; an opaque atom is the same as itself only."""
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
    total: Any = 1
    for part in axis:
        total = total * part.size
    return total


def is_opaque(axis: Axis) -> bool:
    return any(isinstance(part, Atom) and part.opaque for part in expand(axis))


def is_table(axis: Axis) -> bool:
    """Whether the axis names no tokens: nothing is known of any part of it, or it is one arange of coordinates."""
    parts = expand(axis)
    if len(parts) == 1 and isinstance(parts[0], Atom) and parts[0].is_arange:
        return True
    return all(isinstance(part, Atom) and part.free for part in parts)


def table_axis(size: Any, like: Axis) -> Axis:
    """A new axis of `size` that is a table as `like` is, opaque where `like` is none."""
    if not is_table(like):
        return opaque_axis(size)
    parts = expand(like)
    coordinates = len(parts) == 1 and isinstance(parts[0], Atom) and parts[0].is_arange
    return arange_axis(size) if coordinates else free_axis(size)


def arange_axis(size: Any) -> Axis:
    return () if is_one(size) else (Atom(size, Origin("arange", 0, 1)),)


def unify(left: Axis, right: Axis, size: Any) -> Axis:
    """Align two axes of `size`, index by index: free atoms take the other's meaning. Returns the common axis.

    Where the two contradict each other, the result is opaque and neither is changed by that.
    """
    a, b = expand(left), expand(right)
    if a == b:
        return a
    if is_opaque(a) or is_opaque(b):
        if is_opaque(a) and is_opaque(b):
            return opaque_axis(size)
        return a if is_opaque(a) else b
    out: list[Part] = []
    while a and b:
        x, y = a[0], b[0]
        if x is y:
            out.append(x)
            a, b = a[1:], b[1:]
        elif holds(equal, x.size, y.size):
            if not _merge(x, y):
                return opaque_axis(size)
            out += expand((x,))
            a, b = a[1:], b[1:]
        else:
            taken = _refine(x, b)
            if taken:
                out += b[:taken]
                a, b = a[1:], b[taken:]
                continue
            taken = _refine(y, a)
            if not taken:
                return opaque_axis(size)
            out += a[:taken]
            a, b = a[taken:], b[1:]
    return tuple(out) if not a and not b else opaque_axis(size)


def _merge(x: Part, y: Part) -> bool:
    """Make two parts of one size the same; False where they contradict each other."""
    if isinstance(x, Concat) and isinstance(y, Concat):
        left, right = flat_segments(x), flat_segments(y)
        if len(left) != len(right):
            return False
        sizes = [(length(p), length(q)) for p, q in zip(left, right)]
        if not all(holds(equal, m, n) for m, n in sizes):
            return False
        return not any(is_opaque(unify(p, q, m)) for p, q, (m, _) in zip(left, right, sizes))
    if isinstance(x, Concat) or isinstance(y, Concat):
        atom, concat = (y, x) if isinstance(x, Concat) else (x, y)
        return _bind(atom, (concat,))
    if x.free or (x.is_arange and not y.free):
        x.same_as = y
        return True
    if y.free or y.is_arange:
        y.same_as = x
        return True
    if x.inner or y.inner:
        return False
    if x.origin and y.origin and x.origin.source == y.origin.source and x.origin != y.origin:
        return False
    # The input of higher rank speaks for both: latents [B, C, F, H, W] rather than a timestep [B, F].
    if (x.origin.rank if x.origin else 0) < (y.origin.rank if y.origin else 0):
        x, y = y, x
    y.same_as = x
    return True


def _refine(atom: Part, product: Axis) -> int:
    """Let `atom` be the product of the leading parts of `product` whose sizes multiply to its own; how many, or 0."""
    if not isinstance(atom, Atom):
        return 0
    total: Any = 1
    for count, part in enumerate(product, 1):
        total = total * part.size
        if holds(equal, total, atom.size):
            return count if count > 1 and _bind(atom, product[:count]) else 0
        if not holds(divides, total, atom.size):
            return 0
    return 0


def _bind(atom: Part, parts: Axis) -> bool:
    # An inner part counts positions inside a token, and what is opaque stays so: neither may stand for tokens.
    if not isinstance(atom, Atom) or atom.inner or atom.opaque or _mentions(parts, atom):
        return False
    atom.parts = parts
    return True


def _mentions(axis: Axis, atom: Atom) -> bool:
    return any(
        part is atom or (isinstance(part, Concat) and any(_mentions(segment, atom) for segment in part.segments))
        for part in expand(axis)
    )


def regroup(axes: list[Axis], shape: tuple[Any, ...]) -> list[Axis]:
    """The axes of a view of shape `shape`: the atoms in row-major order, handed out again, split where they must be."""
    if any(isinstance(size, int) and size == 0 for size in shape):
        return [free_axis(size) for size in shape]
    flat = [part for axis in axes for part in expand(axis)]
    out: list[Axis] = []
    at = 0
    for position, size in enumerate(shape):
        axis: list[Part] = []
        rest = size
        while not holds(equal, rest, 1):
            part = flat[at] if at < len(flat) else None
            if part is not None and holds(divides, part.size, rest):
                axis.append(part)
                rest = rest // part.size
                at += 1
            elif isinstance(part, Atom) and holds(divides, rest, part.size):
                flat[at : at + 1] = _split(part, rest)
            else:
                return out + [opaque_axis(n) for n in shape[position:]]
        out.append(tuple(axis))
    return out


def _split(atom: Atom, outer: Any) -> list[Part]:
    """Split an atom into `outer` times the rest; the atom itself becomes that product."""
    leading = Atom(outer, atom.origin, opaque=atom.opaque)
    inner = Atom(atom.size // outer, atom.origin, opaque=atom.opaque)
    leading.root = inner.root = atom.root
    leading.inner, inner.inner = atom.inner, True
    atom.parts = (leading, inner)
    return [leading, inner]
