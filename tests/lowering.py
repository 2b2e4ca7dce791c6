"""Watches the graphs that the backend gives to Inductor, and replaces Inductor where a test is not about its code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import fx

from svg_compile import backend

T = TypeVar("T")


def sparse_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The graph's calls of sparse attention."""
    return [node for node in graph_module.graph.nodes if node.target is torch.ops.svg.attention.default]


def kind(graph_module: fx.GraphModule) -> list[str]:
    """["sparse"] or ["dense"]."""
    return ["sparse" if sparse_nodes(graph_module) else "dense"]


def grids_of(graph_module: fx.GraphModule) -> list[str]:
    """The grid of each sparse attention, as in "4x6x8"; ["dense"] for a graph without."""
    grids = [node.kwargs["grid"][:3] for node in sparse_nodes(graph_module)]
    return ["x".join(map(str, sizes)) for sizes in grids] or ["dense"]


def itself(graph_module: fx.GraphModule) -> list[fx.GraphModule]:
    """The graph."""
    return [graph_module]


def run_as_traced(graph_module: fx.GraphModule, inputs: Any, patches: Any) -> Callable[..., Any]:
    """Replaces Inductor: returns the graph unchanged, so that a compile costs only a trace."""
    return graph_module.forward


def watch(
    monkeypatch: pytest.MonkeyPatch,
    describe: Callable[[fx.GraphModule], list[T]],
    lower: Callable[..., Callable[..., Any]] = run_as_traced,
) -> list[T]:
    """A list that grows by `describe(graph)` with each graph that is compiled; `lower` compiles it."""
    seen: list[T] = []

    def watched(graph_module: fx.GraphModule, inputs: Any, patches: Any) -> Callable[..., Any]:
        # Marks of blocks are read and taken out before anything is compiled.
        assert not any("mark" in str(node.target) for node in graph_module.graph.nodes)
        seen.extend(describe(graph_module))
        return lower(graph_module, inputs, patches)

    monkeypatch.setattr(backend, "lower", watched)
    return seen
