"""Tokens on both sides of a video, brought together for an attention, and put back behind it.

    [before | video | after]   ->   [video | after | before]   as the ops' layout has it

Softmax does not ask for the order of keys, and each query's row goes back to its place: the same attention, at the
price of one copy each of query, key, value and result (and of a key mask, bool [B, N]). For N tokens of D channels that
is 8 N D elements read or written, beside 4 N^2 D density operations: by arithmetic a twelfth of the attention's time at
20,000 tokens on an H200, a fiftieth at 75,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from svg_compile.passes.attention_call import example
from svg_compile.passes.axes.read_grid import Grid
from svg_compile.passes.symbols import emit_size


@dataclass(frozen=True)
class Move:
    """How many tokens stand before the video, and how many are the video and what is behind it: ints, or nodes.

    shown: the same two numbers of the traced example.
    """

    before: Any
    rest: Any
    shown: tuple[Any, Any]


def move_of(graph: fx.Graph, grid: Grid) -> Move | None:
    """The move that a grid needs, its numbers put at the graph's insertion point; None where it needs none."""
    if not grid.moves:
        return None
    before, rest = numbers = grid.before, grid.tokens - grid.before
    return Move(emit_size(graph, before), emit_size(graph, rest), numbers)


def emit_together(graph: fx.Graph, tensor: fx.Node, move: Move, dim: int) -> fx.Node:
    """[before | rest] along a dimension -> [rest | before]."""
    return _emit_swapped(graph, tensor, dim, (move.before, move.rest), move.shown)


def emit_put_back(graph: fx.Graph, tensor: fx.Node, move: Move, dim: int) -> fx.Node:
    """[rest | before] along a dimension -> [before | rest]."""
    return _emit_swapped(graph, tensor, dim, (move.rest, move.before), move.shown[::-1])


def _emit_swapped(graph: fx.Graph, tensor: fx.Node, dim: int, sizes: Sequence[Any], shown: Sequence[Any]) -> fx.Node:
    """The last `sizes[1]` positions of a tensor, then its first `sizes[0]`."""
    first = graph.call_method("narrow", (tensor, dim, 0, sizes[0]))
    last = graph.call_method("narrow", (tensor, dim, sizes[0], sizes[1]))
    swapped = graph.call_function(torch.cat, ((last, first), dim))
    if "example_value" in tensor.meta:
        whole = example(tensor)
        parts = whole.narrow(dim, shown[0], shown[1]), whole.narrow(dim, 0, shown[0])
        swapped.meta["example_value"] = torch.cat(parts, dim)
    return swapped
