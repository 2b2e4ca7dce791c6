"""Heads that are spread over processes, as under Ulysses: each process attends all tokens with some heads of the layer.

What decides for all heads of a layer together, as half-widths by need do, looks at the heads of all processes: a few
numbers per head are gathered, and each process computes the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from svg_compile._compat.collectives import all_gathered


@dataclass(frozen=True)
class Spread:
    """The processes that attend a layer's heads, in order: their group's name, this process's rank, their number.

    Each has as many heads as the others.
    """

    group: str
    rank: int
    ranks: int


def spread_of(group: str | None, rank: int, ranks: int) -> Spread | None:
    """The arguments of the ops as a `Spread`; None without a group."""
    return None if group is None else Spread(group, rank, ranks)


def of_all_processes(part: Tensor, spread: Spread) -> Tensor:
    """The rows of all heads [B, ranks * H, ...], from those of this process [B, H, ...]; waits for the others."""
    return all_gathered(part.transpose(0, 1).contiguous(), spread.group, spread.ranks).transpose(0, 1)


def of_this_process(every: Tensor, spread: Spread) -> Tensor:
    """The rows of this process's heads [B, H, ...], a view of those of all heads [B, ranks * H, ...]."""
    heads = every.shape[1] // spread.ranks
    return every.narrow(1, spread.rank * heads, heads)
