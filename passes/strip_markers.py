"""Read and erase the marks of a block's graph: what the whole model told of the attentions in it.

before   x = svg.mark(hidden_states, "5x7x3");   to_q(x)
after    to_q(hidden_states)                     and {"attn1": "5x7x3"}
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from svg_compile.passes.find_attention import layer_of
from svg_compile.passes.grid_marker import MARK, OF_BLOCK


def read_marks(graph_module: fx.GraphModule) -> Mapping[str, str]:
    """The text of each mark by the module path of its layer; the marks are gone from the graph and its child graphs."""
    found: dict[str, str] = {}
    for module in graph_module.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        nodes = [node for node in module.graph.nodes if node.target in MARK]
        for node in nodes:
            text = str(node.args[1])
            layer = "" if text.startswith(OF_BLOCK) else layer_of(node)
            found[layer] = text.removeprefix(OF_BLOCK)
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        if nodes:
            module.recompile()
    return found
