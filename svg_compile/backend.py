"""`torch.compile(model, backend="svg")`: rewrite the graph that Dynamo traced, then hand the whole of it to Inductor.

Found by name through the entry point group `torch_dynamo_backends`; no import is needed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx

from svg_compile._compat import copy_graph
from svg_compile.config import SvgConfig, split_options
from svg_compile.errors import NothingRewritten
from svg_compile.report import Report

log = logging.getLogger(__name__)


def svg(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The backend: returns the compiled graph. Options are those of `SvgConfig` and Inductor's own."""
    from torch._inductor.compile_fx import compile_fx

    config, inductor_options = split_options(options, mode)
    report = rewrite(graph_module, config)
    _tell(graph_module, report, config)
    compiled = compile_fx(graph_module, list(example_inputs), config_patches=inductor_options)
    return cast("Callable[..., Any]", compiled)


def rewrite(graph_module: fx.GraphModule, config: SvgConfig) -> Report:
    """Run the passes over a Dynamo graph, in place; returns what was done.

    A pass that fails leaves the graph as it was and one warning, or raises with `on_error="raise"`.
    """
    from svg_compile.passes import run_passes

    snapshot = _Snapshot(graph_module)
    try:
        return run_passes(graph_module, config)
    except Exception as error:
        snapshot.restore()
        if config.on_error == "raise":
            raise
        log.debug("the svg passes failed", exc_info=True)
        warnings.warn(
            f"svg: a pass failed ({type(error).__name__}: {error}); this graph is compiled by Inductor as it is, with "
            "dense attention. options={'on_error': 'raise'} raises the error instead.",
            stacklevel=2,
        )
        return Report(notes=(f"a pass failed: {type(error).__name__}: {error}",))


class _Snapshot:
    """The graphs of a module and its child graph modules, as they were."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        modules = [module for module in graph_module.modules() if isinstance(module, fx.GraphModule)]
        self._graphs = [(module, copy_graph(module.graph)) for module in modules]

    def restore(self) -> None:
        for module, graph in self._graphs:
            module.graph = graph


def _tell(graph_module: fx.GraphModule, report: Report, config: SvgConfig) -> None:
    """Log what was done; warn once, or raise where `strict`, when a graph of attention-like work stayed as it was."""
    log.info("%s", report)
    if report.rewritten or report.notes:
        return
    if not report.sites:
        if not _multiplies(graph_module):
            # A fragment between graph breaks, not a transformer.
            return
        why = (
            "the graph holds no scaled_dot_product_attention. If the model uses another attention backend (flash, "
            "sage, xformers, flex), select the native one (diffusers: model.set_attention_backend('native')); if its "
            "attention runs between graph breaks, look for them with TORCH_LOGS=graph_breaks"
        )
    else:
        counts: dict[str, int] = {}
        for site in report.sites:
            if site.reason is not None:
                line = f"{site.reason.text} -> {site.reason.remedy}"
                counts[line] = counts.get(line, 0) + 1
        why = "; ".join(f"{count}x {line}" for line, count in counts.items())
    message = f"svg: no attention was rewritten, all of it stays dense: {why}."
    if config.strict:
        raise NothingRewritten(message + " This is an error because of options={'strict': True}.")
    warnings.warn(message + " svg_compile.explain(model, ...) shows every attention.", stacklevel=2)


def _multiplies(graph_module: fx.GraphModule) -> bool:
    targets = (torch.nn.functional.linear, torch._C._nn.linear, torch.matmul, torch.bmm)
    return any(node.op == "call_function" and node.target in targets for node in graph_module.graph.nodes)
