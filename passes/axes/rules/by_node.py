"""Rules of functions that stand in the graph as one node, but run as several ATen operators.

`F.pad` in its circular mode is a buffer and six copies, `F.interpolate` a look-up by an index: what they mean for an
axis is visible only at the node. Their rules are asked after the node has run, and name its result anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch.nn.functional as F

from svg_compile._compat.operators import PAD_TARGETS
from svg_compile._compat.sizes import expression
from svg_compile.passes.axes.axis import Atom, Axis, Kind, expand, is_one
from svg_compile.passes.axes.new_axes import other_positions
from svg_compile.passes.axes.rules.call import Call
from svg_compile.passes.axes.rules.moves import padded_along
from svg_compile.passes.axes.rules.registry import Rule, same_size


class NodeRule(NamedTuple):
    """The rule of a function: what its first arguments are called, and the axes of its result."""

    names: tuple[str, ...]
    rule: Rule


def _interpolate(call: Call) -> list[Axis]:
    """All modes go along an axis in its order; an axis whose size changes is no axis of tokens any more."""
    axes = call.axes
    for dim in range(2, call.source.dim()):
        if not same_size(call.source.shape[dim], call.shape[dim]):
            axes[dim] = _resized(axes[dim], call.shape[dim])
    return axes


def _resized(axis: Axis, size: Any) -> Axis:
    parts = expand(axis)
    atom = parts[0] if len(parts) == 1 else None
    if not isinstance(atom, Atom) or atom.kind is not Kind.NAMED or atom.inner or atom.origin is None or is_one(size):
        return other_positions(size, parts)
    key = ("resized", expression(size))
    made: Atom | None = atom.derived.get(key)
    if made is None:
        made = atom.derived[key] = Atom(size, Kind.NAMED, replace(atom.origin, exact=False))
    return (made,)


NODE_RULES: dict[Any, NodeRule] = {
    F.interpolate: NodeRule(("input",), _interpolate),
    **dict.fromkeys(PAD_TARGETS, NodeRule(("input", "pad"), padded_along)),
}
