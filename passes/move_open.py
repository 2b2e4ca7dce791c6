"""Tokens on both sides of a video, brought together for an attention, and put back behind it.

    [before | video | after]   ->   [video | after | before]   as the ops' layout has it

Softmax does not ask for the order of keys, and each query's row goes back to its place: the same attention, at the
price of one copy each of query, key, value and result (and of a key mask, bool [B, N]). For N tokens of D channels that
is 8 N D elements read or written, against 4 N^2 D density operations: by arithmetic 1/12 of the attention's time at
20,000 tokens on an H200, a fiftieth at 75,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from svg_compile.passes.axes.read_grid import Grid
from svg_compile.passes.emit import Emitter
from svg_compile.passes.symbols import emit_size


@dataclass(frozen=True)
class Move:
    """How many tokens stand before the video, and how many are the video and what is behind it: ints, or proxies."""

    before: Any
    rest: Any

    def together(self, tensor: fx.Proxy, dim: int) -> fx.Proxy:
        """[before | rest] along a dimension -> [rest | before]."""
        return _swapped(tensor, dim, self.before, self.rest)

    def put_back(self, tensor: fx.Proxy, dim: int) -> fx.Proxy:
        """[rest | before] along a dimension -> [before | rest]."""
        return _swapped(tensor, dim, self.rest, self.before)


def move_of(emitter: Emitter, grid: Grid) -> Move | None:
    """The move that a grid needs, its numbers put at the graph's insertion point; None where it needs none."""
    if not grid.moves:
        return None
    return Move(emit_size(emitter, grid.before), emit_size(emitter, grid.tokens - grid.before))


def _swapped(tensor: fx.Proxy, dim: int, first: Any, last: Any) -> fx.Proxy:
    """The last `last` positions of a tensor, then its first `first`."""
    head, tail = tensor.narrow(dim, 0, first), tensor.narrow(dim, first, last)
    swapped: fx.Proxy = torch.cat((tail, head), dim)  # type: ignore[arg-type, assignment]
    return swapped
