"""Which of two parts names the result of a pointwise operator, and what coordinates prove of a packed axis.

latents' 5*6*4  against  a mask's 5*6*4          ->  the latents' name
an input's 120  against  arange(5)*arange(6)*arange(4)  ->  5*6*4, of that input, for good
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from svg_compile._compat.sizes import equal, holds
from svg_compile.passes.axes.axis import (
    Atom,
    Axis,
    Concat,
    Kind,
    Origin,
    atoms_of,
    expand,
    expand_segment,
    flat_segments,
)

# Operand atom -> result axis, where they differ; needed for in-place operators.
Meaning = dict[Atom, Axis]
# Axes of two inputs that were aligned with each other.
Pair = tuple[Origin, Origin]


def crossed(one: Pair, other: Pair) -> bool:
    """True if two aligned dimensions of the same two inputs are in different order in the two inputs."""
    (a, b), (c, d) = one, other
    if (a.source, b.source) != (c.source, d.source):
        return False
    return (a.path < c.path, a.path > c.path) != (b.path < d.path, b.path > d.path)


def stronger(x: Atom, y: Atom) -> Atom | None:
    """Which of two atoms of one size names the result; None where they contradict each other."""
    for kind in (Kind.TABLE, Kind.COORD):
        if kind in (x.kind, y.kind):
            return y if x.kind is kind else x
    if x.kind is not y.kind:
        return None
    if x.kind is Kind.MIXED:
        return x
    if x.inner or y.inner or x.origin is None or y.origin is None:
        return None
    if x.origin.source == y.origin.source:
        return x if x.origin == y.origin else None
    if x.origin.given is not y.origin.given:
        # The result is no better known than the less known of the two.
        return y if x.origin.given else x
    if x.origin.exact is not y.origin.exact:
        return x if x.origin.exact else y
    # Of two equals, the first operand: mostly the data, the second a table.
    return y if _standing(y.origin) > _standing(x.origin) else x


def _standing(origin: Origin) -> int:
    """Latents [B, C, F, H, W] speak for a sequence [B, N, C], which speaks for masks, times and positions [B, N]."""
    return (origin.rank > 2) + (origin.rank > 4)


def prove(atom: Atom, group: Axis) -> Axis | None:
    """Coordinates along an input's packed axis prove its grid, for that input alone and for good.

    Other tables may precede or follow them: the tokens there are not part of the grid.
    """
    if atom.kind is not Kind.NAMED or atom.inner or atom.origin is None:
        return None
    if atom.origin.first:
        # Along the first dimension stand samples, of whose order nothing was asked so far.
        return None
    if len(group) == 1 and isinstance(group[0], Concat):
        segments = [expand_segment(segment) for segment in flat_segments(group[0])]
        if sum(map(_counts, segments)) != 1 or not all(_counts(each) or len(each) == 1 for each in segments):
            return None
        named = (_named(atom.origin, each, (at,)) for at, each in enumerate(segments))
        atom.parts = (Concat(tuple(named), group[0].size),)
    elif _counts(group):
        atom.parts = _named(atom.origin, group, ())
    else:
        return None
    return atom.parts


def prove_piece(axis: Axis, group: Axis) -> Axis | None:
    """Coordinates along a piece of an input's packed axis prove that it is a grid; the rest of the axis is none."""
    atom = axis[0] if len(axis) == 1 else None
    if not isinstance(atom, Atom) or atom.piece is None or atom.parts is not None or not _counts(group):
        return None
    whole, start, stop = atom.piece
    source = whole[0] if len(whole) == 1 else None
    if not isinstance(source, Atom) or source.kind is not Kind.NAMED or source.inner or source.parts is not None:
        return None
    if source.origin is None or source.origin.first:
        return None
    sizes = start, None, source.size - stop
    segments: list[Axis] = []
    for at, size in enumerate(sizes):
        if size is None:
            atom.parts = _named(source.origin, group, (at,))
            segments.append(atom.parts)
        elif not holds(equal, size, 0):
            origin = replace(source.origin, path=(*source.origin.path, at, 0))
            beside = (Atom(size, Kind.NAMED, origin),)
            segments.append(beside)
            _name_piece(source, 0 if at == 0 else stop, size, beside)
    source.parts = (Concat(tuple(segments), source.size),)
    return atom.parts


def _name_piece(source: Atom, start: Any, size: Any, axis: Axis) -> None:
    """The piece that was cut out of an atom there, if one was, is this axis."""
    for piece in source.derived.values():
        if isinstance(piece, Atom) and piece.piece is not None and piece.parts is None:
            if holds(equal, piece.piece.start, start) and holds(equal, piece.size, size):
                piece.parts = axis


def _counts(group: Axis) -> bool:
    """True if the parts of a table are coordinates along several different axes."""
    atoms = [part for part in group if isinstance(part, Atom) and part.kind is Kind.COORD and not part.inner]
    return len(atoms) == len(group) > 1 and len({id(part.root) for part in atoms}) == len(group)


def _named(origin: Origin, group: Axis, place: tuple[int, ...]) -> Axis:
    """Atoms of an input in the place of a table's."""
    origins = (replace(origin, path=(*origin.path, *place, at)) for at in range(len(group)))
    return tuple(Atom(part.size, Kind.NAMED, made) for part, made in zip(group, origins))


def finer(atom: Atom, group: Axis, meaning: Meaning) -> Axis | None:
    """A named axis against named parts of another input: a timestep or mask a token, say. The parts tell more."""
    if atom.kind is not Kind.NAMED or atom.inner or atom.origin is None or not atom.origin.given:
        return None
    if any(isinstance(part, Atom) and (part.inner or part.kind is Kind.MIXED) for part in group):
        return None
    # Also where a piece of the input's own axis would be concatenated with another place of it.
    named = [each for part in atoms_of(group) for each in (part, *atoms_of(part.piece.whole if part.piece else ()))]
    if any(part.origin is not None and part.origin.source == atom.origin.source for part in named):
        return None
    meaning[atom] = group
    return group


def swapped(pairs: Sequence[Pair]) -> bool:
    """True if the aligned axes of two inputs are in order in one input and not in the other."""
    sides: tuple[dict[str, list[tuple[int, ...]]], ...] = ({}, {})
    for pair in pairs:
        for side, origin in zip(sides, pair):
            side.setdefault(origin.source, []).append(origin.path)
    left, right = (all(paths == sorted(paths) for paths in side.values()) for side in sides)
    return left != right


def counted(concat: Concat) -> bool:
    """True if coordinates that run through all segments (frames of several videos) were aligned with them."""
    first = next(iter(atoms_of((concat,))), None)
    return first is not None and ("counted", _key(concat)) in first.derived


def count_through(concat: Concat) -> None:
    """Note that coordinates run through whole named axes, each of another input, that are concatenated."""
    segments = [expand(segment) for segment in flat_segments(concat)]
    atoms = [part for segment in segments for part in segment]
    named = all(isinstance(atom, Atom) and atom.kind is Kind.NAMED and not atom.inner for atom in atoms)
    sources = {place for atom in atoms if isinstance(atom, Atom) for place in atom.places or ()}
    if named and len(sources) == len(atoms) and all(len(segment) <= 1 for segment in segments):
        next(atoms_of((concat,))).derived["counted", _key(concat)] = True


def _key(concat: Concat) -> tuple[Any, ...]:
    return tuple(expand(segment) for segment in flat_segments(concat))
