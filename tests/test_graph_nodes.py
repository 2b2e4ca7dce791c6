"""Walks over traced graphs: the nodes of child graphs, and which nodes write."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from svg_compile._compat.graphs import graph_modules, graph_nodes
from svg_compile._compat.operators import writes


@torch.library.custom_op("svg_tests::doubles", mutates_args={"x"})
def doubles(x: Tensor) -> None:
    x.mul_(2)


@torch.library.custom_op("svg_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


def child(function: Callable[..., Any]) -> fx.GraphModule:
    """A graph that calls a function of torch."""
    return fx.symbolic_trace(lambda x: function(x))


def test_a_child_graph_s_nodes_come_once_and_where_it_is_called() -> None:
    module = torch.nn.Module()
    module.inner, module.outer, module.unused = (child(f) for f in (torch.cos, torch.sin, torch.tan))
    module.outer.add_module("deeper", child(torch.exp))
    with module.outer.graph.inserting_before(next(iter(module.outer.graph.nodes)).next):
        module.outer.graph.call_module("deeper", (next(iter(module.outer.graph.nodes)),))
    graph = fx.Graph()
    x = graph.placeholder("x")
    body = graph.get_attr("outer")
    called = graph.call_function(torch.ops.higher_order.invoke_subgraph, (body, "outer", x))
    once = graph.call_module("inner", (x,))
    again = graph.call_module("inner", (once,))
    graph.output(graph.call_function(torch.add, (called, again)))
    whole = fx.GraphModule(module, graph)
    calls = [node.target for _, node in graph_nodes(whole) if node.op == "call_function"]
    assert calls == [torch.exp, torch.sin, torch.ops.higher_order.invoke_subgraph, torch.cos, torch.add]
    assert graph_modules(whole) == [whole, whole.outer, whole.outer.deeper, whole.inner]
    assert all(node in set(owner.graph.nodes) for owner, node in graph_nodes(whole))


@pytest.mark.parametrize(
    ("expected", "kind", "target", "kwargs"),
    [
        (True, "call_method", "add_", {}),
        (True, "call_method", "__iadd__", {}),
        (True, "call_method", "__setitem__", {}),
        (False, "call_method", "add", {}),
        (False, "call_method", "__invert__", {}),
        (False, "call_method", "__getitem__", {}),
        (True, "call_function", operator.imatmul, {}),
        (True, "call_function", operator.setitem, {}),
        (False, "call_function", operator.invert, {}),
        (True, "call_function", F.relu, {"inplace": True}),
        (False, "call_function", F.relu, {"inplace": False}),
        (True, "call_function", F.relu_, {}),
        (True, "call_function", torch.add, {"out": "x"}),
        (False, "call_function", torch.add, {"out": None}),
        (True, "call_function", torch.ops.aten.add_.Tensor, {}),
        (False, "call_function", torch.ops.aten.add.Tensor, {}),
        (True, "call_function", torch.ops.aten.add, {"out": "x"}),
        (False, "call_function", torch.ops.aten.add, {}),
        (True, "call_function", torch.ops.svg_tests.doubles, {}),
        (True, "call_function", torch.ops.svg_tests.doubles.default, {}),
        (False, "call_function", torch.ops.svg_tests.doubled, {}),
    ],
)
def test_which_calls_write(expected: bool, kind: str, target: Any, kwargs: dict[str, Any]) -> None:
    graph = fx.Graph()
    x = graph.placeholder("add_")
    node = graph.create_node(kind, target, (x, x), {key: x if value == "x" else value for key, value in kwargs.items()})
    assert writes(node) is expected
    assert not writes(x)
