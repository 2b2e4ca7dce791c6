"""Operators whose index is known by its values: the slices that they stand for.

    out = buffer.index_copy(1, arange(11, 116), video)     out = buffer.clone(); out[:, 11:116] = video
    video = sequence.index_select(1, arange(11, 116))      video = sequence[:, 11:116]
    x = x.scatter_add(0, flat, times)                      x = x.clone(); x[6:30] += times

An index of a few runs of consecutive numbers is a few slices. These are run under the tracker in the place of the
operator, so that everything that is known of slices and of writes through them holds of it. Where numbers occur twice
in an index that is written at, nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svg_compile._compat.operators import mutates
from svg_compile._compat.real_values import beside_modes
from svg_compile._compat.sizes import at_most, equal, holds
from svg_compile._compat.storages import storage_of
from svg_compile.passes.axes.axis import is_table
from svg_compile.passes.axes.numbers import KnownNumbers, Numbers
from svg_compile.passes.axes.rules.call import AxesOf
from svg_compile.passes.index_runs import Runs, runs_in

aten = torch.ops.aten
_READS = (aten.index_select, aten.index, aten.gather)
_COPIES = (aten.index_copy, aten.index_copy_, aten.scatter, aten.scatter_)
_ADDS = (aten.index_add, aten.index_add_, aten.scatter_add, aten.scatter_add_)
_PUTS = (aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index_put)
_ALL = {*_READS, *_COPIES, *_ADDS, *_PUTS}
# Their index has the shape of what is read or written, and says for each element where it stands.
_FOR_EACH = {aten.gather, aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_}


class Indices:
    """The indices that one run of a graph meets.

    used: the inputs whose values have proven where an index reads or writes. asked: an index was met whose values are
    not known, or no slices.
    """

    def __init__(self, of: AxesOf, is_lost: Callable[[Tensor], bool]) -> None:
        self._of = of
        self.numbers = KnownNumbers(is_lost)
        self.used: set[Any] = set()
        self.asked = False

    def as_slices(self, operator: Any, arguments: Callable[[], Mapping[str, Any]]) -> Callable[[], Tensor] | None:
        """What gives the result of an operator by slices; None where it has no index, or one that is no slices."""
        if operator.overloadpacket not in _ALL:
            return None
        bound = arguments()
        place = _place(bound, bound["self"], operator.overloadpacket)
        if place is None:
            return None
        found = _as_slices(operator, bound, *place, self.numbers.of(place[1]))
        if found is None:
            moved = (bound.get(name) for name in ("self", "source", "src", "values"))
            tensors = [tensor for tensor in moved if isinstance(tensor, Tensor)]
            self.asked |= not all(is_table(axis) for tensor in tensors for axis in self._of(tensor))
            return None
        self.used |= found[1]
        return found[0]


def _as_slices(
    operator: Any, bound: Mapping[str, Any], dim: int, index: Tensor, numbers: Numbers | None
) -> tuple[Callable[[], Tensor], Any] | None:
    """(what gives the operator's result by slices, the inputs whose values prove it); None where nothing does."""
    packet, target = operator.overloadpacket, bound["self"]
    if numbers is None or numbers.of_sizes_alone or numbers.values is None:
        return None
    values = numbers.values
    # Which number stands where must not depend on any other dimension.
    others = [each for each in range(values.dim()) if values.dim() > 1 and each != dim]
    if any(values.shape[each] != 1 and values.stride(each) != 0 for each in others) or not values.numel():
        return None
    if not all(holds(equal, size, real) for size, real in zip(index.shape, values.shape)):
        return None
    runs = beside_modes(lambda: runs_in(_one_row(values, others)))
    if runs is None or not all(holds(at_most, run.start + run.size, target.shape[dim]) for run in runs.runs):
        return None
    if packet in _FOR_EACH and not _reaches(index, dim, target):
        return None
    if packet in _READS:
        return partial(_read, target, dim, runs), numbers.sources
    source = bound.get("source", bound.get("src", bound.get("values")))
    if runs.overlap or bound.get("reduce") is not None or not isinstance(source, Tensor):
        return None
    fresh = not mutates(operator)
    if not fresh and storage_of(source) == storage_of(target):
        # What is written first may be read afterwards.
        return None
    if packet in _FOR_EACH and not all(holds(equal, one, two) for one, two in zip(source.shape, index.shape)):
        return None
    added = packet in _ADDS or bool(bound.get("accumulate"))
    return partial(_written, target, dim, runs, source, added, fresh), numbers.sources


def _one_row(values: Tensor, others: list[int]) -> Tensor:
    for each in sorted(others, reverse=True):
        values = values.select(each, 0)
    return values


def _place(bound: Mapping[str, Any], target: Tensor, packet: Any) -> tuple[int, Tensor] | None:
    """(dimension, index), where an operator has one index along one dimension."""
    if "indices" in bound:
        given = [(dim, index) for dim, index in enumerate(bound["indices"]) if index is not None]
        return given[0] if len(given) == 1 and given[0][1].dim() == 1 else None
    index = bound["index"]
    if not target.dim() or index.dim() != (target.dim() if packet in _FOR_EACH else 1):
        return None
    return bound["dim"] % target.dim(), index


def _reaches(index: Tensor, dim: int, target: Tensor) -> bool:
    """True if an index for each element runs along the whole of all other dimensions."""
    return all(holds(equal, index.shape[each], target.shape[each]) for each in range(index.dim()) if each != dim)


def _pieces(runs: Runs) -> Iterator[tuple[slice, slice]]:
    """For each run: where it stands in the index, and which positions it names."""
    at = 0
    for start, size in runs.runs:
        yield slice(at, at + size), slice(start, start + size)
        at += size


def _read(target: Tensor, dim: int, runs: Runs) -> Tensor:
    pieces = [_cut(target, dim, there) for _, there in _pieces(runs)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _written(target: Tensor, dim: int, runs: Runs, source: Tensor, added: bool, fresh: bool) -> Tensor:
    out = target.clone(memory_format=torch.contiguous_format) if fresh else target
    count = sum(run.size for run in runs.runs)
    at = dim - target.dim() + source.dim()
    whole = at < 0 or not holds(equal, source.shape[at], count)
    for here, there in _pieces(runs):
        piece = source if whole else _cut(source, at, here)
        if added:
            _cut(out, dim, there).add_(piece)
        else:
            _cut(out, dim, there).copy_(piece)
    return out


def _cut(tensor: Tensor, dim: int, where: slice) -> Tensor:
    piece: Tensor = aten.slice(tensor, dim, where.start, where.stop)
    return piece
