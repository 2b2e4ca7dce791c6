"""The dispatch mode that sees every ATen operator and keeps the axes of every tensor right, also when it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from svg_compile._compat.operators import definition_of
from svg_compile._compat.pytree import tensors_in
from svg_compile._compat.sizes import size_hint
from svg_compile._compat.storages import storage_of
from svg_compile.passes.attention_operators import AttentionCall, axes_of_result, heads_first, read_call, sdpa_arguments
from svg_compile.passes.axes import selections
from svg_compile.passes.axes.alias_update import Write, kind_of_write, same_place, written_axes
from svg_compile.passes.axes.axis import Axis, atoms_of
from svg_compile.passes.axes.indexed import Indices
from svg_compile.passes.axes.new_axes import free_axis, lost_axis, mixed_in, opaque_axis
from svg_compile.passes.axes.rules.by_node import NodeRule
from svg_compile.passes.axes.rules.call import Call, bound_arguments
from svg_compile.passes.axes.rules.compute import FACTORIES, attended
from svg_compile.passes.axes.rules.lookup import rule_of
from svg_compile.passes.axes.rules.registry import Named, Rule, check_lengths, shown_axes
from svg_compile.passes.axes.selections import Selected
from svg_compile.passes.axes.storages import Storages
from svg_compile.passes.axes.values import KnownValues, hide_keys_alone
from svg_compile.passes.axes.why import Why, analysing


@dataclass(frozen=True)
class AttentionAxes:
    """The axes of one run of one attention, each over dimensions [B, H, N, D]."""

    query: tuple[Axis, ...]
    key: tuple[Axis, ...]
    value: tuple[Axis, ...]
    # Whether the mask, if it is no boolean one, is proven to hide keys and to do nothing else.
    bias_hides: bool = False
    # By input: how many of its frames rise, where the numbers that it holds do not go on rising.
    rises: Mapping[str, int] = field(default_factory=dict)


class AxisTracker(TorchDispatchMode):
    """Stores the axes of every traced tensor, and updates them when a tensor is written."""

    def __init__(self) -> None:
        super().__init__()
        self.visits: dict[fx.Node, list[AttentionAxes]] = {}
        # The node of the graph that is being run.
        self.node: fx.Node | None = None
        self.without_rule: Counter[str] = Counter()
        self.values = KnownValues()
        self.rises: dict[str, int] = {}
        self._axes: Any = WeakIdKeyDictionary()
        self._selected: Any = WeakIdKeyDictionary()
        # Parameters, buffers and constants, by storage: they have no axes of their own until they are written.
        self._weights: dict[int, list[Tensor]] = {}
        self.storages = Storages()
        self.indices = Indices(self.of, self.storages.is_lost)
        # Axes of tensors at their `svg::mark`, by its text (`svg_compile.passes.axes.seen`).
        self.marked: dict[str, list[Any]] = {}

    def of(self, tensor: Tensor) -> list[Axis]:
        if self.storages.is_lost(tensor):
            return [opaque_axis(size, why=self.storages.why_lost(tensor)) for size in tensor.shape]
        if tensor not in self._axes:
            # A weight or a constant: a table, anew at each use.
            return [free_axis(size) for size in tensor.shape]
        axes: list[Axis] = self._axes[tensor]
        return axes

    def name(self, tensor: Tensor, axes: list[Axis]) -> None:
        if len(axes) != tensor.dim():
            raise AssertionError(f"an axis rule gave {len(axes)} axes for a tensor of {tensor.dim()} dimensions")
        self._axes[tensor] = list(axes)

    def weight(self, tensor: Tensor) -> None:
        self._weights.setdefault(storage_of(tensor), []).append(tensor)

    def selected_from(self, tensor: Tensor) -> Selected:
        """The atoms that a tensor was taken at a position of; see `selections`."""
        selected: Selected = self._selected.get(tensor, frozenset())
        return selected

    def select(self, tensor: Tensor, axis: Axis) -> None:
        """`tensor` was taken at one position of an axis."""
        if selected := selections.selectable(axis):
            self._selected[tensor] = self.selected_from(tensor) | selected
            self.name(tensor, [selections.after_selecting(kept, selected) for kept in self.of(tensor)])

    def written(self, target: Tensor, operands: list[Tensor], *, over: bool = False) -> None:
        """`target`, the first of the operands, takes the values of a pointwise operator of all of them.

        over: of the others alone, as a copy does.
        """
        if self.storages.is_lost(target):
            return
        storage = storage_of(target)
        self.storages.invalidate_aliases(storage, storage)
        for weight in self._weights.pop(storage, ()):
            self.name(weight, self.of(weight))
        self.name(target, self.of(target))
        for alias, axes in written_axes(self.of, target, operands, self._sharing(target), over):
            self.name(alias, axes)

    def _sharing(self, target: Tensor) -> list[Tensor]:
        """The tensors that share a tensor's storage, itself among them."""
        storage = storage_of(target)
        return [tensor for tensor in self._axes if storage_of(tensor) == storage]

    def adopt(self, tensor: Tensor, axes: list[Axis], other: AxisTracker, twin: Tensor) -> None:
        """Take over what another tracker knows of a tensor's twin, whose axes are these."""
        self.name(tensor, axes)
        self._selected.pop(tensor, None)
        if selected := other.selected_from(twin):
            self._selected[tensor] = selected
        self.values.set(tensor, other.values.of(twin))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if rule_of(func) is None and (definition := definition_of(func)) is not None:
            with self:
                return definition(*args, **kwargs)
        sliced = self.indices.as_slices(func, partial(bound_arguments, func._schema, args, kwargs))
        out = func(*args, **kwargs)
        with analysing(Why(func, self.node)):
            if sliced is None:
                self._carry(func, args, kwargs, out)
            else:
                with self:
                    twin = sliced()
                if isinstance(out, Tensor) and out is not twin:
                    self.adopt(out, self.of(twin), self, twin)
        self.indices.numbers.carry(func, args, kwargs, out)
        return out

    def _carry(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        schema = func._schema
        bound = bound_arguments(schema, args, kwargs)
        operands = tensors_in(list(bound.values()))
        if schema.is_mutable:
            return self._write(func, bound, out, operands)
        leaves = tensors_in(out)
        if not leaves:
            return
        self.values.carry(func.overloadpacket, bound, leaves)
        rule = rule_of(func)
        if rule is not None:
            self._apply(rule, bound, leaves)
        elif "scaled_dot_product" in schema.name:
            self.attended(bound["query"], bound["key"], bound["value"], leaves[0])
            operands = []
        elif isinstance(call := read_call(func, args, kwargs), AttentionCall):
            self._attended_by(call, leaves[0])
            operands = []
        else:
            self.without_rule[str(func)] += 1
        if func.overloadpacket in FACTORIES:
            # `empty_like` and the like use the shape of an operand, not its data.
            operands = []
        # A result without axes from a rule is not a table: it depends on data.
        unnamed = [leaf for leaf in leaves if leaf not in self._axes]
        self.give_up(unnamed, operands)
        for leaf in unnamed:
            # Of which positions it was made is not known: of one, perhaps.
            for axis in (axis for operand in operands for axis in self.of(operand)):
                self.select(leaf, axis)
        joined = bound["dim"] % leaves[0].dim() if func.overloadpacket is torch.ops.aten.cat else None
        self.carry_selected(operands, leaves, joined)

    def _apply(self, rule: Rule, bound: Mapping[str, Any], results: Sequence[Tensor]) -> None:
        """Name the results of a call as a rule says, after a look at what it says."""
        for out in results:
            answer = rule(Call(bound, results, out, self.of))
            if answer is not None:
                named = answer if isinstance(answer, Named) else Named(answer)
                check_lengths(named.axes, out)
                self.name(out, named.axes)
                for axis in named.selected:
                    self.select(out, axis)

    def rename(self, rule: NodeRule, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
        """Name the result of a node by the node's rule, if it is in a storage of its own."""
        operands = tensors_in([*args, *kwargs.values()])
        storage = storage_of(out)
        if storage in self._weights or any(storage_of(operand) == storage for operand in operands):
            return
        self.storages.restore(out)
        self._selected.pop(out, None)
        self._apply(rule.rule, {**dict(zip(rule.names, args)), **kwargs}, [out])
        self.carry_selected(operands, [out])

    def attended(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """`out` is attention; values of many positions are mixed in it, one that is the only one is spread."""
        self.name(out, attended(self.of, query, key, value, out))
        self.carry_selected([query, value] if size_hint(value.shape[-2]) == 1 else [query], [out])

    def _attended_by(self, call: AttentionCall, out: Tensor) -> None:
        """`out` is the result of another library's attention."""
        with self:
            (query, key, value), _ = sdpa_arguments(call)
        axes = attended(self.of, query, key, value, heads_first(call, out))
        self.name(out, axes_of_result(call, axes))
        self.carry_selected([call.query, call.value] if size_hint(value.shape[-2]) == 1 else [call.query], [out])

    def carry_selected(self, operands: Iterable[Tensor], results: Iterable[Tensor], joined: int | None = None) -> None:
        """The results inherit the operands' selections, wherever the operands are broadcast."""
        for operand in operands:
            if selected := self.selected_from(operand):
                own = self.of(operand)
                for result in results:
                    self._selected[result] = self.selected_from(result) | selected
                    axes = selections.broadcast_selected(self.of(result), result.shape, operand, own, selected, joined)
                    self.name(result, axes)

    def _write(self, func: Any, bound: Mapping[str, Any], out: Any, operands: list[Tensor]) -> None:
        """An operator that writes arguments: into its first one in a known way, or in an unknown one."""
        written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        leaves = [leaf for name in written for leaf in tensors_in(bound.get(name))]
        self._write_values(func.overloadpacket if written == ["self"] else None, bound, leaves)
        self.storages.written.update(map(storage_of, leaves))
        for leaf in leaves:
            self.indices.numbers.forget(leaf)
        how = kind_of_write(func) if written == ["self"] else None
        if how is None:
            self.without_rule[str(func)] += 1
            for leaf in leaves:
                self.storages.invalidate(leaf)
            return self.give_up(tensors_in(out), operands)
        # A constant says nothing of the order of tokens.
        if how is not Write.CONSTANT:
            self.written(bound["self"], operands, over=how is Write.COPY)
        self._write_selected(bound["self"], operands)

    def _write_values(self, packet: Any, bound: Mapping[str, Any], leaves: Iterable[Tensor]) -> None:
        """The values of what an operator writes, and of all that share a storage with it."""
        for leaf in leaves:
            self.values.write(packet, bound, [leaf, *(alias for alias in self._sharing(leaf) if alias is not leaf)])

    def _write_selected(self, target: Tensor, operands: list[Tensor]) -> None:
        """Record that a selection was written into a tensor, and so into all that share its storage."""
        for operand in operands:
            selected = self.selected_from(operand)
            # Written to its own place it stands where it stood.
            if not selected or same_place(operand, target):
                continue
            shape = tuple(target.shape)
            shown = zip(self.of(target), shown_axes(self.of, operand, shape))
            known = selections.own_atoms(operand, self.of(operand), shape)
            known |= {atom for axis, there in shown if there is not None for atom in atoms_of(axis)}
            for alias in self._sharing(target):
                self._selected[alias] = self.selected_from(alias) | selected
                self.name(alias, [mixed_in(axis) for axis in self.of(alias)])
                if any(
                    selections.may_be_selected(atom, selected, known)
                    for axis in self.of(alias)
                    for atom in atoms_of(axis)
                ):
                    return self.storages.invalidate(target)

    def give_up(self, tensors: Iterable[Tensor], operands: Iterable[Tensor] = ()) -> None:
        """Nothing is known of tensors that were made of the operands, by the operator that is being analysed."""
        axes = [axis for operand in operands for axis in self.of(operand)]
        for tensor in tensors:
            self.name(tensor, [lost_axis(size, axes) for size in tensor.shape])

    def record(self, node: fx.Node, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> None:
        """Note the axes of an attention's operands, and whether its mask only hides keys."""
        hides = hide_keys_alone(self.values.of(mask))
        axes = AttentionAxes(tuple(self.of(query)), tuple(self.of(key)), tuple(self.of(value)), hides, self.rises)
        self.visits.setdefault(node, []).append(axes)
