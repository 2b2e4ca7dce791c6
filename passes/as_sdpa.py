"""Calls of other attention operators as `scaled_dot_product_attention`, while the passes run.

    before   out = flash_attn._flash_attn_forward(q, k, v, 0.0, scale, False, ...)[0]                  [B, N, H, D]
    while    out = scaled_dot_product_attention(q.transpose(1, 2), ..., scale=scale).transpose(1, 2)
    after    the ops of `rewrite_attention` where it was accepted, and the operator itself where it was not

Operands that hold sequences one behind another, [N, H, D], are read where there are one or two of them: SDPA stands for
the first, the operator for the second (`packed_sequences`).
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from svg_compile._compat.graphs import SDPA, graph_nodes
from svg_compile._compat.operators import qualified_name
from svg_compile._compat.sizes import equal, holds, size_hint
from svg_compile.passes.attention_call import example
from svg_compile.passes.attention_operators import (
    AttentionCall,
    attention_operator,
    in_first,
    read_call,
    result_of,
    sdpa_arguments,
)
from svg_compile.passes.emit import Emitter, shown
from svg_compile.passes.packed_sequences import of_the_second, sequences


@dataclass(frozen=True)
class _Replaced:
    """node: the operator's call. read: its result. made: the nodes that stand for both. sdpa: the SDPA call of them."""

    node: fx.Node
    read: fx.Node
    made: tuple[fx.Node, ...]
    sdpa: fx.Node


@contextlib.contextmanager
def as_sdpa(graph_module: fx.GraphModule) -> Iterator[None]:
    """In the block, calls of known operators in a graph and its child graphs are calls of SDPA.

    Behind it, those that are still there are the operators' again.
    """
    replaced = [
        (module, each)
        for module, node in list(graph_nodes(graph_module))
        if node.op == "call_function" and (each := _replace(module.graph, node)) is not None
    ]
    changed = {id(module): module for module, _ in replaced}.values()
    _tidy(changed)
    try:
        yield
    finally:
        for module, each in replaced:
            _put_back(module.graph, each)
        _tidy(changed)


def unread(graph_module: fx.GraphModule) -> list[str]:
    """Operators of a graph that may be attention but are not supported, described in words, each once.

    Known operators that ask for more than attention, and unknown ones that have attention in their names.
    """
    found: dict[str, None] = {}
    for _, node in graph_nodes(graph_module):
        if node.op != "call_function" or (name := qualified_name(node.target)) is None or _of_ours(name):
            continue
        if attention_operator(node.target) is None:
            if any(each in name.lower() for each in ("attn", "attention")):
                found[f"{name}, which is not known (svg_compile.register_attention_op declares it)"] = None
        else:
            call = read_call(node.target, node.args, node.kwargs)
            if isinstance(call, str):
                found[f"{name} with {call}"] = None
            elif call is not None and sequences(_each(call, example)) is None:
                found[f"{name} over more than two packed sequences (call the model with one sample)"] = None
            elif _readable(node) is None:
                found[f"{name} with more than one result in use"] = None
    return list(found)


def _of_ours(name: str) -> bool:
    return name.startswith("svg::") or "scaled_dot_product_attention" in name


def _readable(node: fx.Node) -> tuple[AttentionCall, fx.Node] | None:
    """A call of attention by another operator, and the node of its result; None of any other node."""
    call = read_call(node.target, node.args, node.kwargs)
    if not isinstance(call, AttentionCall):
        return None
    read = node if call.operator.alone else _first(node)
    if read is None or not isinstance(example(read), Tensor) or not _as_expected(_each(call, example), example(read)):
        return None
    return call, read


def _replace(graph: fx.Graph, node: fx.Node) -> _Replaced | None:
    found = _readable(node)
    if found is None:
        return None
    call, read = found
    emitter, behind = Emitter(graph, read, origin=node), read.next
    uses = list(read.users)
    with graph.inserting_before(behind):
        sdpa = _emit(emitter, node, call, example(read))
    made = [read.next]
    while made[-1].next is not behind:
        made.append(made[-1].next)
    made[-1].meta["example_value"] = example(read)
    for user in uses:
        user.replace_input_with(read, made[-1])
    return _Replaced(node, read, tuple(made), sdpa)


def _first(node: fx.Node) -> fx.Node | None:
    """The node that takes the first of an operator's results, None where another is used."""
    taken = [user for user in node.users if user.target is operator.getitem and user.args[0] is node]
    used = [user for user in taken if user.users]
    if len(taken) != len(node.users) or len(used) != 1 or used[0].args[1] != 0:
        return None
    return used[0]


def _as_expected(call: AttentionCall, out: Tensor) -> bool:
    operands = (call.query, call.key, call.value)
    if not all(isinstance(each, Tensor) for each in operands) or sequences(call) is None:
        return False
    rank = 4 if call.lengths is None else 3
    return all(each.dim() == rank for each in (*operands, out)) and out.dtype is operands[0].dtype


def _emit(emitter: Emitter, node: fx.Node, call: AttentionCall, result: Tensor) -> fx.Node:
    """Append the SDPA call and, last, the result as the operator, called by a node, gives it; returns the first."""
    packed = sequences(_each(call, example))
    call = _each(call, emitter.proxy_of)
    (query, key, value), more = sdpa_arguments(call)
    # SDPA's default, False, where it is not needed: a graph that holds it is of grouped queries.
    grouped = {} if holds(equal, shown(query).shape[1], shown(key).shape[1]) else {"enable_gqa": True}
    # Autocast casts SDPA's operands, and not those of other operators.
    with torch.autocast(shown(query).device.type, enabled=False):
        sdpa = emitter.call(SDPA, query, key, value, **more, **grouped)
    # In the storage order that the operator gives it, on which later views rely.
    order = sorted(range(result.dim()), key=lambda dim: -size_hint(result.stride(dim)))
    out = result_of(call, sdpa)
    if packed == 2 and call.lengths is not None:
        given, named = of_the_second(call, node.target, *fx.node.map_arg((node.args, node.kwargs), emitter.proxy_of))
        rest: Any = emitter.call(node.target, *given, **named)
        first: Any = in_first(call.lengths[0], call.query).unsqueeze(1).unsqueeze(2)
        out = torch.where(first, out, rest if call.operator.alone else rest[0])
    out = out.permute(order).contiguous()
    out.permute([order.index(dim) for dim in range(result.dim())])
    return sdpa.node


def _each(call: AttentionCall, change: Callable[[Any], Any]) -> AttentionCall:
    """A call whose operands, scale, mask and lengths went through a function."""
    names = ("query", "key", "value", "scale", "mask")
    lengths = None if call.lengths is None else tuple(map(change, call.lengths))
    return replace(call, **{name: change(getattr(call, name)) for name in names}, lengths=lengths)


def _put_back(graph: fx.Graph, replaced: _Replaced) -> None:
    """The operator itself where its attention was not rewritten; else nothing reads it any more."""
    unused = [replaced.node, replaced.read]
    if replaced.sdpa.users:
        replaced.made[-1].replace_all_uses_with(replaced.read)
        unused = list(replaced.made)
    for node in dict.fromkeys(reversed(unused)):
        graph.erase_node(node)


def _tidy(modules: Iterable[fx.GraphModule]) -> None:
    for module in modules:
        module.graph.lint()
        module.recompile()
