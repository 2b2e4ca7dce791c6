"""The dispatch mode that sees every ATen operator and keeps the axes of every tensor right, also when it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from svg_compile._compat.operators import definition_of
from svg_compile._compat.sizes import size_hint
from svg_compile._compat.storages import storage_of
from svg_compile.passes.axes.alias_update import same_place, written_axes
from svg_compile.passes.axes.axis import Axis, atoms_of, is_opaque, length
from svg_compile.passes.axes.new_axes import free_axis, mixed_in, opaque_axis
from svg_compile.passes.axes.rules import compute, moves, views  # noqa: F401  (they fill RULES)
from svg_compile.passes.axes.rules.by_node import NodeRule
from svg_compile.passes.axes.rules.compute import FACTORIES, attended, in_place, pointwise
from svg_compile.passes.axes.rules.registry import RULES, Rule, shown_axes
from svg_compile.passes.axes.rules.rowwise import is_rowwise, rowwise
from svg_compile.passes.axes.selections import Pins, beside, comes_back, own_atoms, pins_of, spread
from svg_compile.passes.axes.storages import Storages
from svg_compile.passes.axes.values import KnownValues, hide_keys_alone
from svg_compile.passes.axes.why import Why, analysing, under_analysis

# Pointwise operators that torch does not tag as such in their in-place form.
_IN_PLACE = ("add_", "sub_", "mul_", "div_", "clamp_", "masked_fill_", "addcmul_", "pow_", "exp_", "neg_", "sigmoid_")


@dataclass(frozen=True)
class AttentionAxes:
    """The axes of one visit to one attention, each over dimensions [B, H, N, D]."""

    query: tuple[Axis, ...]
    key: tuple[Axis, ...]
    value: tuple[Axis, ...]
    # Whether the mask, if it is no boolean one, is proven to hide keys and to do nothing else.
    bias_hides: bool = False
    # By input: how many of its frames rise, where the numbers that it holds do not go on rising.
    rises: Mapping[str, int] = field(default_factory=dict)


class AxisTracker(TorchDispatchMode):
    """Knows the axes of every tensor seen, and keeps them right when a tensor is written."""

    def __init__(self) -> None:
        super().__init__()
        self.visits: dict[fx.Node, list[AttentionAxes]] = {}
        # The node of the graph that is being run.
        self.node: fx.Node | None = None
        self.without_rule: Counter[str] = Counter()
        self.values = KnownValues()
        self.rises: dict[str, int] = {}
        self._axes: Any = WeakIdKeyDictionary()
        self._pins: Any = WeakIdKeyDictionary()
        # Parameters, buffers and constants, by storage: they have no axes of their own until they are written.
        self._weights: dict[int, list[Tensor]] = {}
        self.storages = Storages()
        # What was known of tensors when they were marked (`svg_compile.passes.axes.seen`), by the text of the mark.
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

    def pins_of(self, tensor: Tensor) -> Pins:
        """The axes that a tensor was taken at a position of; see `pins`."""
        pins: Pins = self._pins.get(tensor, frozenset())
        return pins

    def pin(self, tensor: Tensor, axis: Axis) -> None:
        """`tensor` was taken at one position of an axis."""
        if pins := pins_of(axis):
            self._pins[tensor] = self.pins_of(tensor) | pins
            self.name(tensor, [beside(kept, pins) for kept in self.of(tensor)])

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
        for alias, axes in written_axes(self, target, operands, self._sharing(target), over):
            self.name(alias, axes)

    def _sharing(self, target: Tensor) -> list[Tensor]:
        """The tensors that share a tensor's storage, itself among them."""
        storage = storage_of(target)
        return [tensor for tensor in self._axes if storage_of(tensor) == storage]

    def adopt(self, tensor: Tensor, axes: list[Axis], other: AxisTracker, twin: Tensor) -> None:
        """Take over what another tracker knows of a tensor's twin, whose axes are these."""
        self.name(tensor, axes)
        self._pins.pop(tensor, None)
        if pins := other.pins_of(twin):
            self._pins[tensor] = pins
        self.values.set(tensor, other.values.of(twin))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _rule_of(func) is None and (definition := definition_of(func)) is not None:
            with self:
                return definition(*args, **kwargs)
        out = func(*args, **kwargs)
        with analysing(Why(func, self.node)):
            self._carry(func, args, kwargs, out)
        return out

    def _carry(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        schema = func._schema
        bound = {argument.name: value for argument, value in zip(schema.arguments, args)}
        bound.update(kwargs)
        rule = _rule_of(func)
        operands = leaves_of(list(bound.values()))
        if schema.is_mutable:
            self._write_values(func, bound)
            return self._write(func, bound, rule, out, operands)
        leaves = leaves_of(out)
        if not leaves:
            return
        self.values.carry(func.overloadpacket, bound, leaves)
        if rule is not None:
            rule(self, bound, out)
        elif "scaled_dot_product" in schema.name:
            self.attended(bound["query"], bound["key"], bound["value"], leaves[0])
            operands = []
        else:
            self.without_rule[str(func)] += 1
        if func.overloadpacket in FACTORIES:
            # What is made in the shape of a tensor holds none of its data.
            operands = []
        # What a rule says nothing of is no table: it was made of data.
        unnamed = [leaf for leaf in leaves if leaf not in self._axes]
        self.give_up(unnamed, operands)
        for leaf in unnamed:
            # Of which positions it was made is not known: of one, perhaps.
            for axis in (axis for operand in operands for axis in self.of(operand)):
                self.pin(leaf, axis)
        joined = bound.get("dim", 0) % leaves[0].dim() if func.overloadpacket is torch.ops.aten.cat else None
        self.spread(operands, leaves, joined)

    def rename(self, rule: NodeRule, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor) -> None:
        """Name the result of a node by the node's rule, if it is in a storage of its own."""
        operands = leaves_of([*args, *kwargs.values()])
        storage = storage_of(out)
        if storage in self._weights or any(storage_of(operand) == storage for operand in operands):
            return
        self.storages.restore(out)
        self._pins.pop(out, None)
        rule(self, args, kwargs, out)
        self.spread(operands, [out])

    def attended(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """`out` is attention; values of many positions are mixed in it, one that is the only one is spread."""
        attended(self, query, key, value, out)
        self.spread([query, value] if size_hint(value.shape[-2]) == 1 else [query], [out])

    def spread(self, operands: Iterable[Tensor], results: Iterable[Tensor], joined: int | None = None) -> None:
        """What was taken at one position stands in the results of all that is computed of it."""
        for operand in operands:
            if pins := self.pins_of(operand):
                for result in results:
                    self._pins[result] = self.pins_of(result) | pins
                    shape = tuple(result.shape)
                    self.name(result, spread(self.of(result), shape, operand, self.of(operand), pins, joined))

    def _write(self, func: Any, bound: Mapping[str, Any], rule: Any, out: Any, operands: list[Tensor]) -> None:
        """An operator that writes arguments: pointwise into its first one, by its rule, or in an unknown way."""
        schema = func._schema
        written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        self.storages.written.update(storage_of(leaf) for name in written for leaf in leaves_of(bound.get(name)))
        if rule is None and written == ["self"] and schema.name.endswith("_"):
            if torch.Tag.pointwise in func.tags or schema.name.removeprefix("aten::") in _IN_PLACE:
                rule = in_place
        if rule is not None and written == ["self"] and schema.name.endswith("_"):
            rule(self, bound, out)
            return self._write_pins(bound["self"], operands)
        self.without_rule[str(func)] += 1
        for leaf in [leaf for name in written for leaf in leaves_of(bound.get(name))]:
            self.storages.invalidate(leaf)
        self.give_up(leaves_of(out), operands)

    def _write_values(self, func: Any, bound: Mapping[str, Any]) -> None:
        """The values of what an operator writes, and of all that share a storage with it."""
        written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        for leaf in (leaf for name in written for leaf in leaves_of(bound.get(name))):
            packet = func.overloadpacket if written == ["self"] else None
            self.values.write(packet, bound, [leaf, *(alias for alias in self._sharing(leaf) if alias is not leaf)])

    def _write_pins(self, target: Tensor, operands: list[Tensor]) -> None:
        """What was taken at one position was written into a tensor, and so into all that share its storage."""
        for operand in operands:
            pins = self.pins_of(operand)
            # Written to its own place it stands where it stood.
            if not pins or same_place(operand, target):
                continue
            shape = tuple(target.shape)
            shown = zip(self.of(target), shown_axes(self, operand, shape))
            known = own_atoms(operand, self.of(operand), shape)
            known |= {atom for axis, there in shown if there is not None for atom in atoms_of(axis)}
            for alias in self._sharing(target):
                self._pins[alias] = self.pins_of(alias) | pins
                self.name(alias, [mixed_in(axis) for axis in self.of(alias)])
                if any(comes_back(atom, pins, known) for axis in self.of(alias) for atom in atoms_of(axis)):
                    return self.storages.invalidate(target)

    def give_up(self, tensors: Iterable[Tensor], operands: Iterable[Tensor] = ()) -> None:
        """Nothing is known of tensors that were made of the operands, by the operator that is being analysed."""
        axes = [axis for operand in operands for axis in self.of(operand)]
        for tensor in tensors:
            self.name(tensor, [_lost(size, axes) for size in tensor.shape])

    def record(self, node: fx.Node, query: Tensor, key: Tensor, value: Tensor, mask: Any = None) -> None:
        """Note the axes of an attention's operands, and whether its mask only hides keys."""
        hides = hide_keys_alone(self.values.of(mask))
        axes = AttentionAxes(tuple(self.of(query)), tuple(self.of(key)), tuple(self.of(value)), hides, self.rises)
        self.visits.setdefault(node, []).append(axes)


def _rule_of(func: Any) -> Rule | None:
    """The rule of an operator: its own, or that of its kind."""
    rule = RULES.get(func.overloadpacket)
    if rule is None and not func._schema.is_mutable:
        if torch.Tag.pointwise in func.tags:
            return pointwise
        if is_rowwise(func._schema.name):
            return rowwise
    return rule


def _lost(size: Any, operands: Sequence[Axis]) -> Axis:
    """An axis of a result whose positions may come from any axis of the operands."""
    alike = [axis for axis in operands if size_hint(length(axis)) == size_hint(size) and is_opaque(axis)]
    atoms = (atom for axis in alike for atom in atoms_of(axis))
    earlier = next((atom.why for atom in atoms if atom.why is not None), under_analysis())
    return opaque_axis(size, *operands, why=earlier)


def leaves_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in leaves_of(item)]
    return []
