"""Every private or version-dependent torch API that svg_compile touches, in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

SDPA_TARGETS = (
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)


def fake_mode_of(graph_module: torch.fx.GraphModule) -> Any:
    """The fake tensor mode that the graph was traced with, None where it has no tensor inputs.

    Dynamo hands the backend a second mode in its tracing context; the values on the nodes belong to the first. Both
    share one shape environment, so guards reach Dynamo from either.
    """
    for node in graph_module.graph.nodes:
        if isinstance(value := node.meta.get("example_value"), FakeTensor):
            return value.fake_mode
    return None


def is_parameter_or_buffer(placeholder: torch.fx.Node) -> bool:
    """Whether a placeholder of a Dynamo graph is a parameter or buffer of the model rather than an argument."""
    from torch._dynamo.source import is_from_unspecialized_param_buffer_source

    source = getattr(placeholder, "_dynamo_source", None)
    if source is None:
        source = getattr(placeholder.meta.get("grapharg"), "source", None)
    if source is not None:
        return bool(is_from_unspecialized_param_buffer_source(source))
    return isinstance(placeholder.meta.get("example_value"), torch.nn.Parameter)


def _hint(size: Any) -> int | None:
    """The size of the traced example, None for a size that depends on data."""
    if isinstance(size, int):
        return size
    node = size.node
    return node.hint if node.has_hint() else None


def size_hint(size: Any) -> int:
    """The size of the traced example as an int; 0 where it depends on data."""
    return _hint(size) or 0


# Facts already decided, per shape environment: deciding one symbolic fact costs milliseconds, and layers repeat them.
_DECIDED: Any = WeakKeyDictionary()


def holds(fact: Callable[..., Any], *sizes: Any) -> bool:
    """Whether a fact about sizes holds, for every input that will reach this compiled graph.

    Plain ints decide directly. Symbolic sizes: proven, or true of the traced example and then guarded, so that an
    input of which it is untrue recompiles. A fact untrue of the example is False without a guard: callers must treat
    False as "not proven". `fact` must be a module-level function, for its decisions are remembered.
    """
    symbolic = next((size for size in sizes if not isinstance(size, int)), None)
    if symbolic is None:
        return bool(fact(*sizes))
    decided = _DECIDED.setdefault(symbolic.node.shape_env, {})
    key = (fact, *map(expression, sizes))
    if key not in decided:
        decided[key] = _decide(fact, sizes)
    return bool(decided[key])


def _decide(fact: Callable[..., Any], sizes: tuple[Any, ...]) -> bool:
    hints = [_hint(size) for size in sizes]
    if any(hint is None for hint in hints):
        return statically_known_true(fact(*sizes))
    return bool(fact(*hints)) and (statically_known_true(fact(*sizes)) or bool(fact(*sizes)))


def equal(left: Any, right: Any) -> Any:
    """Fact: two sizes are equal."""
    return left == right


def divides(divisor: Any, size: Any) -> Any:
    """Fact: `divisor` is positive and divides `size`."""
    return False if isinstance(divisor, int) and divisor == 0 else size % divisor == 0


def at_most(small: Any, large: Any) -> Any:
    """Fact: one size is not above another."""
    return small <= large


def negative(size: Any) -> Any:
    """Fact: a position counts from the end."""
    return size < 0


def expression(size: Any) -> Any:
    """A size as a sympy expression, or the int that it is."""
    return size if isinstance(size, int) else size.node.expr


def is_symbolic(size: Any) -> bool:
    """Whether a size is symbolic."""
    return not isinstance(size, int)


def to_fake(fake_mode: Any, tensor: torch.Tensor) -> torch.Tensor:
    """A fake twin of a constant tensor, of static shape."""
    if isinstance(tensor, FakeTensor):
        return tensor
    return fake_mode.from_tensor(tensor, static_shapes=True)


def copy_graph(graph: torch.fx.Graph) -> torch.fx.Graph:
    """A copy of a graph that Dynamo accepts in its place: `copy.deepcopy` drops what Dynamo pins to placeholders."""
    twin = copy.deepcopy(graph)
    for old, new in zip(graph.nodes, twin.nodes, strict=True):
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    return twin
