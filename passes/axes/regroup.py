"""How a view hands out the atoms of the viewed tensor to its own dimensions, and splits them where it must."""

from __future__ import annotations

from typing import Any

from svg_compile._compat.sizes import divides, equal, holds, product_is, product_of, within
from svg_compile.passes.axes.axis import Atom, Axis, Concat, Part, expand, is_one
from svg_compile.passes.axes.new_axes import opaque_axis


def regroup(axes: list[Axis], shape: tuple[Any, ...]) -> list[Axis]:
    """The axes of a view of shape `shape`: the atoms in row-major order, handed out again, split where they must be."""
    if any(isinstance(size, int) and size == 0 for size in shape):
        return [opaque_axis(size, *axes) for size in shape]
    flat = [part for axis in axes for part in expand(axis)]
    out: list[Axis] = []
    for position, size in enumerate(shape):
        axis: list[Part] = []
        sizes: list[Any] = []
        while not is_one(size) and not (sizes and product_is(sizes, size)):
            part = flat.pop(0) if flat else None
            if part is None:
                return out + [opaque_axis(n, *axes) for n in shape[position:]]
            if not holds(equal, part.size, size) and not within([*sizes, part.size], size):
                rest = size // product_of(sizes)
                if isinstance(part, Concat) or not holds(divides, rest, part.size):
                    return out + [opaque_axis(n, *axes) for n in shape[position:]]
                part, inner = _split(part, rest)
                flat.insert(0, inner)
            axis.append(part)
            sizes.append(part.size)
        out.append(tuple(axis))
    return out


def _split(atom: Atom, outer: Any) -> tuple[Atom, Atom]:
    """Split an atom into `outer` times the rest; the atom itself becomes that product."""
    leading = Atom(outer, atom.kind, atom.origin)
    inner = Atom(atom.size // outer, atom.kind, atom.origin)
    leading.root = inner.root = atom.root
    leading.parent = inner.parent = atom
    leading.inner, inner.inner = atom.inner, True
    leading.why = inner.why = atom.why
    leading.made_of = inner.made_of = atom.made_of
    leading.covers = inner.covers = atom.covers
    atom.parts = (leading, inner)
    return leading, inner
