"""Axes in print."""

from __future__ import annotations

from svg_compile.passes.axes.axis import Atom, Axis, Concat, expand


def show(axis: Axis) -> str:
    """An axis in print: `5*6*4`, `[11 | 5*6*4]`, `?120` where nothing is proven of it."""
    out = []
    for part in expand(axis):
        if isinstance(part, Concat):
            out.append("[" + " | ".join(show(segment) for segment in part.segments) + "]")
        else:
            out.append(f"?{part.size}" if isinstance(part, Atom) and part.opaque else str(part.size))
    return "*".join(out) or "1"


def show_sequence(axis: Axis) -> str:
    """A sequence in print, in brackets: `[5*7*3]`, `[11 | 5*7*3]`."""
    alone = len(axis) == 1 and isinstance(axis[0], Concat)
    return show(axis) if alone else f"[{show(axis)}]"
