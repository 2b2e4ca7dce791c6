"""Axes that a rule makes out of others: opaque ones, tables, positions in another order, what data flowed into.

Where they can matter at all, positions whose order is not followed are an opaque atom, made by `opaque_atom` alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from svg_compile._compat.sizes import size_hint
from svg_compile.passes.axes.axis import (
    TABLES,
    Atom,
    Axis,
    Concat,
    Kind,
    Origin,
    Part,
    atoms_of,
    expand,
    expand_segment,
    flat_segments,
    is_one,
    is_opaque,
    is_plain,
    length,
)
from svg_compile.passes.axes.why import Why, under_analysis


def axis_of(size: Any, kind: Kind, origin: Origin | None = None) -> Axis:
    """An axis of one new atom."""
    return () if is_one(size) else (Atom(size, kind, origin),)


def free_axis(size: Any) -> Axis:
    return axis_of(size, Kind.TABLE)


def opaque_atom(size: Any, like: Iterable[Axis] = (), why: Why | None = None) -> Atom:
    """An atom whose order is lost; every opaque atom is made here.

    like: the axes whose positions it may run over, none where any could be. If one of them is opaque already, the
    operator that made that one so is to blame, else `why`, by default the operator that is being analysed.
    """
    atom = Atom(size, Kind.OPAQUE)
    atoms = [part for axis in like for part in atoms_of(axis)]
    earlier = next((part.why for part in atoms if part.why is not None), None)
    atom.why = why or earlier or under_analysis()
    # A tensor computed before a graph break may come from any input.
    places = [None if part.origin is not None and not part.origin.given else part.places for part in atoms]
    known = [place for place in places if place is not None]
    atom.made_of = frozenset().union(*known) if places and len(known) == len(places) else None
    atom.covers = frozenset(atoms).union(*(part.covers for part in atoms))
    return atom


def opaque_axis(size: Any, *like: Axis, why: Why | None = None) -> Axis:
    """An axis of one opaque atom; see `opaque_atom`."""
    return () if is_one(size) else (opaque_atom(size, like, why),)


def lost_axis(size: Any, operands: Sequence[Axis]) -> Axis:
    """An axis of a result whose positions may come from any axis of the operands."""
    alike = [axis for axis in operands if size_hint(length(axis)) == size_hint(size) and is_opaque(axis)]
    atoms = (atom for axis in alike for atom in atoms_of(axis))
    earlier = next((atom.why for atom in atoms if atom.why is not None), under_analysis())
    return opaque_axis(size, *operands, why=earlier)


def other_positions(size: Any, like: Axis) -> Axis:
    """A new axis over some positions of `like`, in an order that is not followed: opaque where that could matter."""
    parts = expand(like)
    kinds = {part.kind if isinstance(part, Atom) else Kind.OPAQUE for part in parts}
    if not kinds or kinds == {Kind.TABLE}:
        return free_axis(size)
    if kinds == {Kind.COORD} and len(parts) == 1 and isinstance(parts[0], Atom) and not parts[0].inner:
        return axis_of(size, Kind.COORD)
    return axis_of(size, Kind.MIXED) if is_plain(like) else opaque_axis(size, like)


def picked(size: Any, like: Axis) -> Axis:
    """`other_positions`, of those where a mask along `like` is true."""
    axis = other_positions(size, like)
    for atom in atoms_of(axis):
        if atom.opaque:
            atom.rows = expand(like)
    return axis


def mixed_in(axis: Axis) -> Axis:
    """The axis of a result into which data flowed along another axis: what was a table there, is one no more."""
    out: list[Part] = []
    for part in expand_segment(axis):
        if isinstance(part, Atom) and part.kind in TABLES:
            part = part.derived.setdefault(Kind.MIXED, Atom(part.size, Kind.MIXED))
        elif isinstance(part, Concat):
            part = Concat(tuple(mixed_in(segment) for segment in flat_segments(part)), part.size)
        out.append(part)
    return tuple(out)


def without_parts_of(axis: Axis, roots: Collection[Atom]) -> Axis:
    """The axis with every part opaque that was split off one of the roots, of which other parts are gone."""
    if not roots or not any(atom.root in roots for atom in atoms_of(axis)):
        return axis
    hits = [(part, any(atom.root in roots for atom in atoms_of((part,)))) for part in expand(axis)]
    return tuple(opaque_atom(part.size, ((part,),)) if hit else part for part, hit in hits)
