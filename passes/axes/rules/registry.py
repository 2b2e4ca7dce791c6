"""What the rules of operators stand on: the table that holds them, and what they share.

`RULES` maps an ATen operator to a function of (state, bound arguments, output). An operator without a rule makes
every axis of its outputs opaque, which is always safe: an opaque axis is never taken for video tokens. A rule may
name an output axis only if index i along it speaks of what index i of the input axis speaks of. The rules themselves
stand in `view_rules` and `move_rules` (where elements go) and in `compute_rules` (what is computed of them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from svg_compile._compat.sizes import equal, holds
from svg_compile.passes.axes.axis import Axis, Kind, atoms_of, expand, is_table
from svg_compile.passes.axes.merge import unify_each
from svg_compile.passes.axes.naming import Meaning
from svg_compile.passes.axes.new_axes import axis_of, free_axis, opaque_atom


class State(Protocol):
    """What a rule may read and write: the axes of each tensor."""

    def of(self, tensor: Tensor) -> list[Axis]: ...

    def name(self, tensor: Tensor, axes: list[Axis]) -> None: ...

    def pin(self, tensor: Tensor, axis: Axis) -> None: ...

    def written(self, target: Tensor, operands: list[Tensor], *, over: bool = False) -> None: ...


Bound = Mapping[str, Any]
Rule = Callable[[State, Bound, Any], None]
RULES: dict[Any, Rule] = {}


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Register a function as the rule of some ATen operators."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = function
        return function

    return register


def same_size(left: Any, right: Any) -> bool:
    return holds(equal, left, right)


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def aligned(
    state: State, tensors: Iterable[Tensor], shape: tuple[Any, ...], meaning: Meaning | None = None
) -> list[Axis]:
    """The axes of a pointwise result: every operand's axes that are not broadcast, unified."""
    axes: list[Axis | None] = [None] * len(shape)
    for tensor in tensors:
        axes = unify_each(axes, shown_axes(state, tensor, shape), shape, meaning)
    return [free_axis(size) if axis is None else axis for axis, size in zip(axes, shape)]


def shown_axes(state: State, tensor: Tensor, shape: tuple[Any, ...]) -> list[Axis | None]:
    """A tensor's axes against the dimensions of a result that it is broadcast to; None along which it is."""
    pad = len(shape) - tensor.dim()
    own = zip(state.of(tensor), tensor.shape, shape[pad:])
    return [None] * pad + [axis if same_size(mine, size) else None for axis, mine, size in own]


def thinned(axes: list[Axis], dim: int) -> list[Axis]:
    """The axes of which only some positions along `dim` are kept.

    Where `dim` is one part of a split axis, its other parts now count every n-th of it only: they become opaque.
    """
    roots = {id(atom.root) for atom in atoms_of(axes[dim]) if atom.kind is Kind.NAMED}
    out = list(axes)
    for other, axis in enumerate(axes):
        if other != dim and roots and any(id(atom.root) in roots for atom in atoms_of(axis)):
            parts = [(part, any(id(atom.root) in roots for atom in atoms_of((part,)))) for part in expand(axis)]
            out[other] = tuple(opaque_atom(part.size, ((part,),)) if hit else part for part, hit in parts)
    return out


def of_pieces(pieces: Iterable[Tensor], state: State, size: Any) -> Axis:
    """A new axis that counts tensors: a table where they are, else in an order that only the model knows."""
    tables = all(is_table(axis) for piece in pieces for axis in state.of(piece))
    return axis_of(size, Kind.TABLE if tables else Kind.MIXED)
