"""Which of two parts names the result of a pointwise operator, and what coordinates prove of a packed axis.

latents' 5*6*4  against  a mask's 5*6*4          ->  the latents' name
an input's 120  against  arange(5)*arange(6)*arange(4)  ->  5*6*4, of that input, for good
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from svg_compile.passes.axes.axis import Atom, Axis, Concat, Kind, Origin, atoms_of, expand, flat_segments

# What an atom means in the result, where that is another thing: needed where the result is written into its operand.
Meaning = dict[Atom, Axis]
# Axes of two inputs that run along one another.
Pair = tuple[Origin, Origin]


def crossed(one: Pair, other: Pair) -> bool:
    """Whether of two dimensions, of the same two inputs both, one comes first in one input and last in the other."""
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
        # What is not known of one is not known of the result.
        return y if x.origin.given else x
    if x.origin.exact is not y.origin.exact:
        return x if x.origin.exact else y
    # Of two equals, the first operand: mostly the data, the second a table.
    return y if _standing(y.origin) > _standing(x.origin) else x


def _standing(origin: Origin) -> int:
    """Latents [B, C, F, H, W] speak for a sequence [B, N, C], which speaks for masks, times and positions [B, N]."""
    return (origin.rank > 2) + (origin.rank > 4)


def prove(atom: Atom, group: Axis) -> Axis | None:
    """Coordinates along an input's packed axis prove its grid, for that input alone and for good."""
    coordinates = [part for part in group if isinstance(part, Atom) and part.kind is Kind.COORD and not part.inner]
    if atom.kind is not Kind.NAMED or atom.inner or atom.origin is None or len(group) < 2:
        return None
    if len(coordinates) != len(group) or len({id(part.root) for part in coordinates}) != len(group):
        return None
    origin = atom.origin
    if origin.first:
        # Along the first dimension stand samples, of whose order nothing was asked so far.
        return None
    atom.parts = tuple(
        Atom(part.size, Kind.NAMED, replace(origin, path=(*origin.path, at))) for at, part in enumerate(coordinates)
    )
    return atom.parts


def finer(atom: Atom, group: Axis, meaning: Meaning) -> Axis | None:
    """A named axis against named parts of another input: a timestep or mask a token, say. The parts tell more."""
    if atom.kind is not Kind.NAMED or atom.inner or atom.origin is None or not atom.origin.given:
        return None
    for part in group:
        if isinstance(part, Atom):
            if part.inner or part.kind is Kind.MIXED:
                return None
            if part.origin is not None and part.origin.source == atom.origin.source:
                return None
    meaning[atom] = group
    return group


def swapped(pairs: Sequence[Pair]) -> bool:
    """Whether two inputs are aligned whose axes stand in order in one and not in the other."""
    sides: tuple[dict[str, list[tuple[int, ...]]], ...] = ({}, {})
    for pair in pairs:
        for side, origin in zip(sides, pair):
            side.setdefault(origin.source, []).append(origin.path)
    left, right = (all(paths == sorted(paths) for paths in side.values()) for side in sides)
    return left != right


def counted(concat: Concat) -> bool:
    """Whether coordinates that count through all segments, frames of several videos, were aligned with them."""
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
