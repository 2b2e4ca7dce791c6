"""Axis inference: what each axis of every attention's query, key and value is made of.

The graph is run once on fake tensors, under a dispatch mode that sees the ATen operators below the graph's nodes and
carries axes through them by `axis_rules`. No model names and no guessing from shapes: an input's dimensions are
named, convolutions derive from them, views split and join them, and what a table is aligned with names the table.

    before   query [2, 24, 119056, 128]                       four numbers
    after    query axis 2 = [33*45*80 | 256]                  a video of 33x45x80 tokens, then 256 of text
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from svg_compile._compat.fake_runs import FakeRun, example_inputs, symbolic_run
from svg_compile._compat.graphs import SDPA_TARGETS, graph_nodes, is_higher_order
from svg_compile._compat.operators import writes
from svg_compile._compat.pytree import tensors_in, tree_leaves, tree_map_only
from svg_compile._compat.sizes import equal, holds, size_hint
from svg_compile.passes.axes.axis import Atom, Concat, Kind, atoms_of
from svg_compile.passes.axes.ledger import GraphCall, InputFacts, input_facts, name_input
from svg_compile.passes.axes.new_axes import axis_of, free_axis
from svg_compile.passes.axes.rules.by_node import NODE_RULES
from svg_compile.passes.axes.seen import seen
from svg_compile.passes.axes.text import show
from svg_compile.passes.axes.tracker import AttentionAxes, AxisTracker
from svg_compile.passes.axes.why import Why, analysing
from svg_compile.passes.coordinates import Raster, Rise
from svg_compile.passes.grid_marker import MARK
from svg_compile.passes.index_runs import Runs

log = logging.getLogger(__name__)
_RESHAPING = ("t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "resize_", "resize_as_", "set_")


@dataclass(frozen=True)
class TokenAxes:
    """Result of the analysis: per SDPA node one entry a run (a shared child graph is run more than once)."""

    visits: Mapping[fx.Node, tuple[AttentionAxes, ...]]
    without_rule: Mapping[str, int]
    # The inputs whose values have proven where an index reads or writes; and if any other index was met.
    indexed: frozenset[fx.Node] = frozenset()
    asks_index: bool = False


def infer_token_axes(
    graph_module: fx.GraphModule,
    fake_mode: Any,
    rasters: Mapping[fx.Node, Raster] | None = None,
    rises: Mapping[fx.Node, Rise] | None = None,
    call: GraphCall | None = None,
    ids: Iterable[fx.Node] = (),
    indices: Mapping[fx.Node, Runs] | None = None,
) -> TokenAxes:
    """Run `graph_module` on its example inputs' fake tensors and read off the axes; changes nothing of it.

    rasters: inputs whose values were looked at and are positions in raster order (`passes.coordinates`). Along their
    tokens they count frames, rows and columns, as a table that the model computes from `arange` does. rises: inputs
    that number frames, some of which may stand behind the others. call: the call of it in the trace of a model, which
    knows what its inputs are; else the graph is all that is known. ids: other inputs that are constants. indices:
    inputs of whole numbers that may be used as an index (`passes.index_runs`).
    """
    tracker, unseen = AxisTracker(), set[fx.Node]()
    known = {node: runs.numbers() for node, runs in (indices or {}).items()}
    with symbolic_run(fake_mode):
        # Tensors that change their own shape are not the graph's examples. Else they are those themselves, for these
        # remember the symbols of sizes and numbers read from them.
        reshaped = any(node.target in _RESHAPING for _, node in graph_nodes(graph_module))
        values = example_inputs(graph_module, detached=reshaped)
        if call is None:
            _name_inputs(values, tracker, input_facts(graph_module))
        else:
            call.begin(tracker, values)
        for node, rise in (rises or {}).items():
            _note_rise(values[node], rise, tracker)
        for node, raster in (rasters or {}).items():
            _name_positions(values[node], raster, tracker)
        for node in ids:
            tracker.name(values[node], [free_axis(size) for size in values[node].shape])
        for node, numbers in known.items():
            if holds(equal, values[node].shape[0], len(numbers)):
                tracker.indices.numbers.enter(values[node], node, numbers)
        with tracker:
            results = _Run(graph_module, tracker, fake_mode, unseen).run(*values.values())
        if call is not None:
            call.end(tracker, values, results)
    if tracker.without_rule:
        log.debug("operators without an axis rule: %s", dict(tracker.without_rule))
    visits = {node: tuple(seen) for node, seen in tracker.visits.items() if node not in unseen}
    return TokenAxes(visits, dict(tracker.without_rule), frozenset(tracker.indices.used), tracker.indices.asked)


def _name_inputs(values: Mapping[fx.Node, Any], tracker: AxisTracker, facts: InputFacts) -> None:
    for node, value in values.items():
        if node in facts.tables:
            tracker.weight(value)
        elif isinstance(value, Tensor):
            name_input(tracker, value, node.name, node not in facts.unseen)


def _name_positions(value: Tensor, raster: Raster, tracker: AxisTracker) -> None:
    """Name the token axis of an input of positions as the raster that its values are."""
    sizes = (raster.frames, raster.height, raster.width)
    size = value.shape[raster.tokens]
    # A symbolic length is guarded: the grid is that of these values.
    if holds(equal, size, raster.before + math.prod(sizes) + raster.after):
        video = tuple(part for each in sizes for part in axis_of(each, Kind.COORD))
        beside = [(Atom(each),) if each else () for each in (raster.before, raster.after)]
        axes = [free_axis(each) for each in value.shape]
        segments = [segment for segment in (beside[0], video, beside[1]) if segment]
        axes[raster.tokens] = video if len(segments) == 1 else (Concat(tuple(segments), size),)
        tracker.name(value, axes)


def _note_rise(value: Tensor, rise: Rise, tracker: AxisTracker) -> None:
    for atom in atoms_of(tracker.of(value)[0]):
        if atom.origin is not None and holds(equal, value.shape[0], size_hint(value.shape[0])):
            tracker.rises[atom.origin.source] = rise.frames


class _Run(FakeRun):
    """Runs a graph and its child graphs, reporting the operands of every SDPA to the tracker."""

    def __init__(self, module: fx.GraphModule, tracker: AxisTracker, fake_mode: Any, unseen: set[fx.Node]) -> None:
        super().__init__(module, fake_mode)
        self.tracker = tracker
        # The nodes of graphs that are called by operators of which nothing is known.
        self.unseen = unseen
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.node = self.tracker.node = n
        return super().run_node(n)

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if isinstance(value, Tensor):
            self.tracker.weight(value)
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in SDPA_TARGETS:
            operands = [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(("query", "key", "value"))]
            assert self.node is not None
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            query, key, value = operands
            self.tracker.record(self.node, query, key, value, mask)
            return self._attention(operands, super().call_function(target, args, kwargs))
        if target is torch.ops.svg.attention.default:
            return self._attention(list(args[:3]), super().call_function(target, args, kwargs))
        if target in MARK:
            self.tracker.marked.setdefault(str(args[1]), []).append(seen(self.tracker, args[0]))
        if is_higher_order(target):
            return self._higher_order(target, args, kwargs)
        out = super().call_function(target, args, kwargs)
        if target in NODE_RULES and isinstance(out, Tensor):
            with analysing(Why(f"F.{target.__name__}", self.node)):
                self.tracker.rename(NODE_RULES[target], args, kwargs, out)
        return out

    def _attention(self, operands: list[Tensor], out: Tensor) -> Tensor:
        # Whatever the operator was broken into, a row of the result is a row of the query.
        query, key, value = operands
        self.tracker.attended(query, key, value, out)
        return out

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        child = self.fetch_attr(target)
        if isinstance(child, fx.GraphModule):
            return _Run(child, self.tracker, self.fake_mode, self.unseen).run(*args)
        return super().call_module(target, args, kwargs)

    def _higher_order(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A child graph that is called once, with the operands that follow it, is run; of others nothing is known."""
        with analysing(Why(f"the operator {target}", self.node)):
            return self._body(target, args, kwargs)

    def _body(self, target: Any, args: Any, kwargs: Any) -> Any:
        if str(target) in ("invoke_subgraph", "wrap") and isinstance(args[0], fx.GraphModule):
            given = args[2:] if str(target) == "invoke_subgraph" else args[1:]
            return _Run(args[0], self.tracker, self.fake_mode, self.unseen).run(*given)
        leaves = tree_leaves([*args, *kwargs.values()])
        bodies = [leaf for leaf in leaves if isinstance(leaf, fx.GraphModule)]
        operands = tensors_in(leaves)
        # Attention in a graph that is not run here may be in another one, too, that is: of neither is all known.
        nodes = {node for body in bodies for _, node in graph_nodes(body)}
        self.unseen.update(nodes)
        if not bodies or any(map(writes, nodes)):
            for operand in operands:
                self.tracker.storages.invalidate(operand)
        assert self.node is not None
        # A kernel that only writes has no result.
        return tree_map_only(
            Tensor, lambda example: self._unknown(example, operands), self.node.meta.get("example_value")
        )

    def _unknown(self, example: Tensor, operands: list[Tensor]) -> Tensor:
        value = torch.empty_strided(example.shape, example.stride(), dtype=example.dtype, device=example.device)
        self.tracker.give_up([value], operands)
        self.tracker.storages.may_alias(value, operands)
        return value


def table(axes: TokenAxes) -> str:
    """The axes of every attention in print, a block each, and what had no rule."""
    lines = []
    for node, visits in axes.visits.items():
        for number, visit in enumerate(visits):
            lines.append(node.name if len(visits) == 1 else f"{node.name}, visit {number}")
            for name in ("query", "key", "value"):
                lines.append(f"    {name:5}  " + "  ".join(show(axis) for axis in getattr(visit, name)))
    if axes.without_rule:
        lines += ["operators without a rule:", *(f"    {name}  {count}x" for name, count in axes.without_rule.items())]
    return "\n".join(lines) + "\n"
