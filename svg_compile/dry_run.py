"""`svg_compile.explain(model, *args, **kwargs)`: what the backend would do, attention by attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from svg_compile._compat import size_hint
from svg_compile.config import SvgConfig
from svg_compile.report import Report, Site


def explain(model: Callable[..., Any], *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any) -> Report:
    """Trace `model(*args, **kwargs)` and report each attention: rewritten, or why not.

    No graph of the model is run and nothing of it is changed: each traced graph is answered with zeros of the right
    shapes. (Python between graph breaks does run, on those zeros.) Call it as the model will be called, under
    torch.no_grad() or torch.inference_mode(). `options` are those of the backend.
    """
    from svg_compile.passes import run_passes

    config = SvgConfig.from_options(options)
    sites: list[Site] = []
    graphs = 0

    def collect(graph_module: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        sites.extend(run_passes(graph_module, config, rewrite=False).sites)
        return _answer_with_zeros(graph_module)

    plain = getattr(model, "_orig_mod", model)
    torch.compile(plain, backend=collect, dynamic=False)(*args, **kwargs)
    notes = () if sites else ("no scaled_dot_product_attention was traced: is another attention backend selected?",)
    return Report(tuple(sites), graphs, notes)


def _answer_with_zeros(graph_module: fx.GraphModule) -> Callable[..., Any]:
    """A stand-in for the graph that computes nothing and returns what has its outputs' shapes."""
    (output,) = (node for node in graph_module.graph.nodes if node.op == "output")
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]

    def answer(*inputs: Any) -> Any:
        given = dict(zip(placeholders, inputs))
        return fx.map_arg(output.args[0], lambda node: given[node] if node in given else _zeros(node))

    return answer


def _zeros(node: fx.Node) -> Any:
    example = node.meta["example_value"]
    if isinstance(example, Tensor):
        shape = [size_hint(size) for size in example.shape]
        return torch.zeros(shape, dtype=example.dtype, device=example.device)
    return size_hint(example) if isinstance(example, torch.SymInt) else example
