"""`svg_compile.explain(model, *args, **kwargs)`: what the backend would do, attention by attention."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from svg_compile._compat.compiled import isolated_compile
from svg_compile._compat.fake_values import READS_VALUE, LostWrite, ValueMode
from svg_compile._compat.graphs import flex_calls, is_fake
from svg_compile._compat.modules import uncompiled
from svg_compile._compat.traces import leaving_no_trace, with_code_of_its_own
from svg_compile.config import SvgConfig, split_options
from svg_compile.decisions import BY_FLEX, Site
from svg_compile.errors import NeedsData, SvgError
from svg_compile.inspection.bare_clone import KEPT_FORWARD, bare_clone
from svg_compile.inspection.cost import cost_of, count_flops
from svg_compile.inspection.explanation import GraphBreak
from svg_compile.inspection.known_values import answer
from svg_compile.inspection.report import Report
from svg_compile.inspection.traced_calls import TracedCalls
from svg_compile.passes.axes.ledger import GraphCall, input_facts

# Weights of at most this many elements are read where Python code asks for them.
_SMALL_WEIGHT = 2**16
_NO_ATTENTION = "no scaled_dot_product_attention was traced: is another attention backend selected?"
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
    """What a trace found; `stopped` says which value ended it early, None where it came to its end."""

    report: Report
    stopped: NeedsData | None = None


def trace(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
    values: Callable[[Tensor], bool] = lambda tensor: True,
) -> Trace:
    """`explain`, telling `listener` each graph and its example inputs as they come.

    values: whether Python code of the model may read a tensor's values (an input's, a weight's); others are unknown.
    """
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1" or torch.compiler.is_dynamo_compiling():
        raise SvgError(
            "explain needs Dynamo to trace: unset TORCHDYNAMO_DISABLE, and call it outside of torch.compile."
        )
    if not callable(model):
        raise SvgError(f"explain expects a module or a function to trace, got {type(model).__name__}.")
    config, _ = split_options(options)
    graphs: list[_Graph] = []
    notes: list[str] = [_NO_GRADIENTS] if torch.is_grad_enabled() else []
    mode = ValueMode()
    stopped = None

    def collect(graph_module: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        graph = _Graph(count_flops(graph_module))
        graphs.append(graph)
        if flex_calls(graph_module):
            notes.append(f"no rows: {BY_FLEX}")
        if listener is not None:
            listener(graph_module, example_inputs)
        facts, answered = input_facts(graph_module), answer(graph_module, mode)
        placeholders = graph_module.graph.find_nodes(op="placeholder")
        # Of what was computed between graphs the backend sees less than the trace does.
        alone = _sites(graph_module, config, notes, None) if facts.unseen else ()

        def run(*inputs: Any) -> Any:
            graph.calls += 1
            call = calls.call(facts, dict(zip(placeholders, inputs)), first=graph.calls == 1)
            calls.add(graph_module, _sites(graph_module, config, notes, call), alone)
            outputs = answered(*inputs)
            call.leave(outputs)
            return outputs

        return run

    with torch.no_grad(), leaving_no_trace(collect) as breaks:
        clone, inputs, keywords = _bare(model, args, kwargs, mode, values)
        calls = TracedCalls(clone, (inputs, keywords), mode, config, lambda: _last_break(breaks()))
        try:
            isolated_compile(clone, collect)(*inputs, **keywords)
        except (*READS_VALUE, LostWrite) as error:
            stopped = NeedsData(_what_was_read(error))
            notes.append(f"the trace ends here, what comes after is not in the table: {stopped}")
        found = _breaks(breaks())
    total = None if any(graph.flops is None for graph in graphs) else sum(g.calls * (g.flops or 0) for g in graphs)
    if not calls.sites and not notes:
        notes.append(_NO_ATTENTION)
    cost = cost_of(calls.in_graphs, None if stopped else total, config)
    return Trace(Report(calls.sites, len(graphs), tuple(dict.fromkeys(notes)), found, cost), stopped)


def _bare(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    mode: ValueMode,
    values: Callable[[Tensor], bool],
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """(a clone of the model, its inputs): all tensors fake, on one device, as hooks would bring them there."""
    plain = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    module = uncompiled(plain) if isinstance(plain, nn.Module) else None
    device = _device(module, (args, dict(kwargs)))

    def stand_in(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) and not is_fake(tensor):
            # A quantised weight: Dynamo sees into it.
            return tensor
        dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        is_weight = isinstance(tensor, nn.Parameter)
        same = tensor.device == device and dtype == tensor.dtype
        readable = same and mode.may_turn_const(tensor) and values(tensor)
        if readable and is_weight and tensor.numel() <= _SMALL_WEIGHT:
            fake = mode.borrowed(tensor.detach())
        elif readable and not is_weight:
            fake = mode.known(tensor.detach().clone())
        else:
            fake = mode.unknown(tensor, dtype, device)
        return nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_weight else fake

    method: Any = model
    target = module if plain is model else MethodType(method.__func__, module) if module is not None else model
    clone, given_args, given_kwargs = bare_clone((target, args, dict(kwargs)), stand_in)
    if isinstance(clone, nn.Module) and module is not None and KEPT_FORWARD in vars(module):
        # Dynamo breaks off in the loop over the blocks that a cache has replaced, and gives up on the forward.
        clone.forward = MethodType(with_code_of_its_own(type(clone).forward), clone)
    return clone, given_args, given_kwargs


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


def _device(module: nn.Module | None, inputs: Any) -> torch.device:
    """Where the model runs: where its inputs are, else its weights; where they part, on the accelerator."""
    tensors = [value for value in tree_leaves(inputs) if isinstance(value, Tensor)]
    tensors += [] if module is None else [*module.parameters(), *module.buffers()]
    devices = [tensor.device for tensor in tensors if tensor.device.type != "meta"]
    devices += [torch.device("cpu")]
    return next((device for device in devices if device.type != "cpu"), devices[0])


def _breaks(found: list[tuple[str, list[Any]]]) -> tuple[GraphBreak, ...]:
    """Dynamo's texts, parted; a break that it tells twice, once without a place, counts once."""
    merged: dict[tuple[str, str], GraphBreak] = {}
    for text, frames in found:
        title = text.partition("\n")[0].strip()
        if title.startswith("generic_jump"):
            # Its short name for what the counters spell out.
            title = "Data-dependent branching"
        source = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        told = [key for key in merged if key[0] == title]
        if not source and told:
            bare = [key for key in told if not merged[key].explanation]
            merged.update({key: GraphBreak(*key, *_advice(text), merged[key].count) for key in bare})
            continue
        before = merged.get((title, source))
        merged[title, source] = GraphBreak(title, source, *_advice(text), 1 if before is None else before.count + 1)
    return tuple(merged.values())


def _last_break(found: list[tuple[str, list[Any]]]) -> str:
    """The last break, in a line."""
    last = _breaks(found)[-1:]
    return "".join(f"{each.reason}{' at ' + os.path.basename(each.source) if each.source else ''}" for each in last)


def _advice(text: str) -> tuple[str, str]:
    """Dynamo's explanation and its first hint."""
    found = (re.search(rf"^ *{name}: (.*)$", text, re.MULTILINE) for name in ("Explanation", "Hint"))
    explanation, hint = (match[1] if match else "" for match in found)
    return explanation, hint
