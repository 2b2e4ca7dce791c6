"""Graph passes of svg_compile, one a file; the order in which they run stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import fx

from svg_compile._compat.graphs import fake_mode_of
from svg_compile.config import SvgConfig
from svg_compile.decisions import Decisions, Reason
from svg_compile.passes.as_sdpa import as_sdpa
from svg_compile.passes.axes.infer import infer_token_axes, table
from svg_compile.passes.axes.ledger import GraphCall
from svg_compile.passes.expose_plans import expose_plans
from svg_compile.passes.find_attention import Candidate, attention_nodes, find_attention
from svg_compile.passes.grid_marker import Marker
from svg_compile.passes.position_inputs import (
    Found,
    build_on,
    ids_among,
    indices_among,
    rasters_among,
    rises_among,
)
from svg_compile.passes.rewrite_attention import rewrite_attention

# Where the values of position inputs may prove what the graph does not.
_HIDDEN = (Reason.UNKNOWN_GRID, Reason.NOT_VIDEO, Reason.CROSS_ATTENTION)


class PassObserver(Protocol):
    """Sees what each pass read and left, as a graph dump does."""

    def graph(self, stage: str, graph_module: fx.GraphModule) -> None: ...

    def text(self, stage: str, text: str) -> None: ...

    def report(self, report: Decisions) -> None: ...


def run_passes(
    graph_module: fx.GraphModule,
    config: SvgConfig,
    *,
    rewrite: bool = True,
    observer: PassObserver | None = None,
    markers: Mapping[str, Marker] | None = None,
    call: GraphCall | None = None,
) -> Decisions:
    """Infer the axes, find the attention, rewrite it and return its plans as graph outputs, all in place.

    rewrite: False only decides, and leaves the graph as it is. markers: what `strip_markers` took from the graph, where
    it is a block of a model that is compiled block by block. call: the call of the graph in a model's trace.
    """
    if observer is not None:
        observer.graph("dynamo", graph_module)
    fake_mode = fake_mode_of(graph_module)
    if fake_mode is None:
        return Decisions()
    with as_sdpa(graph_module):
        report = _on_sdpa(graph_module, config, fake_mode, rewrite, observer, markers, call)
    if rewrite and observer is not None and report.sites:
        observer.graph("rewrite_attention", graph_module)
    return report


def _on_sdpa(
    graph_module: fx.GraphModule,
    config: SvgConfig,
    fake_mode: Any,
    rewrite: bool,
    observer: PassObserver | None,
    markers: Mapping[str, Marker] | None,
    call: GraphCall | None,
) -> Decisions:
    """`run_passes` where every attention that is known is a call of SDPA."""
    if call is None and not any(attention_nodes(graph_module)):
        return Decisions()
    examples = None if call is None else call.inputs
    rises = rises_among(graph_module, examples)
    axes = infer_token_axes(graph_module, fake_mode, rises=rises, call=call)
    before = 0 if call is None else call.layers_before
    candidates = find_attention(graph_module, axes, config, markers, before)
    built_on: dict[fx.Node, Found] = {}
    # In a graph before a break positions become tables for attention behind it.
    behind = call is not None and not candidates
    hidden = behind or any(one.reason in _HIDDEN for one in candidates)
    rasters = rasters_among(graph_module, examples) if hidden else {}
    indices = indices_among(graph_module, examples) if hidden and axes.asks_index else {}
    if call is not None:
        # A trace serves other calls of the model, too, which are compared by their arguments.
        indices = {node: runs for node, runs in indices.items() if call.is_argument(node)}
    if rasters or indices:
        # The graph does not show the grid, but values of its inputs may.
        ids = ids_among(graph_module, rasters, examples)
        other_axes = infer_token_axes(graph_module, fake_mode, rasters, rises, call, ids, indices)
        others = find_attention(graph_module, other_axes, config, markers, before)
        if sum(other.grid is not None for other in others) > sum(one.grid is not None for one in candidates):
            axes, candidates = other_axes, others
            built_on |= {**rasters, **ids, **{node: indices[node] for node in axes.indexed}}
        else:
            candidates = tuple(map(_better_reason, candidates, others))
    if any(one.grid is not None and one.grid.by_numbers for one in candidates):
        built_on |= rises
    if built_on:
        build_on(graph_module, built_on)
    if observer is not None:
        observer.text("token_axes", table(axes))
    report = Decisions(tuple(candidate.site(config.block) for candidate in candidates))
    if observer is not None:
        observer.report(report)
    if rewrite:
        rewrite_attention(candidates, config)
        if report.rewritten:
            expose_plans(graph_module, config, fake_mode)
    return report


def _better_reason(candidate: Candidate, by_values: Candidate) -> Candidate:
    """The refusal of an attention; that with the values of inputs, where these show a video and too much next to it."""
    hidden = candidate.reason in _HIDDEN and by_values.reason is Reason.SEVERAL_GRIDS
    return by_values if hidden else candidate
