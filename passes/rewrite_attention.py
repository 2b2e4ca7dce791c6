"""Replace each accepted attention by `svg::profile` and `svg::attention`.

    before   out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=s)
    after    plan = svg.profile(q, k, v, mask[:, 0, 0], grid=[F, H, W, ...], scale=s, when=None, ...)[0]
             out  = svg.attention(q, k, v, plan, mask[:, 0, 0], grid=[F, H, W, ...], scale=s, ...)
             with `repair`, svg.profile_and_fit in place of svg.profile, and svg.repair_(out, ...) behind
             and, where the mask hides rows as well: out.masked_fill(~mask[:, 0, 0, :, None], 0)
             where text stands on both sides, operands and result are reordered around it (`move_open`)
             where the queries are a part of the keys, zeros stand for the others, and their rows are cut off again

The node is replaced where it stands, for the graph is not functional (RoPE writes into slices before it). No
placeholder is added: symbolic sizes are computed from those that the graph has.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import fx

from svg_compile._compat.sizes import constant, size_hint
from svg_compile.config import SvgConfig
from svg_compile.kernels import repair_ops
from svg_compile.kernels.ops import ABI
from svg_compile.passes.attention_call import Call, example, heads_each
from svg_compile.passes.attention_mask import TokenMask, token_mask
from svg_compile.passes.axes.read_grid import Grid
from svg_compile.passes.emit import Emitter, shown
from svg_compile.passes.find_attention import Candidate
from svg_compile.passes.move_open import move_of
from svg_compile.passes.spread_heads import SPREAD, spread_heads
from svg_compile.passes.symbols import emit_size

# Where the step matters, `expose_plans` says what these are.
_STAGES = ("when", "previous", "share")
# The op stores its result [B, H, N, D] as [B, N, H, D].
_OP_ORDER = (0, 2, 1, 3)


def rewrite_attention(candidates: tuple[Candidate, ...], config: SvgConfig) -> None:
    """Rewrite the accepted candidates in their graphs; lints and recompiles each graph touched."""
    accepted = [candidate for candidate in candidates if candidate.accepted]
    for candidate in accepted:
        graph, node = candidate.module.graph, candidate.node
        with graph.inserting_before(node):
            result = _replacement(Emitter(graph, node), candidate, config)
        # The same sizes and strides, in the symbols that the graph has for them.
        result.node.meta["example_value"] = example(node)
        node.replace_all_uses_with(result.node)
        graph.erase_node(node)
    for module in {id(candidate.module): candidate.module for candidate in accepted}.values():
        module.graph.lint()
        module.recompile()


def _replacement(emitter: Emitter, candidate: Candidate, config: SvgConfig) -> fx.Proxy:
    """The nodes that replace the attention; returns their result, of the same dtype and strides."""
    call, grid, result = candidate.call, candidate.grid, example(candidate.node)
    assert grid is not None
    query, key, value = _operands(emitter, call, grid, result.dtype)
    sizes = [*(emit_size(emitter, size) for size in grid.sizes), int(grid.text_first), config.block]
    mask = None
    if call["attn_mask"] is not None:
        mask = token_mask(call["attn_mask"], example(call["key"]), candidate.bias_hides)
    key_mask = None if mask is None else _key_mask(emitter, mask, query)
    move = move_of(emitter, grid)
    if move is not None:
        query, key, value = (move.together(operand, 2) for operand in (query, key, value))
        key_mask = None if key_mask is None else move.together(key_mask, 1)
    if result.device.type != "cpu":
        query, key, value = (_settled(emitter, operand) for operand in (query, key, value))
        key_mask = None if key_mask is None else _settled(emitter, key_mask)
    scale = None if call["scale"] is None else constant(example(call["scale"]))
    options = {"engine": config.engine, "abi": ABI}
    attention = {"grid": sizes, "scale": None if scale is None else float(scale), **options}
    profile = {"grid": sizes, "densities": list(config.densities), "sampled_rows": config.sampled_rows}
    profile |= {"adaptive": config.adaptive_widths, **attention, **dict.fromkeys(_STAGES)}
    spread = spread_heads(call["query"])
    if spread is not None and config.adaptive_widths and config.share_processes:
        profile |= asdict(spread)
    if config.repair:
        profiled = emitter.call(repair_ops.PROFILE, query, key, value, key_mask, **profile, previous_fit=None)
    else:
        profiled = emitter.call(torch.ops.svg.profile.default, query, key, value, key_mask, **profile)
    profiled.node.meta[SPREAD] = spread
    plan = emitter.call(operator.getitem, profiled, 0)
    op = torch.ops.svg.attention.default
    out = emitter.call(op, query, key, value, plan, key_mask, **attention)
    if config.repair:
        exact, fit = (emitter.call(operator.getitem, profiled, part) for part in (2, 3))
        # In place: nothing else reads the result of the op before.
        emitter.call(repair_ops.REPAIR, out, exact, fit, grid=sizes, **options)
    if mask is not None and mask.pairs is not None and key_mask is not None:
        # SDPA returns 0 for rows without a visible key.
        out = out.masked_fill(key_mask.logical_not().unsqueeze(1).unsqueeze(3), 0.0)
    order = _storage_order(result)
    if order == _OP_ORDER and move is None and not grid.of_part:
        return out
    # A model that reads the result by another storage order than [B, N, H, D], as a view does, goes on doing so. Tokens
    # that were moved are put back in the same copy.
    stored = out.permute(order)
    if move is not None:
        stored = move.put_back(stored, order.index(2))
    if grid.of_part:
        front, queries = (emit_size(emitter, size) for size in (grid.unasked[0], grid.queries))
        stored = stored.narrow(order.index(2), front, queries)
    if move is None or grid.of_part:
        stored = stored.contiguous()
    return stored.permute(tuple(order.index(dim) for dim in range(4)))


def _operands(emitter: Emitter, call: Call, grid: Grid, dtype: torch.dtype) -> Iterator[fx.Proxy]:
    """Query, key and value of one dtype, with as many heads and as many tokens each."""
    query, key, value = (_cast(emitter.proxy_of(call[name]), dtype) for name in ("query", "key", "value"))
    if grid.of_part:
        # A query of zeros looks at all that it sees alike; its row is cut off again.
        front, behind = (emit_size(emitter, size) for size in grid.unasked)
        query = emitter.call(torch.nn.functional.pad, query, (0, 0, front, behind))
    yield query
    each = heads_each(call)
    for operand in (key, value):
        # As attention itself takes grouped heads: each for so many heads of the query in a row.
        yield operand if each in (1, None) else operand.repeat_interleave(each, 1)


def _settled(emitter: Emitter, operand: fx.Proxy) -> fx.Proxy:
    """An operand of the profile and of attention as one buffer, of which both read."""
    return emitter.call(torch.ops.svg.settled.default, operand)


def _cast(operand: fx.Proxy, dtype: torch.dtype) -> fx.Proxy:
    """The cast that autocast applies to operands of SDPA, but not to those of other operators."""
    return operand if shown(operand).dtype is dtype else operand.to(dtype)


def _storage_order(result: torch.Tensor) -> tuple[int, ...]:
    """The dimensions of a result from the widest stride to the narrowest; the op's own where that is one of them."""
    if result.transpose(1, 2).is_contiguous():
        return _OP_ORDER
    return tuple(sorted(range(4), key=lambda dim: -size_hint(result.stride(dim))))


def _key_mask(emitter: Emitter, mask: TokenMask, query: fx.Proxy) -> fx.Proxy:
    """bool [B, N], True for visible keys."""
    if mask.pairs is None:
        rows = _first_row(emitter.proxy_of(mask.rows))
    else:
        # As it is where the pairs are made of it: it may be a view of what is written into later.
        with emitter.graph.inserting_before(mask.pairs.next):
            rows = _first_row(emitter.proxy_of(mask.rows)).clone()
    return rows.expand(query.size(0), -1)


def _first_row(mask: fx.Proxy) -> fx.Proxy:
    """bool [B or 1, 1, any, N], or floating point of which 0 hides nothing -> bool [B or 1, N]."""
    row = mask.select(1, 0).select(1, 0)
    return row if shown(mask).dtype is torch.bool else row.eq(0)
