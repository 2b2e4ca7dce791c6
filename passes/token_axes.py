"""Axis inference: what each axis of every attention's query, key and value is made of.

The graph is run once on fake tensors, under a dispatch mode that sees the ATen operators below the graph's nodes and
carries axes through them by `axis_rules`. No model names and no guessing from shapes: an input's dimensions are
named, convolutions derive from them, views split and join them, and what a table is aligned with names the table.

    before   query [2, 24, 119056, 128]                       four numbers
    after    query axis 2 = [33*45*80 | 256]                  a video of 33x45x80 tokens, then 256 of text
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from svg_compile.passes.axes import (
    Atom,
    Axis,
    Concat,
    Origin,
    expand,
    free_axis,
    is_one,
    is_opaque,
    is_table,
    opaque_axis,
    same_axis,
)
from svg_compile.passes.axis_rules import RULES, in_place, pointwise
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from svg_compile._compat import SDPA_TARGETS, is_parameter_or_buffer, to_fake

log = logging.getLogger(__name__)
aten = torch.ops.aten

_VIEWS = (aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.chunk, aten.unbind, aten.narrow)
_IN_PLACE = ("add_", "sub_", "mul_", "div_", "clamp_", "masked_fill_", "addcmul_", "pow_", "exp_", "neg_", "sigmoid_")


@dataclass(frozen=True)
class AttentionAxes:
    """The axes of one visit to one attention, each a list over dimensions [B, H, N, D]; None where not a tensor."""

    query: tuple[Axis, ...]
    key: tuple[Axis, ...]
    value: tuple[Axis, ...]


@dataclass(frozen=True)
class TokenAxes:
    """Result of the analysis: per SDPA node one entry a visit (a shared child graph is visited more than once)."""

    visits: Mapping[fx.Node, tuple[AttentionAxes, ...]]
    without_rule: Mapping[str, int]


def infer_token_axes(graph_module: fx.GraphModule, fake_mode: Any) -> TokenAxes:
    """Run `graph_module` on its example inputs' fake tensors and read off the axes; changes nothing of it."""
    tracker = _Tracker()
    grad_enabled = torch.is_grad_enabled()
    try:
        with torch.no_grad(), fake_mode, tracker:
            inputs = [_example(node, tracker) for node in graph_module.graph.nodes if node.op == "placeholder"]
            _Run(graph_module, tracker, fake_mode).run(*inputs)
    finally:
        # The graph may hold _set_grad_enabled calls of its own.
        torch.set_grad_enabled(grad_enabled)
    if tracker.without_rule:
        log.debug("operators without an axis rule: %s", dict(tracker.without_rule))
    return TokenAxes({node: tuple(seen) for node, seen in tracker.visits.items()}, dict(tracker.without_rule))


def _example(node: fx.Node, tracker: _Tracker) -> Any:
    value = node.meta["example_value"]
    if isinstance(value, Tensor) and not is_parameter_or_buffer(node):
        rank = value.dim()
        axes = [
            () if is_one(size) else (Atom(size, Origin(node.name, dim, rank)),) for dim, size in enumerate(value.shape)
        ]
        tracker.name(value, axes)
    return value


class _Tracker(TorchDispatchMode):
    """Knows the axes of every tensor seen, and which tensor is a partial view of which."""

    def __init__(self) -> None:
        super().__init__()
        self.visits: dict[fx.Node, list[AttentionAxes]] = {}
        self.without_rule: Counter[str] = Counter()
        self._axes: Any = WeakIdKeyDictionary()
        # A view cut out of a longer axis: (the tensor it is cut from, the dimension cut).
        self._cut_from: Any = WeakIdKeyDictionary()
        # Storages whose content no longer follows any tensor's axes; kept alive, for their identity is the key.
        self._spoiled: dict[int, Any] = {}

    def of(self, tensor: Tensor) -> list[Axis]:
        if self._spoiled and tensor.untyped_storage()._cdata in self._spoiled:
            return [opaque_axis(size) for size in tensor.shape]
        if tensor not in self._axes:
            # A weight or a constant: free anew at each use, so that a table shared by two streams never joins them.
            return [free_axis(size) for size in tensor.shape]
        axes: list[Axis] = self._axes[tensor]
        return axes

    def name(self, tensor: Tensor, axes: list[Axis]) -> None:
        if len(axes) != tensor.dim():
            raise AssertionError(f"an axis rule gave {len(axes)} axes for a tensor of {tensor.dim()} dimensions")
        self._axes[tensor] = list(axes)

    def written(self, target: Tensor, axes: list[Axis]) -> None:
        """`target` was written by a tensor aligned with it; `axes` is what the two have in common."""
        for before, after in zip(self.of(target), axes):
            if is_opaque(after) and not same_axis(before, after) and not _forget(before):
                return self.spoil(target)
        # A write into part of a longer axis leaves that axis what it was only if the part is a whole segment of it.
        while target in self._cut_from:
            target, dim, whole = self._cut_from[target]
            if not whole and not _forget(self.of(target)[dim]):
                return self.spoil(target)

    def spoil(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._spoiled[storage._cdata] = storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._carry(func, args, kwargs, out)
        return out

    def _carry(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        schema = func._schema
        bound = {argument.name: value for argument, value in zip(schema.arguments, args)}
        bound.update(kwargs)
        rule = RULES.get(func.overloadpacket)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = in_place if schema.is_mutable else pointwise
        elif rule is None and schema.name.removeprefix("aten::") in _IN_PLACE:
            rule = in_place
        if rule is not None and (not schema.is_mutable or rule is in_place or schema.name.endswith("_")):
            if schema.is_mutable or any(isinstance(leaf, Tensor) for leaf in _leaves(out)):
                rule(self, bound, out)
        elif "scaled_dot_product" in schema.name:
            query, value = self.of(bound["query"]), self.of(bound["value"])
            leaves = _leaves(out)
            self._give_up(leaves[1:])
            self.name(leaves[0], [*query[:3], value[3]])
        elif schema.is_mutable or _leaves(out):
            self.without_rule[str(func)] += 1
            if schema.is_mutable:
                for argument, value in bound.items():
                    if any(a.name == argument and a.alias_info and a.alias_info.is_write for a in schema.arguments):
                        for leaf in _leaves(value):
                            self.spoil(leaf)
            self._give_up(_leaves(out))
        if func.overloadpacket in _VIEWS:
            self._note_cut(func, bound, out)

    def _give_up(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self.name(tensor, [opaque_axis(size) for size in tensor.shape])

    def _note_cut(self, func: Any, bound: Mapping[str, Any], out: Any) -> None:
        source, dim = bound["self"], bound.get("dim", 0) % bound["self"].dim()
        long = expand(self.of(source)[dim])
        for piece in _leaves(out):
            if piece.dim() == source.dim():
                short = expand(self.of(piece)[dim])
                whole = long == short or (
                    len(long) == 1 and isinstance(long[0], Concat) and not is_opaque(short) and not is_table(short)
                )
            else:
                whole = False
            self._cut_from[piece] = (source, dim, whole)

    def record(self, node: fx.Node, query: Tensor, key: Tensor, value: Tensor) -> None:
        axes = AttentionAxes(tuple(self.of(query)), tuple(self.of(key)), tuple(self.of(value)))
        self.visits.setdefault(node, []).append(axes)


def _forget(axis: Axis) -> bool:
    """Make an axis opaque that comes from no input (channels, an empty buffer); False for one that may name tokens."""
    parts = expand(axis)
    if not all(isinstance(part, Atom) and part.origin is None for part in parts):
        return False
    for part in parts:
        if isinstance(part, Atom):
            part.opaque = True
    return True


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return []


class _Run(fx.Interpreter):
    """Runs a graph and its child graphs, reporting the operands of every SDPA to the tracker."""

    def __init__(self, module: fx.GraphModule, tracker: _Tracker, fake_mode: Any) -> None:
        super().__init__(module, garbage_collect_values=True)
        # Inductor's provenance hooks have no business in an analysis run.
        self.extra_traceback = False
        self.tracker = tracker
        self.fake_mode = fake_mode
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return to_fake(self.fake_mode, value) if isinstance(value, Tensor) else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in SDPA_TARGETS:
            operands = [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(("query", "key", "value"))]
            assert self.node is not None
            self.tracker.record(self.node, *operands)
            out = super().call_function(target, args, kwargs)
            # Whatever the operator was broken into, a row of the result is a row of the query.
            query, value = self.tracker.of(operands[0]), self.tracker.of(operands[2])
            self.tracker.name(out, [*query[:-1], value[-1]])
            return out
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._higher_order(target, args, kwargs)
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        child = self.fetch_attr(target)
        if isinstance(child, fx.GraphModule):
            return _Run(child, self.tracker, self.fake_mode).run(*args)
        return super().call_module(target, args, kwargs)

    def _higher_order(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A child graph that is called once, with the operands that follow it, is run; of others nothing is known."""
        if str(target) in ("invoke_subgraph", "wrap") and isinstance(args[0], fx.GraphModule):
            operands = args[2:] if str(target) == "invoke_subgraph" else args[1:]
            return _Run(args[0], self.tracker, self.fake_mode).run(*operands)
        assert self.node is not None
        return torch.utils._pytree.tree_map_only(Tensor, self._unknown, self.node.meta["example_value"])

    def _unknown(self, example: Tensor) -> Tensor:
        value = torch.empty_strided(example.shape, example.stride(), dtype=example.dtype, device=example.device)
        self.tracker.name(value, [opaque_axis(size) for size in value.shape])
        return value


def show(axis: Axis) -> str:
    """An axis in print: `5*6*4`, `[11 | 5*6*4]`, `?120` where nothing is proven of it."""
    out = []
    for part in expand(axis):
        if isinstance(part, Concat):
            out.append("[" + " | ".join(show(segment) for segment in part.segments) + "]")
        else:
            out.append(f"?{part.size}" if part.opaque else str(part.size))
    return "*".join(out) or "1"
