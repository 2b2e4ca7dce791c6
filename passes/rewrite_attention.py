"""Replace each accepted attention by `svg::profile` and `svg::attention`.

    before   out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=s)
    after    plan = svg.profile(q, k, v, mask[:, 0, 0], F, H, W, T, ..., s, engine, ABI, None, None, None)[0]
             out  = svg.attention(q, k, v, plan, mask[:, 0, 0], F, H, W, T, ..., s, engine, ABI)
             with `repair`, svg.profile_and_fit in place of svg.profile, and svg.repair_(out, ...) behind
             and, where the mask hides rows as well: out.masked_fill(~mask[:, 0, 0, :, None], 0)
             where text stands on both sides, operands and result are reordered around it (`move_open`)

The node is replaced where it stands, for the graph is not functional (RoPE writes into slices before it). No
placeholder is added: symbolic sizes are computed from those that the graph has.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from svg_compile._compat.sizes import constant, size_hint
from svg_compile.config import SvgConfig
from svg_compile.kernels import repair_ops
from svg_compile.kernels.ops import ABI
from svg_compile.kernels.widths import LADDER
from svg_compile.passes.attention_call import example
from svg_compile.passes.attention_mask import TokenMask, token_mask
from svg_compile.passes.find_attention import Candidate
from svg_compile.passes.move_open import Move, emit_put_back, emit_together, move_of
from svg_compile.passes.symbols import emit_size

_META = ("nn_module_stack", "stack_trace", "source_fn_stack", "from_node", "custom", "seq_nr")

# The op stores its result [B, H, N, D] as [B, N, H, D].
_OP_ORDER = (0, 2, 1, 3)


def rewrite_attention(candidates: tuple[Candidate, ...], config: SvgConfig) -> None:
    """Rewrite the accepted candidates in their graphs; lints and recompiles each graph touched."""
    accepted = [candidate for candidate in candidates if candidate.accepted]
    for candidate in accepted:
        _rewrite(candidate, config)
    for module in {id(candidate.module): candidate.module for candidate in accepted}.values():
        module.graph.lint()
        module.recompile()


def _rewrite(candidate: Candidate, config: SvgConfig) -> None:
    node, call, grid = candidate.node, candidate.call, candidate.grid
    assert grid is not None
    graph = candidate.module.graph
    shown = example(node)
    with graph.inserting_before(node), shown.fake_mode:
        query, key, value = (_emit_cast(graph, call[name], shown.dtype) for name in ("query", "key", "value"))
        sizes = [emit_size(graph, size) for size in grid.sizes]
        layout = (*sizes, grid.text_first, config.block)
        bias_hides = candidate.bias_hides
        mask = None if call["attn_mask"] is None else token_mask(call["attn_mask"], example(query), bias_hides)
        key_mask = None if mask is None else _emit_key_mask(graph, mask, query)
        scale = None if call["scale"] is None else constant(example(call["scale"]))
        scale = None if scale is None else float(scale)
        tail = (scale, config.engine, ABI)
        options = (list(config.densities), config.sampled_rows, config.adaptive_widths, *tail)
        move = move_of(graph, grid)
        if move is not None:
            query, key, value = (emit_together(graph, operand, move, 2) for operand in (query, key, value))
            key_mask = None if key_mask is None else emit_together(graph, key_mask, move, 1)
        if shown.device.type != "cpu":
            query, key, value = (_emit_settled(graph, operand) for operand in (query, key, value))
            key_mask = None if key_mask is None else _emit_settled(graph, key_mask)
        operands = (query, key, value)
        target = repair_ops.PROFILE if config.repair else torch.ops.svg.profile.default
        # Where the step matters, `expose_plans` says what these are.
        stages = [None] * (4 if config.repair else 3)
        profiled = graph.call_function(target, (*operands, key_mask, *layout, *options, *stages))
        plan = graph.call_function(operator.getitem, (profiled, 0))
        out = graph.call_function(torch.ops.svg.attention.default, (*operands, plan, key_mask, *layout, *tail))
        added = [profiled, plan, out]
        if config.repair:
            exact, fit = (graph.call_function(operator.getitem, (profiled, part)) for part in (2, 3))
            # In place: nothing else reads the result of the op before.
            added += [exact, fit, graph.call_function(repair_ops.REPAIR, (out, exact, fit, *layout[:5], *tail[1:]))]
        profiled.meta["example_value"] = _profiled(shown, config, grid.sizes)
        for new in added:
            new.meta.update({name: node.meta[name] for name in _META if name in node.meta})
        for part in profiled.users:
            part.meta["example_value"] = profiled.meta["example_value"][part.args[1]]
        out.meta["example_value"] = _as_stored(shown, _OP_ORDER)
        if mask is not None and mask.pairs is not None and key_mask is not None:
            out = _emit_hidden_rows(graph, out, key_mask)
        order = _storage_order(shown)
        result = out if order == _OP_ORDER and move is None else _emit_order(graph, out, order, move)
        result.meta["example_value"] = shown if result is not out else out.meta["example_value"]
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _emit_settled(graph: fx.Graph, operand: fx.Node) -> fx.Node:
    """An operand of the profile and of attention as one buffer, of which both read."""
    return graph.call_function(torch.ops.svg.settled.default, (operand,))


def _profiled(shown: torch.Tensor, config: SvgConfig, sizes: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """What the profile of an attention with the result `shown` returns."""
    heads, channels = shown.shape[:2], shown.shape[3]
    plan = shown.new_empty((*heads, 2), dtype=torch.int32)
    missing = (2, len(LADDER) if config.adaptive_widths else 0)
    shapes: tuple[tuple[Any, ...], ...] = (2,), missing
    if config.repair:
        rows = torch.sym_min(config.sampled_rows, sizes[0] * sizes[1] * sizes[2])
        shapes = (3,), (rows, channels), (channels + 2, channels), missing
    return plan, *(shown.new_empty((*heads, *shape), dtype=torch.float32) for shape in shapes)


def _emit_cast(graph: fx.Graph, operand: fx.Node, dtype: torch.dtype) -> fx.Node:
    """What autocast does of itself to the operands of SDPA, and not to those of other operators."""
    shown = example(operand)
    if shown.dtype is dtype:
        return operand
    cast = graph.call_method("to", (operand, dtype))
    cast.meta["example_value"] = shown.to(dtype)
    return cast


def _storage_order(shown: torch.Tensor) -> tuple[int, ...]:
    """The dimensions of a result from the widest stride to the narrowest; the op's own where that is one of them."""
    if shown.transpose(1, 2).is_contiguous():
        return _OP_ORDER
    return tuple(sorted(range(4), key=lambda dim: -size_hint(shown.stride(dim))))


def _as_stored(shown: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    return shown.new_empty([shown.shape[dim] for dim in order]).permute(_inverse(order))


def _emit_order(graph: fx.Graph, out: fx.Node, order: tuple[int, ...], move: Move | None) -> fx.Node:
    """A model that reads the result by another storage order than [B, N, H, D], as a view does, goes on doing so.

    Tokens that were moved are put back in the same copy.
    """
    stored = graph.call_method("permute", (out, order))
    if move is None:
        moved = graph.call_method("contiguous", (stored,))
    else:
        moved = emit_put_back(graph, stored, move, order.index(2))
    result = graph.call_method("permute", (moved, _inverse(order)))
    result.meta.update(out.meta)
    return result


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(dim) for dim in range(len(order)))


def _emit_key_mask(graph: fx.Graph, mask: TokenMask, query: fx.Node) -> fx.Node:
    """bool [B, N], True where a key may be seen."""
    if mask.pairs is None:
        rows = _emit_first_row(graph, mask.rows)
    else:
        # As it is where the pairs are made of it: it may be a view of what is written into later.
        with graph.inserting_before(mask.pairs.next):
            rows = graph.call_method("clone", (_emit_first_row(graph, mask.rows),))
    batch = graph.call_method("size", (query, 0))
    return graph.call_method("expand", (rows, batch, -1))


def _emit_first_row(graph: fx.Graph, mask: fx.Node) -> fx.Node:
    """bool [B or 1, 1, any, N], or floating point of which 0 hides nothing -> bool [B or 1, N]."""
    row = graph.call_method("select", (graph.call_method("select", (mask, 1, 0)), 1, 0))
    return row if example(mask).dtype is torch.bool else graph.call_method("eq", (row, 0))


def _emit_hidden_rows(graph: fx.Graph, out: fx.Node, key_mask: fx.Node) -> fx.Node:
    """What SDPA gives for rows that see no key: 0, in the storage of `out`."""
    hidden = graph.call_method("logical_not", (key_mask,))
    column = graph.call_method("unsqueeze", (graph.call_method("unsqueeze", (hidden, 1)), 3))
    filled = graph.call_method("masked_fill", (out, column, 0.0))
    filled.meta.update(out.meta)
    return filled
