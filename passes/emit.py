"""Writing into a graph as one writes Python: what is done to proxies becomes nodes, run on the traced example at once.

The nodes come from the line and the module of the node that they replace, and have an `example_value` as Dynamo's have.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from svg_compile._compat.fake_runs import symbolic_run
from svg_compile.passes.attention_call import example

_ORIGIN = ("nn_module_stack", "stack_trace", "source_fn_stack", "from_node", "custom", "seq_nr")


class Emitter(fx.proxy.GraphAppendingTracer):
    """Appends nodes at the insertion point of a graph.

    like: the node that they stand for, a tensor. origin: the node of whose line and module they are, `like` by default.
    """

    def __init__(self, graph: fx.Graph, like: fx.Node, origin: fx.Node | None = None) -> None:
        super().__init__(graph)
        source = like if origin is None else origin
        self.origin = {name: source.meta[name] for name in _ORIGIN if name in source.meta}
        self.fake_mode = example(like).fake_mode

    def proxy_of(self, value: Any) -> Any:
        """A proxy of a node; another value as it is."""
        return fx.Proxy(value, self) if isinstance(value, fx.Node) else value

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Proxy:
        """A call of a function that does not know proxies, as an operator of ours."""
        return self.create_proxy("call_function", target, args, kwargs)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **names: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *more, **names)
        node.meta.update(self.origin)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), example)
        function = getattr(type(args[0]), target) if kind == "call_method" else target
        with symbolic_run(self.fake_mode):
            node.meta["example_value"] = function(*args, **kwargs)
        return node


def shown(proxy: fx.Proxy) -> Any:
    """The traced example of what a proxy stands for."""
    return example(proxy.node)
