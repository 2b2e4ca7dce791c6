"""Values taken at one position of a token axis, and where they come to stand afterwards.

`x[:, :, 3]` has lost the axis of frames, but not what it is: data of the third one. Spread along an axis again, it can
stand at any place there, and a sum of such terms, each times a table that is 1 at one place, is a shuffle. So a tensor
remembers the axes that it was taken at a position of, its pins, and an axis along which it is spread by broadcasting is
no table any more, nor named after what else stands there, where it could be one of the pins come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from svg_compile._compat.sizes import size_hint
from svg_compile.passes.axes.axis import Atom, Axis, Kind, Origin, atoms_of, is_opaque, length, mixed_in, opaque_axis

Pins = frozenset[Atom]


def is_batch(origin: Origin | None) -> bool:
    """Whether an axis is an input's first one, along which samples stand: nothing is claimed of their order."""
    return origin is not None and origin.path == (0,)


def pins_of(axis: Axis) -> Pins:
    """What a tensor must remember that stands at one position of the axis."""
    kinds = (Kind.NAMED, Kind.OPAQUE)
    return frozenset(atom for atom in atoms_of(axis) if atom.kind in kinds and not is_batch(atom.origin))


def beside(axis: Axis, pins: Pins) -> Axis:
    """An axis that is left when a position was taken of another one.

    One of another input may have been given to what now stands at that position by broadcasting.
    """
    sources = {pin.origin.source for pin in pins if pin.origin is not None}
    others = (atom for atom in atoms_of(axis) if atom.origin is not None and atom.origin.source not in sources)
    if any(comes_back(atom, pins, set()) for atom in others):
        return opaque_axis(length(axis))
    return mixed_in(axis)


def spread(
    axes: Sequence[Axis], shape: Sequence[Any], tensor: Tensor, own: Iterable[Axis], pins: Pins, joined: int | None
) -> list[Axis]:
    """The axes of a result into which `tensor`, which has pins and the axes `own`, was broadcast.

    joined: the dimension along which it was concatenated, where it is a segment of its own.
    """
    shown = {atom for axis in own for atom in atoms_of(axis)}
    out = []
    for dim, axis in enumerate(axes):
        place = dim - len(axes) + tensor.dim()
        there = place >= 0 and size_hint(tensor.shape[place]) == size_hint(shape[dim])
        # A coincidence of sizes costs a refusal, and is none of the facts that a graph is guarded by.
        if dim == joined:
            out.append(axis)
        elif not there and any(comes_back(atom, pins, shown) for atom in atoms_of(axis)):
            out.append(axis if is_opaque(axis) else opaque_axis(shape[dim]))
        else:
            out.append(mixed_in(axis))
    return out


def comes_back(atom: Atom, pins: Pins, shown: set[Atom]) -> bool:
    """Whether a named axis that a tensor does not show could be the one that it was taken at a position of."""
    if atom.kind is not Kind.NAMED or atom in shown or is_batch(atom.origin):
        return False
    return any(atom.root is pin.root or size_hint(atom.size) == size_hint(pin.size) for pin in pins)
