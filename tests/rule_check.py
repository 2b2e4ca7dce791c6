"""Run one operator under axis inference and on numbers, and compare: every claim of a rule must be true.

    claims(lambda x: x.flip(2), "B=2 c=8 H=4 W=6")      ->   "B c ?4 W"

An operand is written by its axes: `H=4` is an axis of an input, `c=8`, in small letters, channels that the model made,
and `5` a table. The result is printed likewise: `H`, or `H0` and `H1` where a view split it; `H'` for what was made of
its positions in order, `H[1:3]` for a piece; `~8` other channels, `5` a table, `?6` where nothing is known.

The truth comes from running the operator on numbers: those at one position of an operand are changed, and whatever
changes in the result came from there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from svg_compile._compat.pytree import tensors_in
from svg_compile.passes.axes.axis import Atom, Axis, Concat, Kind, Origin, expand
from svg_compile.passes.axes.new_axes import axis_of
from svg_compile.passes.axes.selections import not_shown, of_samples
from svg_compile.passes.axes.tracker import AxisTracker


@dataclass(frozen=True)
class Dimension:
    """One dimension of an operand: its name in print and its axis."""

    operand: int
    dim: int
    name: str
    axis: Axis
    size: int


def claims(function: Callable[..., Any], *operands: str) -> str:
    """The axes that the rules give to each result of `function`, in print; AssertionError where one is not true."""
    dimensions = [dimension for number, text in enumerate(operands) for dimension in _read(number, text)]
    shapes = [[d.size for d in dimensions if d.operand == number] for number in range(len(operands))]
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.rand(shape, generator=generator) + 0.5 for shape in shapes]
    tracker = AxisTracker()
    with FakeTensorMode() as mode, torch.no_grad():
        fakes = [mode.from_tensor(tensor) for tensor in numbers]
        for number, fake in enumerate(fakes):
            tracker.name(fake, [d.axis for d in dimensions if d.operand == number])
        with tracker:
            results = tensors_in(function(*fakes))
    assert not tracker.without_rule, f"no rule: {dict(tracker.without_rule)}"
    plain = _run(function, numbers)
    assert [tuple(result.shape) for result in results] == [tuple(tensor.shape) for tensor in plain]
    for number, result in enumerate(results):
        changes = {d: list(_changes(function, numbers, d, plain, number)) for d in dimensions}
        _check(tracker, result, dimensions, changes)
    return "; ".join(" ".join(_show(axis, dimensions) for axis in tracker.of(result)) for result in results)


def _read(operand: int, text: str) -> Iterator[Dimension]:
    entries = [entry.rpartition("=") for entry in text.split()]
    for dim, (name, _, number) in enumerate(entries):
        size = int(number)
        kind = Kind.TABLE if not name else Kind.NAMED if name.isupper() else Kind.MIXED
        origin = Origin(f"operand {operand}", (dim,), len(entries)) if kind is Kind.NAMED else None
        yield Dimension(operand, dim, name, axis_of(size, kind, origin), size)


def _run(function: Callable[..., Any], numbers: list[Tensor]) -> list[Tensor]:
    # Whatever the operator writes.
    return [result.double() for result in tensors_in(function(*(tensor.clone() for tensor in numbers)))]


def _changes(
    function: Callable[..., Any], numbers: list[Tensor], d: Dimension, plain: list[Tensor], number: int
) -> Iterator[Tensor]:
    """For each position of a dimension: the positions of the result that change with the numbers there."""
    for position in range(d.size):
        changed = [tensor.clone() for tensor in numbers]
        # By a different amount each, so that no sum or product stays equal by chance.
        changed[d.operand].select(d.dim, position).add_(
            torch.rand(numbers[d.operand].select(d.dim, position).shape) + 1
        )
        yield _run(function, changed)[number] != plain[number]


def _check(
    tracker: AxisTracker, result: Tensor, dimensions: list[Dimension], changes: dict[Dimension, list[Tensor]]
) -> None:
    axes = tracker.of(result)
    for d in dimensions:
        own = _coordinates(d.axis)
        for dim, axis in enumerate(axes):
            touched = [_places(change, dim) for change in changes[d]]
            for place, claimed in enumerate(_coordinates(axis)):
                for position in range(d.size):
                    wrong = {a for a, at in claimed.items() if a in own[position] and own[position][a] != at}
                    told = f"dimension {dim} is called {_show(axis, dimensions)}"
                    assert not (wrong and place in touched[position]), (
                        f"{told}, but place {place} of it comes from position {position} of {d.name or d.size}"
                    )
            if any(isinstance(part, Atom) and part in _derived(d.axis) for part in expand(axis)):
                _check_order([places for places in touched if places], d.name)
        _check_selection(tracker, result, d, changes[d])


def _coordinates(axis: Axis) -> list[dict[Atom, int]]:
    """Of each position of an axis: the coordinate along each of its atoms; of a piece, along those of its whole."""
    parts = []
    for part in expand(axis):
        if isinstance(part, Concat):
            parts.append([place for segment in part.segments for place in _coordinates(segment)])
        elif part.piece is not None:
            parts.append(_coordinates(part.piece.whole)[part.piece.start : part.piece.stop])
        else:
            parts.append([{part: at} for at in range(part.size)])
    return [{atom: at for place in places for atom, at in place.items()} for places in itertools.product(*parts)]


def _derived(axis: Axis) -> set[Any]:
    return {made for part in expand(axis) if isinstance(part, Atom) for made in part.derived.values()}


def _places(change: Tensor, dim: int) -> list[int]:
    """The positions of a dimension with any change."""
    others = [other for other in range(change.dim()) if other != dim]
    return (change.any(others) if others else change).nonzero().flatten().tolist()  # type: ignore[no-any-return]


def _check_order(touched: list[list[int]], name: str) -> None:
    """Consecutive positions of an axis must still be consecutive."""
    ends = [(places[0], places[-1]) for places in touched]
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(ends)), (
        f"{name}' is not in the order of {name}"
    )


def _check_selection(tracker: AxisTracker, result: Tensor, d: Dimension, changes: list[Tensor]) -> None:
    """An axis of which only some positions are in the result is claimed there, or recorded as selected."""
    gone = [atom for atom in not_shown([d.axis], tracker.of(result)) if not of_samples(atom)]
    selected = any(change.any() for change in changes) and not all(change.any() for change in changes)
    noted = tracker.selected_from(result)
    assert not (selected and gone and not noted.intersection(gone)), f"one position of {d.name}, and it is not noted"


def _show(axis: Axis, dimensions: list[Dimension]) -> str:
    out = []
    for part in expand(axis):
        if isinstance(part, Concat):
            out.append("[" + " | ".join(_show(segment, dimensions) for segment in part.segments) + "]")
        elif part.piece is not None:
            out.append(f"{_show(part.piece.whole, dimensions)}[{part.piece.start}:{part.piece.stop}]")
        else:
            out.append(_show_atom(part, dimensions))
    return "*".join(out) or "1"


def _show_atom(atom: Atom, dimensions: list[Dimension]) -> str:
    for d in dimensions:
        parts = expand(d.axis)
        if atom in parts and d.name:
            return d.name + (str(parts.index(atom)) if len(parts) > 1 else "")
        if atom in _derived(d.axis) and atom.kind is Kind.NAMED:
            return f"{d.name}'"
    mark = {Kind.OPAQUE: "?", Kind.MIXED: "~", Kind.NAMED: "!"}.get(atom.kind, "")
    return f"{mark}{math.prod([atom.size])}"
