"""Selections: what was taken at one position of a token axis, and where it may come to stand afterwards.

`x[:, :, 3]` has lost the axis of frames, but not what it is: data of the third one. Spread along an axis again, it can
stand at any place there, and a sum of such terms, each times a table that is 1 at one place, is a shuffle. So a tensor
remembers the atoms that it was selected from. An axis along which it is broadcast is no table any more, nor named after
what else stands there, where that could be one of these atoms again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from svg_compile._compat.sizes import size_hint
from svg_compile.passes.axes.axis import Atom, Axis, Kind, atoms_of, is_opaque, length
from svg_compile.passes.axes.new_axes import mixed_in, opaque_axis

# The atoms that a tensor was selected from, at one position.
Selected = frozenset[Atom]


def selectable(axis: Axis) -> Selected:
    """The atoms to record for a tensor that was selected at one position of an axis."""
    kinds = (Kind.NAMED, Kind.OPAQUE)
    return frozenset(atom for atom in atoms_of(axis) if atom.kind in kinds and not of_samples(atom))


def not_shown(operands: Iterable[Axis], result: Iterable[Axis]) -> list[Atom]:
    """The operands' atoms of which a result may hold a single position: none of its atoms runs over several of them."""
    before = dict.fromkeys(atom for axis in operands for atom in atoms_of(axis))
    shown = {atom for axis in result for atom in atoms_of(axis)}
    made = [atom for atom in shown if atom not in before and size_hint(atom.size) > 1]
    asked = [atom for atom in before if atom.kind in (Kind.NAMED, Kind.OPAQUE) and atom not in shown]
    return [atom for atom in asked if not any(_stands_for(new, atom) for new in made)]


def _stands_for(new: Atom, atom: Atom) -> bool:
    """True if an atom was derived from another one, or from one that the other was split off."""
    whole: Atom | None = atom
    while whole is not None:
        if whole in new.covers or any(new is each for each in whole.derived.values()):
            return True
        whole = whole.parent
    return False


def of_samples(atom: Atom) -> bool:
    """True if an atom is a batch dimension, whose order is not tracked."""
    return atom.origin is not None and atom.origin.of_samples


def after_selecting(axis: Axis, selected: Selected) -> Axis:
    """A remaining axis, after a position was selected from another one.

    An axis of another input may be there only because of broadcasting.
    """
    sources = {atom.origin.source for atom in selected if atom.origin is not None}
    others = (atom for atom in atoms_of(axis) if atom.origin is not None and atom.origin.source not in sources)
    if any(may_be_selected(atom, selected, set()) for atom in others):
        return opaque_axis(length(axis), axis)
    return mixed_in(axis)


def own_atoms(tensor: Tensor, own: Sequence[Axis], shape: Sequence[Any]) -> set[Atom]:
    """The atoms along which a tensor is not broadcast to `shape`; of pieces, also those that they are pieces of."""
    sizes = tuple(shape)[len(shape) - tensor.dim() :]
    # A coincidence of sizes costs a refusal, and is none of the facts that a graph is guarded by.
    pairs = zip(own, tensor.shape, sizes)
    found = {atom for axis, mine, size in pairs if size_hint(mine) == size_hint(size) for atom in atoms_of(axis)}
    return found | {atom for piece in found if piece.piece is not None for atom in atoms_of(piece.piece.whole)}


def broadcast_selected(
    axes: Sequence[Axis],
    shape: Sequence[Any],
    tensor: Tensor,
    own: Sequence[Axis],
    selected: Selected,
    joined: int | None,
) -> list[Axis]:
    """The axes of a result into which `tensor` was broadcast, which has the axes `own` and was taken from `selected`.

    joined: the dimension along which it was concatenated, where it is a segment of its own.
    """
    shown = {atom for axis in own for atom in atoms_of(axis)}
    out = []
    for dim, axis in enumerate(axes):
        place = dim - len(axes) + tensor.dim()
        there = place >= 0 and size_hint(tensor.shape[place]) == size_hint(shape[dim])
        # Pieces of one position: a neighbour may come from a different tensor.
        pieces = [atom for atom in atoms_of(axis) if atom.piece is not None and atom not in shown]
        named = [atom for atom in atoms_of(axis) if atom.piece is None and not there]
        if dim == joined:
            out.append(axis)
        elif any(may_be_selected(atom, selected, shown) for atom in named):
            out.append(axis if is_opaque(axis) else opaque_axis(shape[dim], axis))
        elif any(may_be_selected(atom, selected, shown) for piece in pieces for atom in atoms_of(whole_of(piece))):
            out.append(opaque_axis(shape[dim], axis))
        else:
            out.append(mixed_in(axis))
    return out


def whole_of(piece: Atom) -> Axis:
    """The axis that a piece was cut from; the atom itself if it is not a piece."""
    return (piece,) if piece.piece is None else piece.piece.whole


def may_be_selected(atom: Atom, selected: Selected, shown: set[Atom]) -> bool:
    """True if a named axis that a tensor does not have could be one that it was selected from."""
    if atom.kind is not Kind.NAMED or atom in shown or of_samples(atom):
        return False
    return any(_may_be(atom, other) for other in selected)


def _may_be(atom: Atom, other: Atom) -> bool:
    if other.places is None or atom.places is None or other.places & atom.places:
        return True
    return size_hint(atom.size) == size_hint(other.size)
