"""The registry of operator rules: the table that holds them, and what a rule takes and returns.

`RULES` maps an ATen operator to a function of a `Call` that returns the axes of its result. An operator without a rule
makes every axis of its results opaque, which is always safe: an opaque axis is never taken for video tokens. A rule may
name an axis of a result only if index i along it speaks of what index i of the operand's axis speaks of.

Three decorators register a rule, by what becomes of positions of the operands:

    @rule       nothing is said: an operand's axis that the result does not show is taken for one that was indexed, and
                the parts of an axis of which another part is gone are opaque
    @takes_all  each position of the operands is in the result, or has gone into all of it alike (a sum, a product)
    @along      positions along some dimensions move or are left out; the others stay

What a rule returns the tracker writes down: it checks that each axis is as long as its dimension, names the result, and
notes what was taken at one position (`selections`). The rules themselves stand in `views` and `moves` (where elements
go) and in `compute` (what is computed).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, Union

from torch import Tensor

from svg_compile._compat.sizes import equal, holds, size_hint
from svg_compile.passes.axes.axis import Axis, Kind, atoms_of, is_table
from svg_compile.passes.axes.merge import unify_each
from svg_compile.passes.axes.naming import Meaning
from svg_compile.passes.axes.new_axes import axis_of, free_axis, without_parts_of
from svg_compile.passes.axes.rules.call import AxesOf, Call
from svg_compile.passes.axes.selections import not_shown


class Named(NamedTuple):
    """The axes of a result, and the operands' axes of which it shows one position."""

    axes: list[Axis]
    selected: Sequence[Axis] = ()


# The result of a rule; None if the result's axes are unknown.
Answer = Union[list[Axis], Named, None]
Rule = Callable[[Call], Answer]
R = TypeVar("R", bound=Rule)
# The new axis along a dimension: (call, the operand's axis, the result's size) -> axis.
Replacement = Callable[[Call, Axis, Any], Axis]
RULES: dict[Any, Rule] = {}


def rule(*operators: Any) -> Callable[[R], R]:
    """Register the rule of some operators, which returns the axes of a result.

    An axis of an operand that none of them shows was indexed, the rule need not say so.
    """

    def register(function: R) -> R:
        def careful(call: Call) -> Answer:
            answer = function(call)
            return _careful(call, answer) if isinstance(answer, list) else answer

        RULES.update(dict.fromkeys(operators, careful))
        return function

    return register


def takes_all(*operators: Any) -> Callable[[R], R]:
    """Register the rule of operators that leave out no position of their operands."""

    def register(function: R) -> R:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def along(*names: str) -> Callable[..., Callable[[Replacement], Replacement]]:
    """`along("dims")(aten.roll)`: register the new axis along each of the dimensions that an argument gives.

    names: what operators call that argument.
    """

    def of_operators(*operators: Any) -> Callable[[Replacement], Replacement]:
        def register(function: Replacement) -> Replacement:
            def answer(call: Call) -> Answer:
                axes, shape = call.axes, call.shape
                made = {dim: function(call, axes[dim], shape[dim]) for dim in call.dims(*names) if axes}
                return replaced(call, made)

            RULES.update(dict.fromkeys(operators, answer))
            return function

        return register

    return of_operators


def replaced(call: Call, made: Mapping[int, Axis]) -> Named:
    """The first operand's axes, new ones along some of its dimensions: of these some positions moved or are gone."""
    before = call.axes
    axes = list(before)
    for dim, axis in made.items():
        if axis is not before[dim]:
            axes = thinned(axes, dim)
            axes[dim] = axis
    return Named(axes, [before[dim] for dim in made if size_hint(call.shape[dim]) == 1])


def indexed(call: Call, dim: int) -> Named:
    """The first operand's axes but one, along which one position was taken."""
    axes = thinned(call.axes, dim)
    taken = axes.pop(dim)
    return Named(axes, [taken])


def thinned(axes: list[Axis], dim: int) -> list[Axis]:
    """The axes of which only some positions along `dim` are kept.

    Where `dim` is one part of a split axis, its other parts now count every n-th of it only: they become opaque.
    """
    roots = {atom.root for atom in atoms_of(axes[dim]) if atom.kind is Kind.NAMED}
    return [axis if other == dim else without_parts_of(axis, roots) for other, axis in enumerate(axes)]


def _careful(call: Call, axes: list[Axis]) -> Named:
    """The axes that a rule gave, for an operator of which nothing is known but them."""
    gone = not_shown([axis for tensor in call.tensors for axis in call.of(tensor)], axes)
    roots = {atom.root for atom in gone if atom.kind is Kind.NAMED}
    return Named([without_parts_of(axis, roots) for axis in axes], [(atom,) for atom in gone])


def check_lengths(axes: Sequence[Axis], out: Tensor) -> None:
    """Raise AssertionError where axes are not those of a tensor of this shape in the traced example."""
    lengths = [math.prod(size_hint(part.size) for part in axis) for axis in axes]
    sizes = [size_hint(size) for size in out.shape]
    # 0: it depends on data.
    if len(lengths) != len(sizes) or any(a != b for a, b in zip(lengths, sizes) if a and b):
        raise AssertionError(f"an axis rule gave axes of {lengths} for a tensor of {sizes}")


# ---- what rules share ------------------------------------------------------------------------------------------------


def same_size(left: Any, right: Any) -> bool:
    return holds(equal, left, right)


def aligned(
    of: AxesOf, tensors: Iterable[Tensor], shape: tuple[Any, ...], meaning: Meaning | None = None
) -> list[Axis]:
    """The axes of a pointwise result: every operand's axes that are not broadcast, unified."""
    axes: list[Axis | None] = [None] * len(shape)
    for tensor in tensors:
        axes = unify_each(axes, shown_axes(of, tensor, shape), shape, meaning)
    return [free_axis(size) if axis is None else axis for axis, size in zip(axes, shape)]


def shown_axes(of: AxesOf, tensor: Tensor, shape: tuple[Any, ...]) -> list[Axis | None]:
    """A tensor's axes against the dimensions of a result that it is broadcast to; None along which it is."""
    pad = len(shape) - tensor.dim()
    own = zip(of(tensor), tensor.shape, shape[pad:])
    return [None] * pad + [axis if same_size(mine, size) else None for axis, mine, size in own]


def of_pieces(pieces: Iterable[Tensor], of: AxesOf, size: Any) -> Axis:
    """A new axis that counts tensors: a table where they are, else in an order that only the model knows."""
    tables = all(is_table(axis) for piece in pieces for axis in of(piece))
    return axis_of(size, Kind.TABLE if tables else Kind.MIXED)
