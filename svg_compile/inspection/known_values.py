"""Answer a traced graph without running it: what follows from known values is computed, the rest has a shape only.

mask = ones(2, 5); n = mask.sum()        computed: a constant, and what follows from it
y = x.new_zeros(3)                       computed: only the shape of x matters, which is known
y = linear(x, weight)                    a tensor of y's shape whose values nobody knows
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from svg_compile._compat.fake_values import FEW, MOST_ELEMENTS, LostWrite, ValueMode
from svg_compile._compat.graphs import is_fake, is_higher_order
from svg_compile._compat.operators import writes
from svg_compile._compat.sizes import size_hint
from svg_compile._compat.storages import storage_of

# Their results depend on the shape, dtype and device of their first argument alone.
_BY_SHAPE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_tensor", "size", "dim")


class _Random(Exception):
    """An operator draws random numbers."""


class _NothingRandom(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise _Random
        return func(*args, **(kwargs or {}))


def answer(graph_module: fx.GraphModule, mode: ValueMode) -> Callable[..., Any]:
    """A stand-in for the graph: returns its outputs, fake tensors of `mode` that know their values where they can."""
    nodes = list(graph_module.graph.nodes)
    (output,) = (node for node in nodes if node.op == "output")
    placeholders = [node for node in nodes if node.op == "placeholder"]

    def run(*inputs: Any) -> Any:
        given = dict(zip(placeholders, inputs))
        values = _values(graph_module, nodes, given, mode)

        def result(node: fx.Node) -> Any:
            if node in given:
                return given[node]
            if node in values:
                value = values[node]
                return mode.known(value) if isinstance(value, Tensor) else value
            return _unknown(node.meta["example_value"], mode)

        return fx.map_arg(output.args[0], result)

    return run


def _unknown(example: Any, mode: ValueMode) -> Any:
    if isinstance(example, Tensor):
        shape, strides = map(size_hint, example.shape), map(size_hint, example.stride())
        like = torch.empty_strided(tuple(shape), tuple(strides), device="meta")
        return mode.unknown(like, example.dtype, example.device)
    return size_hint(example) if isinstance(example, torch.SymInt) else example


def _values(
    graph_module: fx.GraphModule, nodes: list[fx.Node], given: dict[fx.Node, Any], mode: ValueMode
) -> dict[fx.Node, Any]:
    """The values of nodes that are known, where any output or any write needs one; those of inputs are not among them.

    Where an unknown value is written into a known one, all that has to do with that one is unknown, and forgotten.
    """
    values = {node: known for node, value in given.items() if (known := _value(value, mode)) is not None}
    # What belongs to somebody else, a weight, is neither written nor computed with: else the model itself would run.
    made = {node for node, value in given.items() if node in values and _made_by_python(value)}
    values.update({node: values[node].clone() for node in made})
    borrowed = {node for node in values if isinstance(given[node], Tensor) and mode.is_borrowed(given[node])}
    own = set(values.keys() - (borrowed - made))
    flags = _known_nodes(nodes, own)
    _check_writes(nodes, given)
    for node in values.keys() - flags:
        if isinstance(given[node], Tensor) and not mode.is_borrowed(given[node]):
            mode.forget(given[node])
    writing = any(map(writes, flags))
    (output,) = (node for node in nodes if node.op == "output")
    if not writing and not any(node in flags and node not in given for node in output.all_input_nodes):
        return {}
    interpreter = fx.Interpreter(graph_module, garbage_collect_values=False)
    interpreter.extra_traceback = False
    interpreter.env = {node: value for node, value in values.items() if node in flags}
    # Random, or computed of what is.
    random: set[fx.Node] = set()
    for node in nodes:
        if node not in flags or node in given:
            continue
        if not any(needed in random for needed in node.all_input_nodes):
            stand_ins = {each: _empty(each) for each in node.all_input_nodes if each not in interpreter.env}
            interpreter.env.update(stand_ins)
            try:
                with torch.no_grad(), _NothingRandom():
                    interpreter.env[node] = interpreter.run_node(node)
            except _Random:
                random.add(node)
            for each in stand_ins:
                del interpreter.env[each]
        else:
            random.add(node)
        if node in random and writes(node):
            _forget_storage(interpreter.env.get(node.all_input_nodes[0]), interpreter.env, random, given, mode)
    return {node: value for node, value in interpreter.env.items() if node not in given}


def _forget_storage(
    written: Any, values: dict[fx.Node, Any], random: set[fx.Node], given: dict[fx.Node, Any], mode: ValueMode
) -> None:
    """Random numbers were to be written into a value: nothing that shares its storage is known any more."""
    if not isinstance(written, Tensor):
        return
    storage = storage_of(written)
    for node, value in list(values.items()):
        if isinstance(value, Tensor) and storage_of(value) == storage:
            random.add(node)
            del values[node]
            if node in given:
                mode.forget(given[node])


def _value(value: Any, mode: ValueMode) -> Any:
    return mode.value(value) if isinstance(value, Tensor) else value


def _made_by_python(value: Any) -> bool:
    """True for a small real tensor, which Python code made from numbers: all others of a trace are fake."""
    return isinstance(value, Tensor) and not is_fake(value) and type(value) is Tensor and value.numel() <= FEW


def _check_writes(nodes: Iterable[fx.Node], given: dict[fx.Node, Any]) -> None:
    """Refuse a graph that writes an input with data: it is not run, so Python code would read what was there before."""
    for node in nodes:
        target = node
        while writes(node) and target not in given and target.args and isinstance(target.args[0], fx.Node):
            target = target.args[0]
        value = given.get(target) if writes(node) else None
        if isinstance(value, Tensor) and not is_fake(value) and not isinstance(value, torch.nn.Parameter):
            raise LostWrite(f"{_name(node)} writes a tensor that has data")


def _known_nodes(nodes: Iterable[fx.Node], inputs: set[fx.Node]) -> set[fx.Node]:
    """The nodes whose values follow from known inputs and constants, and are small."""
    known = set(inputs)
    spoilt: list[fx.Node] = []
    for node in nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "get_attr":
            value = node.meta.get("example_value")
            if isinstance(value, Tensor) and _small(value) and not isinstance(value, torch.nn.Parameter):
                known.add(node)
            continue
        by_shape = _name(node) in _BY_SHAPE and all(each in known for each in node.all_input_nodes[1:])
        nested = is_higher_order(node.target) or node.op == "call_module"
        if nested or not (by_shape or all(each in known for each in node.all_input_nodes)):
            written = node.all_input_nodes if nested else node.all_input_nodes[:1] if writes(node) else []
            spoilt += [each for each in written if each in known]
        elif _small(node.meta.get("example_value")):
            known.add(node)
    while spoilt:
        node = spoilt.pop()
        if node in known:
            known.discard(node)
            spoilt += [each for each in (*node.all_input_nodes, *node.users) if each in known]
    return known


def _small(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_small, value))
    return not isinstance(value, Tensor) or size_hint(value.numel()) <= MOST_ELEMENTS


def _empty(node: fx.Node) -> Any:
    example = node.meta["example_value"]
    shape = tuple(map(size_hint, example.shape))
    return torch.empty(1, dtype=example.dtype, device=example.device).expand(shape)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
