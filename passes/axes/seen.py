"""The axes of a marked tensor at one moment of a run, and whether two such tensors can stand for each other.

They can where nothing that the rules could derive from one differs for the other: their axes are made of the same
atoms, or of fresh ones of the kinds for which it does not matter which atom it is (tables, channels). An atom that
counts an input's positions, or is opaque, is like itself alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from svg_compile.passes.axes.axis import Atom, Axis, Concat, Kind, Part, resolve
from svg_compile.passes.axes.selections import Selected
from svg_compile.passes.axes.tracker import AxisTracker

_NAMELESS = (Kind.TABLE, Kind.MIXED)


@dataclass(frozen=True)
class Seen:
    """The state of a marked tensor. uncertain: it may alias another tensor, or has lost its axes."""

    axes: tuple[Axis, ...]
    selected: Selected
    values: Any
    uncertain: bool


def seen(tracker: AxisTracker, tensor: Tensor) -> Seen:
    """The current state of a tensor in a tracker."""
    axes = tuple(resolve(axis) for axis in tracker.of(tensor))
    return Seen(axes, tracker.selected_from(tensor), tracker.values.of(tensor), tracker.storages.is_uncertain(tensor))


def same_seen(left: Seen, right: Seen) -> bool:
    """True if one tensor can replace the other."""
    if (left.selected, left.values) != (right.selected, right.values) or left.uncertain or right.uncertain:
        return False
    return len(left.axes) == len(right.axes) and all(map(interchangeable, left.axes, right.axes))


def interchangeable(left: Axis, right: Axis) -> bool:
    """True if two resolved axes have the same atoms, or equivalent ones without a name."""
    return len(left) == len(right) and all(map(_interchangeable, left, right))


def _interchangeable(left: Part, right: Part) -> bool:
    if left is right:
        return True
    if isinstance(left, Concat) and isinstance(right, Concat):
        same = len(left.segments) == len(right.segments)
        return same and all(map(interchangeable, left.segments, right.segments))
    if not (isinstance(left, Atom) and isinstance(right, Atom)):
        return False
    if left.kind is not right.kind or left.kind not in _NAMELESS or left.size != right.size:
        return False
    return (left.inner, left.aligned, left.origin) == (right.inner, right.aligned, right.origin)
