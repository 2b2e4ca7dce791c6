"""Replace each accepted attention by `svg::profile` and `svg::attention`.

    before   out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=s)
    after    plan = svg.profile(q, k, v, mask[:, 0, 0], F, H, W, T, ..., s, engine, ABI)
             out  = svg.attention(q, k, v, plan, mask[:, 0, 0], F, H, W, T, ..., s, engine, ABI)

The node is replaced where it stands, for the graph is not functional (RoPE writes into slices before it). No
placeholder is added: symbolic sizes are computed from those that the graph has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from svg_compile.config import SvgConfig
from svg_compile.kernels.ops import ABI
from svg_compile.passes.find_attention import Candidate
from svg_compile.passes.symbols import emit_size

_META = ("nn_module_stack", "stack_trace", "source_fn_stack", "from_node", "custom", "seq_nr")


@dataclass(frozen=True)
class Rewritten:
    """What the pass did: the attention nodes now in the graph, one a candidate that was accepted."""

    nodes: tuple[fx.Node, ...]


def rewrite_attention(candidates: tuple[Candidate, ...], config: SvgConfig) -> Rewritten:
    """Rewrite the accepted candidates in their graphs; lints and recompiles each graph touched."""
    nodes = tuple(_rewrite(candidate, config) for candidate in candidates if candidate.accepted)
    for module in {id(c.module): c.module for c in candidates if c.accepted}.values():
        module.graph.lint()
        module.recompile()
    return Rewritten(nodes)


def _rewrite(candidate: Candidate, config: SvgConfig) -> fx.Node:
    node, call, grid = candidate.node, candidate.call, candidate.grid
    assert grid is not None
    graph = candidate.module.graph
    query, key, value = call["query"], call["key"], call["value"]
    with graph.inserting_before(node):
        sizes = [emit_size(graph, size) for size in grid.sizes]
        layout = (*sizes, grid.text_first, config.block)
        key_mask = None if call["attn_mask"] is None else _emit_key_mask(graph, call["attn_mask"], query)
        scale = None if call["scale"] is None else float(call["scale"])
        tail = (scale, config.engine, ABI)
        profiled = (query, key, value, key_mask, *layout, config.density, config.sampled_rows, *tail)
        plan = graph.call_function(torch.ops.svg.profile.default, profiled)
        out = graph.call_function(torch.ops.svg.attention.default, (query, key, value, plan, key_mask, *layout, *tail))
        for new in (plan, out):
            new.meta.update({name: node.meta[name] for name in _META if name in node.meta})
        out.meta["example_value"] = node.meta["example_value"]
        result = out
        if not _kept_by_op(node.meta["example_value"]):
            # A model that reads the result by another storage order than [B, N, H, D] goes on doing so.
            result = graph.call_method("contiguous", (out,))
            result.meta.update(out.meta)
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    return out


def _kept_by_op(example: torch.Tensor) -> bool:
    """Whether SDPA's result had the op's storage order, [B, N, H, D]."""
    return example.transpose(1, 2).is_contiguous()


def _emit_key_mask(graph: fx.Graph, mask: fx.Node, query: fx.Node) -> fx.Node:
    """bool [B or 1, 1, 1, N] -> bool [B, N]."""
    rows = graph.call_method("select", (graph.call_method("select", (mask, 1, 0)), 1, 0))
    batch = graph.call_method("size", (query, 0))
    return graph.call_method("expand", (rows, batch, -1))
