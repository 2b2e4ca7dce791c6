"""`svg_compile.explain(model, *args, **kwargs)`: what the backend would do, attention by attention."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from svg_compile._compat.compiled import isolated_compile
from svg_compile._compat.fake_values import READS_VALUE, LostWrite, ValueMode
from svg_compile._compat.graphs import flex_calls
from svg_compile._compat.modules import uncompiled
from svg_compile._compat.traces import leaving_no_trace, random_numbers_go_on
from svg_compile.config import SvgConfig, split_options
from svg_compile.decisions import BY_FLEX, Site
from svg_compile.errors import NeedsData, SvgError
from svg_compile.inspection.bare_clone import is_own_method
from svg_compile.inspection.breaks import graph_breaks, last_break
from svg_compile.inspection.cost import cost_of, count_flops
from svg_compile.inspection.explanation import GraphBreak
from svg_compile.inspection.known_values import answer
from svg_compile.inspection.repeats import Run, could_repeat, repeated_runs
from svg_compile.inspection.report import Report
from svg_compile.inspection.shortened import KEPT, Shortened, breaks_in_a_block, expanded, shorten, told
from svg_compile.inspection.traced_calls import TracedCalls
from svg_compile.inspection.traced_clone import traced_clone
from svg_compile.passes.as_sdpa import unread
from svg_compile.passes.axes.ledger import GraphCall, input_facts

log = logging.getLogger(__name__)
# A run must have so many blocks more than are traced of it, for the look at it costs a little, too.
_PAYS = 4
_NO_ATTENTION = "no scaled_dot_product_attention or FlashAttention was traced: is another attention backend selected?"
_NO_GRADIENTS = (
    "gradients are on here: this is what happens without, as at inference (torch.no_grad()); with them all stays dense"
)
Listener = Callable[[fx.GraphModule, Any], object]


@dataclass
class _Graph:
    """A traced graph: its FLOPs, and how often one forward calls it."""

    flops: int | None
    calls: int = 0


def explain(model: Callable[..., Any], *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any) -> Report:
    """Trace `model(*args, **kwargs)` and report each attention: rewritten, or why not; and what it costs.

    `options` are those of the backend. What is explained is inference: where gradients are on, a note says so. The
    model may be on the meta device, and so may its inputs: nothing of its size is allocated, and they count as being on
    the CPU, or on the device of the tensors that are not.

    What is traced is a bare clone of the model, without weights and without the hooks of caches and offloading; no
    graph is run, and nothing of the model, its inputs or the process changes. Python code between graph breaks does
    run, on the clone; what it does elsewhere (to a global, a file, the random number generators) is done. It may read
    what follows from shapes, constants, inputs of at most a million elements and small weights; where it reads anything
    else the trace ends, and a note names the line. Raises NeedsData where not even the first graph was reached,
    WrappedForward where the model's forward was replaced by something unknown.
    """
    found = trace(model, args, kwargs, options)
    if found.stopped is not None and not found.report.graphs:
        raise found.stopped
    return found.report


@dataclass(frozen=True)
class Trace:
    """The result of a trace; `stopped` names the value whose read ended it early, None if it completed."""

    report: Report
    stopped: NeedsData | None = None


def trace(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
    values: Callable[[Tensor], bool] = lambda tensor: True,
    costs: bool = True,
    every_block: bool = False,
) -> Trace:
    """`explain`, telling `listener` each graph and its example inputs as they come.

    values: whether Python code of the model may read a tensor's values (an input's, a weight's); others are unknown.
    costs: count FLOPs. every_block: trace each block, also where some run as those before them do; so it is
    with a listener.
    """
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1" or torch.compiler.is_dynamo_compiling():
        raise SvgError(
            "explain needs Dynamo to trace: unset TORCHDYNAMO_DISABLE, and call it outside of torch.compile."
        )
    if not callable(model):
        raise SvgError(f"explain expects a module or a function to trace, got {type(model).__name__}.")
    config, _ = split_options(options)
    call = _ToTrace(model, args, dict(kwargs), config, listener, values, costs)
    runs = () if every_block or listener is not None else _runs(call)
    found = _traced(call, runs) if runs else None
    return found or cast(Trace, _traced(call, ()))


@dataclass(frozen=True)
class _ToTrace:
    """The arguments of `trace`."""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    config: SvgConfig
    listener: Listener | None
    values: Callable[[Tensor], bool]
    costs: bool

    @property
    def kept(self) -> int:
        """How many blocks of a run are traced."""
        return KEPT + self.config.dense_layers

    def bare(self, mode: ValueMode) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """The clone that is traced, and its inputs."""
        return traced_clone(self.model, self.args, self.kwargs, mode, self.values)


def _runs(call: _ToTrace) -> tuple[Run, ...]:
    """The blocks that run alike and are so many that it pays to look; none where the model does not show any."""
    module = uncompiled(call.model) if isinstance(call.model, nn.Module) else None
    if module is None or not could_repeat(module, call.kept + _PAYS):
        return ()
    mode = ValueMode()
    try:
        with torch.inference_mode(False), torch.no_grad(), random_numbers_go_on():
            clone, args, kwargs = call.bare(mode)
            runs = repeated_runs(cast(nn.Module, clone), args, kwargs, mode)
    except Exception as error:
        log.debug("each block is traced: %s: %s", type(error).__name__, error)
        return ()
    return tuple(run for run in runs if len(run.paths) >= call.kept + _PAYS)


def _traced(call: _ToTrace, runs: tuple[Run, ...]) -> Trace | None:
    """The trace, of the first blocks of each run; None where these do not tell what the others do."""
    # Dynamo keeps `collect`, and what it closes over, beyond the trace: not the model.
    config, listener, costs = call.config, call.listener, call.costs
    graphs: list[_Graph] = []
    notes: list[str] = [_NO_GRADIENTS] if torch.is_grad_enabled() else []
    notes += _left_off(call.model, config)
    mode = ValueMode()
    stopped = None

    def collect(graph_module: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        graph = _Graph(count_flops(graph_module) if costs else None)
        graphs.append(graph)
        if flex_calls(graph_module):
            notes.append(f"no rows: {BY_FLEX}")
        notes.extend(f"no rows: attention by {each}" for each in unread(graph_module))
        if listener is not None:
            listener(graph_module, example_inputs)
        facts, answered = input_facts(graph_module), answer(graph_module, mode)
        placeholders = graph_module.graph.find_nodes(op="placeholder")
        # Of what was computed between graphs the backend sees less than the trace does.
        alone = _sites(graph_module, config, notes, None) if facts.unseen else ()

        def run(*inputs: Any) -> Any:
            graph.calls += 1
            entered = calls.call(facts, dict(zip(placeholders, inputs)), first=graph.calls == 1)
            calls.add(graph_module, _sites(graph_module, config, notes, entered), alone)
            outputs = answered(*inputs)
            entered.leave(outputs)
            return outputs

        return run

    with torch.no_grad(), leaving_no_trace(collect) as breaks:
        clone, inputs, keywords = call.bare(mode)
        short = shorten(cast(nn.Module, clone), runs, call.kept) if runs else ()
        calls = TracedCalls(clone, (inputs, keywords), mode, config, lambda: last_break(breaks()))
        try:
            isolated_compile(clone, collect)(*inputs, **keywords)
        except (*READS_VALUE, LostWrite) as error:
            stopped = NeedsData(_what_was_read(error))
            notes.append(f"the trace ends here, what comes after is not in the table: {stopped}")
        found = graph_breaks(breaks())
        if short and not (
            told(short, calls.sites, calls.ledger.marked)
            and not breaks_in_a_block(cast(nn.Module, clone), short, breaks())
        ):
            log.debug("each block is traced: the first ones do not tell what the others do")
            return None
    return _result(call, calls, graphs, short, notes, found, stopped)


def _left_off(model: Callable[..., Any], config: SvgConfig) -> list[str]:
    """A note on the hooks of libraries that the clone lacks, and so on what may run as plain Python."""
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    replaced = [(path, module) for path, module in modules if "forward" in vars(module)]
    wrapped = [path or "the model" for path, module in replaced if not is_own_method(vars(module)["forward"], module)]
    if not wrapped:
        return []
    more = f" and {len(wrapped) - 1} more" if len(wrapped) > 1 else ""
    served = (
        "is compiled by itself after svg_compile.attach(pipe) (options={'eager_attention': False} leaves it dense)"
        if config.eager_attention
        else "stays dense, as options={'eager_attention': False} asks"
    )
    return [
        f"a library's hook stands around the forward of {wrapped[0]}{more}: this is what happens without it; where it "
        f"keeps attention out of the compiled graphs, that runs as plain Python, and {served}"
    ]


def _result(
    call: _ToTrace,
    calls: TracedCalls,
    graphs: list[_Graph],
    short: tuple[Shortened, ...],
    notes: list[str],
    breaks: tuple[GraphBreak, ...],
    stopped: NeedsData | None,
) -> Trace:
    sites, in_graphs = (expanded(short, each) for each in (calls.sites, calls.in_graphs))
    total = None
    if not stopped and all(graph.flops is not None for graph in graphs):
        total = sum(graph.calls * (graph.flops or 0) for graph in graphs) + sum(each.flops for each in short)
    if not sites and not notes:
        notes.append(_NO_ATTENTION)
    cost = cost_of(in_graphs, total, call.config) if call.costs else None
    return Trace(Report(sites, len(graphs), tuple(dict.fromkeys(notes)), breaks, cost), stopped)


def _what_was_read(error: Exception) -> str:
    """Which operator reads a value that no trace has, and the line of the model's code that calls it."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent))
    lines = [line for line in traceback.extract_tb(error.__traceback__) if not line.filename.startswith((*ours, "<"))]
    where = f" at {lines[-1].filename}:{lines[-1].lineno} ({lines[-1].line})" if lines else ""
    what = f"{error}{where}" if isinstance(error, LostWrite) else f"{error}{where} reads a value"
    return f"{what} that follows from weights or from what a graph computes, and a trace has neither"


def _sites(
    graph_module: fx.GraphModule, config: SvgConfig, notes: list[str], call: GraphCall | None
) -> tuple[Site, ...]:
    from svg_compile.passes import run_passes

    try:
        return run_passes(graph_module, config, rewrite=False, call=call).sites
    except Exception as error:
        if config.on_error == "raise":
            raise
        notes.append(f"a pass failed, the graph would stay as it is: {type(error).__name__}: {error}")
        return ()
