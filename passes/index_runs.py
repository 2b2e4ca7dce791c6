"""Whole numbers that are used as an index, read by their values: are they a few runs of consecutive numbers?

    arange(11, 116)                       ->  ((11, 105),)          one piece, written or read in its order
    arange(11, 32), then arange(40, 145)  ->  ((11, 21), (40, 105))  two pieces
    116, 115, 114, ... 11                 ->  None                  any other order is a shuffle

What is written at such an index stands in a known place of the buffer, in its own order, as a slice would put it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from svg_compile._compat.graphs import known_value

# One number is a position, and whether it changes from call to call nobody knows.
_FEWEST_NUMBERS = 2
_MOST_NUMBERS = 2**22
_MOST_RUNS = 8
WHOLE = (torch.int32, torch.int64)


class Run(NamedTuple):
    """`size` consecutive numbers from `start` on."""

    start: int
    size: int


@dataclass(frozen=True)
class Runs:
    """The numbers of an index [N], in its order."""

    runs: tuple[Run, ...]

    @property
    def overlap(self) -> bool:
        """True if a number stands in it twice."""
        ordered = sorted(self.runs)
        return any(one.start + one.size > other.start for one, other in pairwise(ordered))

    def numbers(self) -> Tensor:
        """The index itself, int64 [N] on the CPU."""
        return torch.cat([torch.arange(run.start, run.start + run.size) for run in self.runs])


def runs_in(numbers: Tensor) -> Runs | None:
    """The runs that a real tensor [N] of whole numbers from 0 on is made of; None where these are not few."""
    if numbers.dim() != 1 or not len(numbers):
        return None
    breaks = (numbers.diff() != 1).nonzero()[:, 0] + 1
    if len(breaks) >= _MOST_RUNS or int(numbers.min()) < 0:
        return None
    edges = [0, *breaks.tolist(), len(numbers)]
    return Runs(tuple(Run(int(numbers[start]), stop - start) for start, stop in pairwise(edges)))


def runs_of(tensor: Tensor) -> Runs | None:
    """The runs that an input could be an index by; None where it holds none, or its values are not known."""
    if tensor.dtype not in WHOLE or tensor.dim() != 1 or not _FEWEST_NUMBERS <= tensor.numel() <= _MOST_NUMBERS:
        return None
    known = known_value(tensor)
    return None if known is None else runs_in(known.detach().cpu())
