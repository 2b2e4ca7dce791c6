"""Writes through views of one storage: a buffer that is filled slice by slice has segments, one for each slice."""

from __future__ import annotations

from torch import Tensor

from svg_compile._compat.sizes import at_most, divides, holds, size_hint
from svg_compile.passes.axes.axis import Atom, Axis, Kind, atoms_of, is_table
from svg_compile.passes.axes.merge import unify_each
from svg_compile.passes.axes.pieces import cut, put_together
from svg_compile.passes.axes.rules.call import AxesOf
from svg_compile.passes.axes.rules.registry import same_size


def apart(one: Tensor, other: Tensor) -> bool:
    """True if two views of a storage are disjoint ranges of positions along one dimension.

    Proven by strides only: the dimension's stride must exceed the extent of all inner dimensions.
    """
    if one.dim() != other.dim() or not all(map(same_size, one.stride(), other.stride())):
        return False
    dims = [dim for dim in range(one.dim()) if not same_size(one.shape[dim], other.shape[dim])]
    if len(dims) != 1:
        return False
    (dim,) = dims
    step = one.stride(dim)
    inner = sum(
        (size - 1) * stride for size, stride in zip(one.shape, one.stride()) if not holds(at_most, step, stride)
    )
    outer = [stride for at, stride in enumerate(one.stride()) if at != dim and holds(at_most, step, stride)]
    first, second = sorted((one, other), key=lambda view: size_hint(view.storage_offset()))
    distance = second.storage_offset() - first.storage_offset()
    reach = distance + (second.shape[dim] - 1) * step + inner
    # From the first one's last position to the second one's first, and round to the first one's next row.
    return (
        holds(at_most, inner + 1, step)
        and holds(at_most, first.shape[dim] * step, distance)
        and all(holds(at_most, reach + 1, stride) for stride in outer)
    )


def filled(of: AxesOf, buffer: Tensor, written: Tensor, after: list[Axis]) -> list[Axis] | None:
    """The axes of a buffer a part of which, where nobody's data stood, was written: a segment there. None otherwise."""
    if buffer.dim() != written.dim() or not all(map(same_size, buffer.stride(), written.stride())):
        return None
    dims = [dim for dim in range(buffer.dim()) if not same_size(buffer.shape[dim], written.shape[dim])]
    distance = written.storage_offset() - buffer.storage_offset()
    if len(dims) != 1 or not holds(at_most, 0, distance) or same_size(buffer.stride(dims[0]), 0):
        return None
    (dim,) = dims
    step, size = buffer.stride(dim), buffer.shape[dim]
    if not holds(divides, step, distance):
        return None
    start = distance // step
    stop = start + written.shape[dim]
    axes = of(buffer)
    if not holds(at_most, stop, size) or not is_table(cut(axes[dim], start, stop, stop - start)):
        return None
    if any(atom.kind is Kind.COORD for atom in atoms_of(axes[dim])):
        return None
    # A segment of one position keeps an atom of its own.
    parts = [(start, cut(axes[dim], 0, start, start)), (stop - start, after[dim])]
    parts.append((size - stop, cut(axes[dim], stop, size, size - stop)))
    segments = [axis or (Atom(length_, Kind.MIXED),) for length_, axis in parts if not same_size(length_, 0)]
    joint = put_together(segments, size)
    others = [None if at == dim else axis for at, axis in enumerate(axes)]
    beside = [None if at == dim else axis for at, axis in enumerate(after)]
    kept = unify_each(others, beside, tuple(buffer.shape))
    return [joint if axis is None else axis for axis in kept]
