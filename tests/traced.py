"""Trace a function as torch.compile does and run the analysis on its graphs: no Inductor, nothing rewritten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from svg_compile._compat.graphs import fake_mode_of
from svg_compile._compat.sizes import size_hint
from svg_compile.config import SvgConfig
from svg_compile.decisions import Site
from svg_compile.passes import run_passes
from svg_compile.passes.axes.infer import TokenAxes, infer_token_axes

GRID_OPTIONS = {"min_tokens": 1, "dense_layers": 0}
CONFIG = SvgConfig(min_tokens=1, dense_layers=0)


class Recorder:
    """A backend that analyses each graph and returns it unchanged."""

    def __init__(self, config: SvgConfig = CONFIG, *, rewrite: bool = False) -> None:
        # The graph is the caller's own, which can be given no more inputs, such as the shares of layers.
        self.config = replace(config, share_layers=False) if rewrite else config
        self.rewrite = rewrite
        self.graphs: list[torch.fx.GraphModule] = []
        self.sites: list[Site] = []

    def __call__(self, graph_module: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph_module)
        self.sites.extend(run_passes(graph_module, self.config, rewrite=self.rewrite).sites)
        return graph_module.forward


def sites_of(
    function: Callable[..., Any], *args: Any, dynamic: bool = False, config: SvgConfig = CONFIG, grad: bool = False
) -> list[Site]:
    """The decision of the analysis on each attention of `function(*args)`."""
    torch._dynamo.reset()
    recorder = Recorder(config)
    with torch.set_grad_enabled(grad):
        torch.compile(function, backend=recorder, dynamic=dynamic)(*args)
    return recorder.sites


def axes_of(function: Callable[..., Any], *args: Any, dynamic: bool = False) -> TokenAxes:
    """The axes of each attention of `function(*args)`, which must be one graph."""
    torch._dynamo.reset()
    found: list[TokenAxes] = []

    def backend(graph_module: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        found.append(infer_token_axes(graph_module, fake_mode_of(graph_module)))
        return graph_module.forward

    with torch.no_grad():
        torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)(*args)
    return found[0]


def verdict(site: Site) -> str:
    """ "5*7*3", "11+5*7*3", "2+5*7*3+9" where a grid was accepted, else the reason's name."""
    if not site.rewritten:
        return site.reason.name if site.reason else "?"
    layout = site.layout
    assert layout is not None
    video = f"{layout.frames}*{layout.height}*{layout.width}"
    if not layout.text_len:
        return video
    if site.before:
        return f"{site.before}+{video}+{layout.text_len - site.before}"
    return f"{layout.text_len}+{video}" if layout.text_first else f"{video}+{layout.text_len}"


def answer_with_zeros(graph_module: torch.fx.GraphModule) -> Callable[..., Any]:
    """A compiled graph that computes nothing: zeros of the shapes of its outputs."""
    (output,) = graph_module.graph.find_nodes(op="output")
    shown = [node.meta["example_value"] for node in output.args[0]]

    def answer(*inputs: Any) -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros([size_hint(size) for size in t.shape], dtype=t.dtype) for t in shown)

    return answer
