"""`svg_compile.explain(model, *args, **kwargs)`: what the backend would do, attention by attention."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from svg_compile._compat.dynamo import isolated_compile, leaving_no_trace
from svg_compile._compat.graphs import NEEDS_DATA
from svg_compile._compat.sizes import size_hint
from svg_compile.config import SvgConfig, split_options
from svg_compile.decisions import Site
from svg_compile.errors import NeedsData, SvgError
from svg_compile.inspection.cost import cost_of, count_flops
from svg_compile.inspection.explanation import GraphBreak
from svg_compile.inspection.preserve_state import module_of, untouched
from svg_compile.inspection.report import Report

# Results of this many bytes keep data where the model has none: Python code may read them, and they cost nothing.
_SMALL = 2**24
_NO_ATTENTION = "no scaled_dot_product_attention was traced: is another attention backend selected?"
Listener = Callable[[fx.GraphModule, Any], object]


@dataclass
class _Graph:
    """A traced graph: its attentions, its FLOPs, and how often one forward calls it."""

    sites: tuple[Site, ...]
    flops: int | None
    calls: int = 0


def explain(model: Callable[..., Any], *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any) -> Report:
    """Trace `model(*args, **kwargs)` and report each attention: rewritten, or why not; and what it costs.

    Call it as the model will be called, under torch.no_grad() or torch.inference_mode(). `options` are those of the
    backend. The model may be on the meta device, and so may its inputs: nothing of its size is allocated, and they
    count as being on the CPU, or on the device of the tensors that are not.

    No graph of the model is run: each is answered with zeros of the right shapes. Python code between graph breaks
    does run, on those zeros. Afterwards the model's attributes, buffers, inputs, random number generators and Dynamo's
    caches are what they were; what such code writes elsewhere (into a parameter, a file, a global) is not undone. A
    model compiled before stays compiled, and counts one entry more toward torch's accumulated recompile limit.
    """
    return trace(model, args, kwargs, options)


def trace(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
) -> Report:
    """`explain`, telling `listener` each graph and its example inputs as they come."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1" or torch.compiler.is_compiling():
        raise SvgError(
            "explain needs Dynamo to trace: unset TORCHDYNAMO_DISABLE, and call it outside of torch.compile."
        )
    config, _ = split_options(options)
    graphs: list[_Graph] = []
    notes: list[str] = []
    plain = getattr(model, "_orig_mod", model)
    module = module_of(plain)
    inputs = (args, dict(kwargs))
    with leaving_no_trace() as breaks, untouched(module, inputs, _device(module, inputs)) as (given, fake_mode):

        def collect(graph_module: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
            graph = _Graph(_sites(graph_module, config, notes), count_flops(graph_module))
            graphs.append(graph)
            if listener is not None:
                listener(graph_module, example_inputs)
            return _answer_with_zeros(graph_module, graph, fake_mode)

        try:
            isolated_compile(plain, collect)(*given[0], **given[1])
        except NEEDS_DATA as error:
            raise NeedsData(
                f"Python code between two graphs reads values ({error}) that a model without data does not have: "
                "explain one with weights, at a small size."
            ) from error
        found = _breaks(breaks())
    sites = tuple(replace(site, calls=graph.calls) for graph in graphs for site in graph.sites)
    total = None if any(graph.flops is None for graph in graphs) else sum(g.calls * (g.flops or 0) for g in graphs)
    if not sites and not notes:
        notes.append(_NO_ATTENTION)
    return Report(sites, len(graphs), tuple(dict.fromkeys(notes)), found, cost_of(sites, total, config))


def _sites(graph_module: fx.GraphModule, config: SvgConfig, notes: list[str]) -> tuple[Site, ...]:
    from svg_compile.passes import run_passes

    try:
        return run_passes(graph_module, config, rewrite=False).sites
    except Exception as error:
        if config.on_error == "raise":
            raise
        notes.append(f"a pass failed, the graph would stay as it is: {type(error).__name__}: {error}")
        return ()


def _device(module: torch.nn.Module | None, inputs: Any) -> torch.device:
    """Where tensors of the meta device are taken to be: where the others are."""
    tensors = [] if module is None else [*module.parameters(), *module.buffers()]
    tensors += [value for value in torch.utils._pytree.tree_leaves(inputs) if isinstance(value, Tensor)]
    return next((tensor.device for tensor in tensors if tensor.device.type != "meta"), torch.device("cpu"))


def _answer_with_zeros(graph_module: fx.GraphModule, graph: _Graph, fake_mode: Any) -> Callable[..., Any]:
    """A stand-in for the graph that computes nothing and returns what has its outputs' shapes."""
    (output,) = (node for node in graph_module.graph.nodes if node.op == "output")
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]

    def answer(*inputs: Any) -> Any:
        graph.calls += 1
        given = dict(zip(placeholders, inputs))
        return fx.map_arg(output.args[0], lambda node: given[node] if node in given else _zeros(node, fake_mode))

    return answer


def _zeros(node: fx.Node, fake_mode: Any) -> Any:
    example = node.meta["example_value"]
    if isinstance(example, Tensor):
        shape = [size_hint(size) for size in example.shape]
        big = math.prod(shape) * example.element_size() > _SMALL
        with fake_mode if fake_mode is not None and big else nullcontext():
            return torch.zeros(shape, dtype=example.dtype, device=example.device)
    return size_hint(example) if isinstance(example, torch.SymInt) else example


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


def _advice(text: str) -> tuple[str, str]:
    """Dynamo's explanation and its first hint."""
    found = (re.search(rf"^ *{name}: (.*)$", text, re.MULTILINE) for name in ("Explanation", "Hint"))
    explanation, hint = (match[1] if match else "" for match in found)
    return explanation, hint
