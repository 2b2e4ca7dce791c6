"""Graph dumps of a model that is traced and not run: what `svg-compile dump` writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from svg_compile._compat.graphs import copy_graph_module
from svg_compile.backend import lower, rewrite
from svg_compile.config import split_options
from svg_compile.errors import SvgError
from svg_compile.inspection.dump import ProcessDump, process_dump
from svg_compile.inspection.tracing import trace


def dump_graphs(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    folder: str,
    code: bool,
) -> ProcessDump:
    """Write the graphs of `model(*args, **kwargs)` before and after the passes, and Inductor's code where asked to.

    The model may be without data: Inductor compiles its graphs, and nothing runs them. Raises SvgError where a file
    cannot be written.
    """
    from svg_compile.passes.expose_plans import ports_of

    config, patches = split_options(options)
    process = process_dump(folder, "--out")

    def write(graph_module: fx.GraphModule, example_inputs: Any) -> None:
        rewritten = copy_graph_module(graph_module)
        graph = process.new_graph()
        report = rewrite(rewritten, config, graph)
        if code:
            module = rewritten if report.rewritten else copy_graph_module(graph_module)
            with graph.inductor_code():
                lower(module, [*example_inputs, *ports_of(module).inputs], patches)

    try:
        trace(model, args, kwargs, options, write)
    finally:
        process.write_index()
    error, process.error = process.error, None
    if error is not None:
        raise SvgError(f"the dump is not complete: {error}") from error
    return process
