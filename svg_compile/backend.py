"""`torch.compile(model, backend="svg")`: rewrite the graph that Dynamo traced, then hand the whole of it to Inductor.

Found by name through the entry point group `torch_dynamo_backends`; no import is needed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from svg_compile._compat import inductor
from svg_compile._compat.backends import registered_meanwhile
from svg_compile._compat.dynamo import traced_module
from svg_compile._compat.graphs import (
    PRODUCTS,
    SDPA,
    copy_graph_module,
    flex_calls,
    forget_arguments,
    trace_artifact,
)
from svg_compile._compat.options import keep_own_options
from svg_compile._compat.spread import is_spread
from svg_compile._compat.versions import warn_if_untested
from svg_compile.config import SvgConfig, split_options
from svg_compile.decisions import BLOCK_REMEDY, BY_FLEX, Decisions
from svg_compile.errors import NothingRewritten
from svg_compile.inspection.dump import GraphDump, asked_for
from svg_compile.inspection.render.text import to_text
from svg_compile.passes.as_sdpa import unread
from svg_compile.passes.grid_marker import Marker
from svg_compile.regional.forward import attached_under_way, marks_under_way, note_parted, numbered, refused_under_way
from svg_compile.regional.whole_model import note_break, watched_under_way
from svg_compile.runtime.dispatcher import Dispatcher, parameter_places
from svg_compile.runtime.position_guard import PositionGuard
from svg_compile.runtime.registry import REGISTRY
from svg_compile.runtime.sources import note_forward
from svg_compile.runtime.sparse_variant import SparseGraph
from svg_compile.runtime.timestep import find_timestep

log = logging.getLogger(__name__)
_NUMBER = (
    "svg: {} is a Python number, which torch.compile makes a constant of the graph: it recompiles for each step, and "
    "after torch._dynamo.config.recompile_limit recompiles it runs the model uncompiled and dense. Pass a tensor."
)
# Of a watched model that is compiled whole: what its later graphs hold is not known yet.
_FRAGMENT = (
    "svg: this graph holds no known attention (scaled_dot_product_attention, FlashAttention), so all of the model is "
    "dense so far. If the attention comes after a graph break (TORCH_LOGS=graph_breaks names the line) that hides the "
    "token grid, this forward is dense; the next forward recompiles the model, which is sparse from then on. Attention "
    "that is in no graph at all becomes sparse if the model's blocks are compiled one by one. If the "
    "model uses another attention backend (sage, xformers, flex), select the native one (diffusers: "
    "model.set_attention_backend('native'))."
)
_IN_PARTS = (
    ". Its weights are sharded over processes (tensor parallelism), and their products are not analysed: compile the "
    "model's blocks one by one and call svg_compile.attach(pipe), which takes the grid from the whole model"
)


if TYPE_CHECKING:
    svg: Callable[..., Any]


def __getattr__(name: str) -> Any:
    """`svg`, the backend: what the entry point loads. None where another thread's look-up has just registered it."""
    if name == "svg":
        return None if registered_meanwhile(name) else compile_graph
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def compile_graph(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The backend: returns the compiled graph. Options are those of `SvgConfig` and Inductor's own."""
    from svg_compile.passes.axes.ledger import input_facts
    from svg_compile.passes.strip_markers import strip_markers

    warn_if_untested()
    config, patches = split_options(options, mode)
    keep_own_options(options)
    if config.always_dense:
        log.info("dense_steps is 1.0: the graph is compiled by Inductor as it is")
        return lower(graph_module, example_inputs, patches)
    # From both variants: a marker is no part of the model.
    markers = numbered(strip_markers(graph_module))
    # The passes get a copy: the graph that Dynamo handed over stays as it was, for the dense steps, and for all of them
    # where a pass fails.
    sparse_module = copy_graph_module(graph_module)
    process = asked_for(config.dump_dir)
    dump = None if process is None else process.new_graph()
    try:
        report = rewrite(sparse_module, config, dump, markers)
        # "": of the attention that a block calls itself.
        if "" in markers and not report.sites and not report.notes:
            note_parted()
        hidden = not report.rewritten and any(site.needs_whole_model for site in report.sites)
        if hidden and not attached_under_way() and input_facts(sparse_module).unseen and note_break():
            # No warning yet: the next forward compiles it anew, and warns if its attention stays dense.
            log.info("a graph break hides the grid: the model is traced, and compiled anew, at its next forward")
            note_forward()
        else:
            _tell(graph_module, report, config)
        with nullcontext() if dump is None else dump.inductor_code():
            if not report.rewritten:
                return lower(graph_module, example_inputs, patches)
            trace_artifact("svg_rewritten_graph", lambda: sparse_module.print_readable(print_output=False))
            if (module := traced_module()) is not None:
                REGISTRY.know(module)
            # Which layers of a model are its first is known of a block only when it runs.
            by_layer = any(marker.number is None for marker in markers.values())
            return _both_variants(graph_module, sparse_module, example_inputs, report, config, patches, by_layer)
    finally:
        forget_arguments(sparse_module)
        if process is not None:
            process.write_index()
            process.warn_once()


def lower(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], patches: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a graph by Inductor, all of it; Inductor may change the graph module."""
    return inductor.compile_graph(graph_module, example_inputs, patches)


def rewrite(
    graph_module: fx.GraphModule,
    config: SvgConfig,
    dump: GraphDump | None = None,
    markers: Mapping[str, Marker] | None = None,
) -> Decisions:
    """Run the passes over a Dynamo graph, in place; returns what was done.

    A pass that fails leaves one warning and a graph that must be thrown away, or raises with `on_error="raise"`.
    """
    from svg_compile.passes import run_passes

    try:
        return run_passes(graph_module, config, observer=dump, markers=markers)
    except Exception as error:
        if config.on_error == "raise":
            raise
        log.debug("the svg passes failed", exc_info=True)
        warnings.warn(
            f"svg: a pass failed ({type(error).__name__}: {error}); this graph is compiled by Inductor as it is, with "
            "dense attention. options={'on_error': 'raise'} raises the error instead.",
            stacklevel=2,
        )
        return Decisions(notes=(f"a pass failed: {type(error).__name__}: {error}",))


def _both_variants(
    graph_module: fx.GraphModule,
    sparse_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    report: Decisions,
    config: SvgConfig,
    patches: Mapping[str, Any],
    by_layer: bool,
) -> Callable[..., Any]:
    """Lower the rewritten graph, and the graph as it was where a forward may need it, under what chooses by step.

    Both now: guards on shapes reach Dynamo only while it waits for the backend.
    """
    from svg_compile.passes.expose_plans import ports_of
    from svg_compile.passes.position_inputs import positions_of

    timestep, parameters = find_timestep(graph_module, report), parameter_places(graph_module)
    log.info("step from %s", "no input" if timestep is None else f"input {timestep.name!r}")
    if timestep is not None and isinstance(timestep.constant, float) and not config.always_sparse:
        warnings.warn(_NUMBER.format(timestep.name), stacklevel=3)
    ports, positions = ports_of(sparse_module), positions_of(sparse_module)
    some_dense = not config.always_sparse or (by_layer and config.dense_layers)
    dense = lower(graph_module, example_inputs, patches) if some_dense or positions else None
    sparse = lower(sparse_module, [*example_inputs, *ports.inputs], patches)
    stepped = dense if some_dense else None
    chosen = Dispatcher(stepped, SparseGraph(sparse, ports, config), config, timestep, parameters, by_layer)
    return PositionGuard(chosen, dense, positions) if positions and dense is not None else chosen


def _tell(graph_module: fx.GraphModule, report: Decisions, config: SvgConfig) -> None:
    """Log what was done; warn once, or raise where `strict`, when a graph of attention-like work stayed as it was."""
    if log.isEnabledFor(logging.INFO):
        log.info("%s", to_text(report))
    trace_artifact("svg_decisions", lambda: to_text(report))
    # What carries no mark where others do is known to be dense; where the model could not be traced a warning has said
    # so, and `strict` wants more than a warning.
    told = marks_under_way() or (refused_under_way() and not config.strict)
    if report.rewritten or (report.notes and not config.strict) or (not report.notes and told):
        return
    flex = flex_calls(graph_module)
    if report.notes:
        why = "; ".join(report.notes)
    elif not report.sites and flex:
        why = f"{flex}x {BY_FLEX}"
    elif not report.sites:
        if not _multiplies(graph_module):
            # A fragment between graph breaks, not a transformer.
            return
        others = unread(graph_module)
        replaced = torch.nn.functional.scaled_dot_product_attention is not SDPA
        if not (others or replaced or config.strict) and watched_under_way() and not attached_under_way():
            warnings.warn(_FRAGMENT, stacklevel=2)
            return
        why = f"attention by {', by '.join(others)}. " if others else ""
        why += (
            "the graph holds no known attention (scaled_dot_product_attention, FlashAttention). If the model "
            "uses another attention backend (sage, xformers, flex), select the native one (diffusers: "
            "model.set_attention_backend('native')); if its attention runs between graph breaks, look for them with "
            "TORCH_LOGS=graph_breaks"
        )
        if replaced:
            now = torch.nn.functional.scaled_dot_product_attention
            by = f"{getattr(now, '__module__', '?')}.{getattr(now, '__qualname__', type(now).__name__)}"
            why += f"; torch.nn.functional.scaled_dot_product_attention has been replaced by {by}: undo that"
    else:
        counts: dict[str, int] = {}
        for site in report.sites:
            if site.reason is not None:
                line = f"{site.decision} -> {site.reason.remedy}"
                counts[line] = counts.get(line, 0) + 1
        why = "; ".join(f"{count}x {line}" for line, count in [*counts.items(), *([(BY_FLEX, flex)] if flex else [])])
        watched = attached_under_way() or watched_under_way()
        if any(site.needs_whole_model for site in report.sites) and not watched:
            why += f". {BLOCK_REMEDY.removesuffix('.')}"
    if any(is_spread(node.meta.get("example_value")) for node in graph_module.graph.find_nodes(op="placeholder")):
        why += _IN_PARTS
    message = f"svg: no attention was rewritten, all of it stays dense: {why}."
    if config.strict:
        raise NothingRewritten(message + " This is an error because of options={'strict': True}.")
    warnings.warn(message + " svg_compile.explain(model, ...) shows every attention.", stacklevel=2)


def _multiplies(graph_module: fx.GraphModule) -> bool:
    return any(node.op == "call_function" and node.target in PRODUCTS for node in graph_module.graph.nodes)
