"""Rules of functions that stand in the graph as one node, but run as several ATen operators.

`F.pad` in its circular mode is a buffer and six copies, `F.interpolate` a look-up by an index: what they mean for an
axis is to be seen at the node alone. Their rules are asked after the node has run, and name its result anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from svg_compile._compat.operators import PAD_TARGETS
from svg_compile._compat.sizes import expression
from svg_compile.passes.axes.axis import Atom, Axis, Kind, expand, is_one
from svg_compile.passes.axes.new_axes import other_positions
from svg_compile.passes.axes.rules.moves import name_padded
from svg_compile.passes.axes.rules.registry import State, same_size

# (state, arguments, keyword arguments, result)
NodeRule = Callable[[State, Sequence[Any], Mapping[str, Any], Tensor], None]


def _pad(state: State, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    """Whatever the mode, positions behind an axis leave the others in order."""
    source, pad = (args[at] if at < len(args) else kwargs[name] for at, name in enumerate(("input", "pad")))
    name_padded(state, source, pad, out)


def _interpolate(state: State, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
    """All modes go along an axis in its order; an axis whose size changes is no axis of tokens any more."""
    source = args[0] if args else kwargs["input"]
    axes = list(state.of(source))
    for dim in range(2, source.dim()):
        if not same_size(source.shape[dim], out.shape[dim]):
            axes[dim] = _resized(axes[dim], out.shape[dim])
    state.name(out, axes)


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


NODE_RULES: dict[Any, NodeRule] = {F.interpolate: _interpolate, **dict.fromkeys(PAD_TARGETS, _pad)}
