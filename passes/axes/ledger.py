"""Axes across graph breaks: what a traced model's tensors are made of while they are in no graph.

A trace (`svg_compile.inspection.tracing`) runs the model's Python code on fake tensors and answers each graph. The
ledger is the tracker of those tensors, and records the operators that plain Python code calls on them. A graph's own
tracker takes from it what its inputs are, and gives back what became of them and what its results are:

    graph 1    q = to_q(patches)                [B, 5*7*3, C], into the ledger with the tensor that Python gets
    Python     q = rotate(q, table)             the operators between the graphs are heard: still 5*7*3
    graph 2    attention(q, k, v)               its inputs are looked up by their identity

A tensor's name holds for the tensor itself and the version that its values had. Results that share a storage in their
graph do not as the trace answers it, so a write to one of them takes the names of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.utils.weak import WeakIdKeyDictionary

from svg_compile._compat.dynamo import is_parameter_or_buffer, is_plain_state, made_between_graphs
from svg_compile._compat.graphs import is_fake, version_of
from svg_compile._compat.operators import writes_operands
from svg_compile._compat.pytree import tensors_in, tree_leaves
from svg_compile._compat.sizes import size_hint
from svg_compile._compat.storages import storage_of
from svg_compile.passes.axes.axis import Axis, Concat, Kind, Origin, Part
from svg_compile.passes.axes.new_axes import axis_of
from svg_compile.passes.axes.tracker import AxisTracker
from svg_compile.passes.axes.why import Why, analysing


@dataclass(frozen=True)
class InputFacts:
    """Facts about a graph's inputs that Dynamo has only while it compiles the graph.

    tables: parameters, buffers and other state of the model. unseen: what was computed between graphs.
    """

    tables: frozenset[fx.Node]
    unseen: frozenset[fx.Node]


def input_facts(graph_module: fx.GraphModule) -> InputFacts:
    """The facts of a graph that is being compiled."""
    placeholders = list(graph_module.graph.find_nodes(op="placeholder"))
    tensors = [node for node in placeholders if isinstance(node.meta.get("example_value"), Tensor)]
    unseen = frozenset(made_between_graphs(placeholders))
    tables = frozenset(node for node in tensors if _is_table(node, node not in unseen))
    return InputFacts(tables, unseen)


def _is_table(node: fx.Node, given: bool) -> bool:
    # State of the model is a table wherever it is kept; of rank 5 it may be latents that a caller put there.
    return is_parameter_or_buffer(node) or (
        given and node.meta["example_value"].dim() < 5 and bool(is_plain_state(node))
    )


def name_input(tracker: AxisTracker, value: Tensor, source: str, given: bool) -> None:
    """Name the dimensions of an input. given: it is an argument of the model."""
    rank = value.dim()
    if given and rank == 2 and not (value.dtype.is_floating_point or value.dtype.is_complex):
        # [B, N] of whole numbers is taken for a mask where a bias is computed from it.
        tracker.values.set(value, frozenset({0.0, 1.0}))
    origins = [Origin(source, (dim,), rank, given) for dim in range(rank)]
    tracker.name(value, [axis_of(size, Kind.NAMED, origin) for size, origin in zip(value.shape, origins)])


class Ledger(AxisTracker):
    """The tracker of a trace's tensors outside of its graphs.

    given: the model's arguments. state: its parameters, buffers and other tensors.
    numbers_are_data: whether Python code has read so many values that a tensor which it made may hold a video's.
    """

    def __init__(
        self, given: Iterable[Tensor], state: Iterable[Tensor], numbers_are_data: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__()
        self._numbers_are_data = numbers_are_data
        self._state = {id(tensor): tensor for tensor in state}
        self._versions: Any = WeakIdKeyDictionary()
        self._named = 0
        for tensor in self._state.values():
            self.weight(tensor)
        for tensor in given:
            if id(tensor) not in self._state:
                self.enter(tensor, "given", True)

    def enter(self, tensor: Tensor, source: str, given: bool) -> None:
        """Name a tensor that is met for the first time; each is a source of its own."""
        self._named += 1
        name_input(self, tensor, f"{source} {self._named}", given)

    def knows(self, tensor: Tensor) -> bool:
        """True if the tensor's axes are recorded, including axes that lost their name."""
        return tensor in self._axes or self.storages.is_lost(tensor)

    def is_table(self, tensor: Tensor) -> bool:
        """True if a tensor without recorded axes does not depend on an input's data."""
        if isinstance(tensor, nn.Parameter) or (id(tensor) in self._state and tensor.dim() < 5):
            return True
        # A real tensor was made by Python code from numbers; operators of a trace return fake tensors.
        return not is_fake(tensor) and tensor.dim() < 5 and not self._numbers_are_data()

    def of(self, tensor: Tensor) -> list[Axis]:
        self._check_version(tensor)
        if not self.knows(tensor):
            if self.is_table(tensor):
                self.table(tensor)
            else:
                self.enter(tensor, "between", False)
        return super().of(tensor)

    def name(self, tensor: Tensor, axes: list[Axis]) -> None:
        super().name(tensor, axes)
        # Torch gives a result of an operator its version, and counts a write, after both were heard: it is noted later.
        self._versions.pop(tensor, None)

    def hear(self, operator: Any, args: Any, kwargs: Mapping[str, Any], out: Any, place: str) -> None:
        """Python code at `place` has called an ATen operator outside of any graph."""
        with analysing(Why(operator, None, place)):
            self._carry(operator, args, kwargs, out)
        for tensor in tensors_in((args, kwargs)) if writes_operands(operator) else ():
            for alias in self._sharing(tensor):
                self._versions.pop(alias, None)

    def table(self, tensor: Tensor) -> None:
        """Note a table: if it is written it is one no more."""
        if not any(tensor is each for each in self._weights.get(storage_of(tensor), ())):
            self.weight(tensor)

    def take_back(self, tensor: Tensor, axes: list[Axis], tracker: AxisTracker, twin: Tensor) -> None:
        """A graph has written one of its inputs, whose twin in the graph now has these axes."""
        storage = storage_of(tensor)
        alone = [*self._sharing(tensor), *self._weights.pop(storage, ())]
        if any(alias is not tensor for alias in alone) or twin.shape != tensor.shape:
            return self.storages.invalidate(tensor)
        self.storages.invalidate_aliases(storage, storage)
        self.adopt(tensor, axes, tracker, twin)

    def _check_version(self, tensor: Tensor) -> None:
        """Give up a tensor that was written, and nothing was heard of it."""
        if tensor not in self._versions:
            self._versions[tensor] = version_of(tensor)
        elif self._versions[tensor] != version_of(tensor):
            self.storages.invalidate(tensor)


class GraphCall:
    """One call of a graph of a traced model: what enters it from the ledger, and what leaves it.

    first: it is the call that the graph was compiled for, whose inputs `facts` speak of. layers_before: how many
    attentions with a grid ran before it.
    """

    def __init__(
        self, ledger: Ledger, facts: InputFacts, inputs: Mapping[fx.Node, Any], *, first: bool, layers_before: int = 0
    ) -> None:
        self.ledger = ledger
        self.layers_before = layers_before
        self.facts = facts
        self.first = first
        self.inputs = {node: value for node, value in inputs.items() if isinstance(value, Tensor)}
        # The last run of the graph: its tracker, its inputs and its results.
        self._run: tuple[AxisTracker, Mapping[fx.Node, Tensor], Any] | None = None

    def is_argument(self, node: fx.Node) -> bool:
        """True if an input is an argument of the model: no state of it, and not computed between graphs."""
        return node not in self.facts.tables and node not in self.facts.unseen

    def begin(self, tracker: AxisTracker, values: Mapping[fx.Node, Any]) -> None:
        """Tell a graph's tracker what its inputs are."""
        tracker.rises = self.ledger.rises
        twins = {node: values[node] for node in self.inputs}
        named = []
        for node, twin in twins.items():
            tensor = self.inputs[node]
            facts = self.facts
            given = self.first and node not in facts.unseen and node not in facts.tables
            if given and not self.ledger.knows(tensor):
                self.ledger.enter(tensor, node.name, True)
            if not self.ledger.knows(tensor) and (node in self.facts.tables or self.ledger.is_table(tensor)):
                self.ledger.table(tensor)
                tracker.weight(twin)
                continue
            tracker.adopt(twin, self.ledger.of(tensor), self.ledger, tensor)
            named.append(node)
        for group in self.ledger.storages.groups([self.inputs[node] for node in named]):
            for place in group:
                others = [twins[named[other]] for other in group if other != place]
                tracker.storages.may_alias(twins[named[place]], others)

    def end(self, tracker: AxisTracker, values: Mapping[fx.Node, Any], results: Any) -> None:
        """Note what a run of the graph on fake tensors came to; `leave` tells it to the ledger."""
        self._run = tracker, {node: values[node] for node in self.inputs}, results
        for text, each in tracker.marked.items():
            self.ledger.marked.setdefault(text, []).extend(each)

    def leave(self, outputs: Any) -> None:
        """The call has returned these outputs to Python code. Of those that are not noted here nothing is known."""
        inputs = {id(tensor) for tensor in self.inputs.values()}
        new = [tensor for tensor in tensors_in(outputs) if id(tensor) not in inputs]
        if self._run is not None:
            self._tell(*self._run, outputs)
        for tensor in new:
            if not self.ledger.knows(tensor):
                self.ledger.enter(tensor, "between", False)

    def _tell(self, tracker: AxisTracker, twins: Mapping[fx.Node, Tensor], results: Any, outputs: Any) -> None:
        given = {id(tensor) for tensor in self.inputs.values()}
        pairs = [(self.inputs[node], twin) for node, twin in twins.items()]
        for tensor, twin in pairs:
            if storage_of(twin) in tracker.storages.written:
                self.ledger.take_back(tensor, _settled(tracker.of(twin)), tracker, twin)
        found, shown = tree_leaves(results), tree_leaves(outputs)
        for twin, tensor in zip(found, shown) if len(found) == len(shown) else ():
            if isinstance(twin, Tensor) and isinstance(tensor, Tensor) and id(tensor) not in given:
                pairs.append((tensor, twin))
                self.ledger.adopt(tensor, _settled(tracker.of(twin)), tracker, twin)
        for group in tracker.storages.groups([twin for _, twin in pairs]):
            tensors = [pairs[place][0] for place in group]
            for tensor in tensors:
                others = [other for other in tensors if storage_of(other) != storage_of(tensor)]
                if others:
                    self.ledger.storages.may_alias(tensor, others)


def _settled(axes: list[Axis]) -> list[Axis]:
    """Axes with numbers for sizes: symbols are of one graph."""
    seen: set[int] = set()
    for axis in axes:
        for part in axis:
            _settle(part, seen)
    return axes


def _settle(part: Part, seen: set[int]) -> None:
    if id(part) in seen:
        return
    seen.add(id(part))
    part.size = size_hint(part.size)
    if isinstance(part, Concat):
        near = [each for segment in part.segments for each in segment]
    else:
        near = [*(part.parts or ()), part.root, *([] if part.parent is None else [part.parent])]
    for each in near:
        _settle(each, seen)
