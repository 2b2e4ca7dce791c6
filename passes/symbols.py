"""Symbolic sizes as values in a graph, computed from the symbolic placeholders that it has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from svg_compile._compat.sizes import expression, is_symbolic
from svg_compile.passes.emit import Emitter


def computable(graph: fx.Graph, sizes: Iterable[Any]) -> bool:
    """True if every size is an int or follows from the graph's placeholders."""
    bound = _placeholder_symbols(graph)
    return all(symbol in bound for size in sizes if is_symbolic(size) for symbol in expression(size).free_symbols)


def emit_size(emitter: Emitter, size: Any) -> Any:
    """A size as an argument: an int, or a proxy of the nodes that compute it, put at the graph's insertion point."""
    if not is_symbolic(size):
        return int(size)
    proxies = {symbol: emitter.proxy_of(node) for symbol, node in _placeholder_symbols(emitter.graph).items()}
    result = sympy_interp(PythonReferenceAnalysis, proxies, expression(size))
    return result if isinstance(result, fx.Proxy) else int(result)


def _placeholder_symbols(graph: fx.Graph) -> dict[sympy.Symbol, fx.Node]:
    found: dict[sympy.Symbol, fx.Node] = {}
    for node in graph.nodes:
        value = node.meta.get("example_value") if node.op == "placeholder" else None
        if isinstance(value, torch.SymInt) and isinstance(expression(value), sympy.Symbol):
            found.setdefault(expression(value), node)
    return found
