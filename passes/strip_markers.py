"""Read and erase the markers of a block's graph: what the whole model knows of the attentions in it.

before   x = svg.mark(hidden_states, "grid", [s1, s2, s3]);   to_q(x)
after    to_q(hidden_states)                     and {"attn1": Marker("grid", (frames, height, width))}

The inputs that carry the sizes stay inputs of the graph, without a use.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from svg_compile._compat.graphs import graph_modules
from svg_compile.passes.find_attention import layer_of
from svg_compile.passes.grid_marker import MARK, OF_BLOCK, Marker, carried


def strip_markers(graph_module: fx.GraphModule) -> Mapping[str, Marker]:
    """The marker of each layer by its module path; they are gone from the graph and its child graphs."""
    found: dict[str, Marker] = {}
    for module in graph_modules(graph_module):
        nodes = [node for node in module.graph.nodes if node.target in MARK]
        for node in nodes:
            tensor, text, sizes = node.args
            layer = "" if text.startswith(OF_BLOCK) else layer_of(node)
            numbers = carried([each.meta["example_value"] for each in sizes])
            found[layer] = Marker(text.removeprefix(OF_BLOCK), numbers)
            node.replace_all_uses_with(tensor)
            module.graph.erase_node(node)
        if nodes:
            module.recompile()
    return found
