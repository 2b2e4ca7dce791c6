"""Traced graphs, what stands in them, and their copies."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

# The operator itself: programs replace the name in torch.nn.functional, and a graph traced through the replacement
# holds the operator. What stands at that name may compute something else.
SDPA = torch._C._nn.scaled_dot_product_attention
SDPA_TARGETS = (
    SDPA,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)

# Matrix products in graphs. functional.linear is torch._C._nn.linear today; both are listed in case that changes.
PRODUCTS = (torch.nn.functional.linear, torch._C._nn.linear, torch.matmul, torch.bmm)
# The fused attention of CPUs, which returns the log-sum-exp of its rows too; there is no public operator that does.
CPU_FLASH_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def flex_calls(graph_module: torch.fx.GraphModule) -> int:
    """How often a graph calls FlexAttention, a higher-order operator that is known by its name."""
    operators = (node.target for node in graph_module.graph.nodes if node.op == "call_function")
    return sum(is_higher_order(each) and each.name() == "flex_attention" for each in operators)


def is_higher_order(target: Any) -> bool:
    """True for an operator whose operands include graphs, or kernels."""
    return isinstance(target, torch._ops.HigherOrderOperator)


def fake_mode_of(graph_module: torch.fx.GraphModule) -> Any:
    """The fake tensor mode that the graph was traced with, None where it has no tensor inputs.

    Dynamo hands the backend a second mode in its tracing context; the values on the nodes belong to the first. Both
    share one shape environment, so guards reach Dynamo from either.
    """
    for node in graph_module.graph.nodes:
        if isinstance(value := node.meta.get("example_value"), FakeTensor):
            return value.fake_mode
    return None


def graph_nodes(graph_module: torch.fx.GraphModule) -> Iterator[tuple[torch.fx.GraphModule, torch.fx.Node]]:
    """(its graph, node) of each node of a graph and its child graphs, in the order in which they stand.

    The nodes of a child graph come, once, behind the node that first names it.
    """
    return _nodes(graph_module, set())


def _nodes(module: torch.fx.GraphModule, seen: set[int]) -> Iterator[tuple[torch.fx.GraphModule, torch.fx.Node]]:
    seen.add(id(module))
    children = {name: child for name, child in module.named_modules() if isinstance(child, torch.fx.GraphModule)}
    for node in module.graph.nodes:
        yield module, node
        child = children.get(str(node.target)) if node.op in ("get_attr", "call_module") else None
        if child is not None and id(child) not in seen:
            yield from _nodes(child, seen)


def graph_modules(graph_module: torch.fx.GraphModule) -> list[torch.fx.GraphModule]:
    """A graph and its child graphs, each once, in the order in which they stand."""
    return list({id(module): module for module, _ in graph_nodes(graph_module)}.values())


def copy_graph(graph: torch.fx.Graph) -> torch.fx.Graph:
    """A copy of a graph with the sources that Dynamo stores on its placeholders, which `copy.deepcopy` drops."""
    twin = copy.deepcopy(graph)
    for old, new in zip(graph.nodes, twin.nodes, strict=True):
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    return twin


@contextlib.contextmanager
def output_code(collect: Callable[[str], object]) -> Iterator[None]:
    """Give `collect` each piece of code that Inductor generates, or finds in its cache, in the block."""
    from torch._inductor.graph import GraphLowering

    previous = GraphLowering.save_output_code
    GraphLowering.save_output_code = collect  # type: ignore[assignment]
    try:
        yield
    finally:
        GraphLowering.save_output_code = previous


def trace_artifact(name: str, text: Callable[[], str]) -> None:
    """Put a text into torch's structured trace (TORCH_TRACE), where tlparse shows it; free when no trace is taken."""
    from torch._logging import trace_structured

    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": "string"}, payload_fn=text)


def copy_graph_module(graph_module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy of a Dynamo graph module with graphs of its own; parameters, constants and node values are shared.

    Both it and the original can be changed and compiled within one backend call.
    """
    twin = torch.fx.GraphModule(graph_module, copy_graph(graph_module.graph), type(graph_module).__name__)
    for name, child in graph_module.named_children():
        if isinstance(child, torch.fx.GraphModule) and hasattr(twin, name):
            setattr(twin, name, copy_graph_module(child))
    for name, value in vars(graph_module).items():
        # Attributes that Dynamo sets on its graph module and AOTAutograd reads, such as _param_name_to_source.
        vars(twin).setdefault(name, value)
    twin.meta = dict(graph_module.meta)
    return twin


def new_fake_mode() -> Any:
    """A fake tensor mode of our own, for tensors without data; real ones may meet them."""
    return torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)


def is_fake(value: Any) -> bool:
    """True if a value is a fake tensor, which has a device but no data."""
    return isinstance(value, FakeTensor)


def target_name(node: torch.fx.Node) -> str:
    """The name of a node's target, as `graph.print_tabular` prints it: `torch.nn.functional.linear`."""
    return str(node._pretty_print_target(node.target))


def known_value(tensor: torch.Tensor) -> torch.Tensor | None:
    """A tensor with data: the tensor itself, or what a fake one is known to hold; None where there is none."""
    if isinstance(tensor, FakeTensor):
        value: torch.Tensor | None = tensor.constant
        return value
    return None if tensor.is_meta else tensor


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor was written in place; 0 for inference tensors, which do not count."""
    return 0 if tensor.is_inference() else int(tensor._version)


def forget_arguments(graph_module: torch.fx.GraphModule) -> None:
    """Drop a graph's references to the arguments that it was traced for, as Dynamo does with its own graph at the end.

    They are weak, but torch.utils.swap_tensors, by which offloading moves quantised weights, refuses tensors with any.
    """
    for _, node in graph_nodes(graph_module):
        node.meta.pop("grapharg", None)
