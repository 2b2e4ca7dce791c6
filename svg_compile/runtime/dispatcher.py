"""Which denoising step a forward belongs to, and which of the two compiled graphs runs it.

The first steps of a run are left dense (`dense_steps`). A `Dispatcher` stands in place of the compiled graph and asks,
once a forward, in this order: a schedule that was registered for its model (`svg_compile.attach`,
`svg_compile.denoising`), else the timestep that the forward itself is given.

What is remembered between forwards belongs to a model, never to a graph: a recompile in the middle of a run goes on
counting, and two models that share one compiled graph (Dynamo shares it where their guards agree) do not meet. A graph
does not know which model it runs for, but it takes the parameters as inputs: the identity of one of them is the key.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, fx
from torch.nn import Parameter
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

from svg_compile._compat.dynamo import is_parameter_or_buffer
from svg_compile.config import SvgConfig
from svg_compile.regional.whole_model import note_run, region_of
from svg_compile.runtime.sparse_variant import KeptPlans, SparseGraph
from svg_compile.runtime.timestep import Timestep

log = logging.getLogger(__name__)
_UNKNOWN = (
    "svg: this graph is given no timestep and no schedule is attached, so every step runs sparse, the first ones too "
    "(at the first density), which costs quality. Call svg_compile.attach(pipe) once, run the loop in "
    "`with svg_compile.denoising(model, steps=...)`, or set options={'dense_steps': 0} if this is meant."
)
_RISING = (
    "svg: the timesteps of this model rise from forward to forward, and each rise is taken for the start of a new run: "
    "all steps stay dense. Call svg_compile.attach(pipe), or run the loop in `with svg_compile.denoising(model, "
    "steps=...)`."
)


@dataclass(frozen=True)
class Position:
    """A step of a run: `step`, from 0, of `total`; `run` is another for each run of one source."""

    step: int
    total: int
    run: int = 0


@dataclass(frozen=True)
class Decision:
    """What became of one forward. `position` is None where no step was known; `source` names who told it."""

    position: Position | None
    dense: bool
    source: str


# No step is dense and all sparse steps are alike: nothing is read and nothing counted.
_NOT_ASKED = Decision(None, False, "not asked")


@dataclass(frozen=True)
class Forward:
    """One forward of a compiled graph. parameter: what stands for its model, None where parameters are no inputs.

    layers: the module paths of the graph's sparse attentions; plans and errors: what each was profiled to, int32 and
    float32 [B, H, 2], where the forward was sparse. On a GPU they are good until the next forward. grids: of each
    attention the (frames, height, width, text_len, text_first, block), None for a size that is symbolic.
    """

    decision: Decision
    parameter: Tensor | None
    layers: tuple[str, ...]
    plans: tuple[Tensor, ...] = ()
    errors: tuple[Tensor, ...] = ()
    grids: tuple[tuple[int | None, ...], ...] = ()


class Schedule(Protocol):
    """What knows the steps of some models from outside of their graphs."""

    name: str

    def parameters(self) -> Iterable[Tensor]:
        """The parameters of the models that this schedule drives, as they are now."""

    def position(self, timestep: Callable[[], float | None]) -> Position | None:
        """The step of the forward at hand, None where no run is under way; `timestep()` reads the forward's own."""


class StepCounter:
    """Steps told from timesteps alone: an equal one is the same step (CFG), a smaller one the next, a larger a new run.

    `run` counts the runs, `rises` how often the timestep rose in a row.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        self.step = 0
        self.run = 0
        self.rises = 0

    def count(self, value: float) -> int:
        """The step that `value` belongs to."""
        if self.value is not None and value < self.value:
            self.step, self.rises = self.step + 1, 0
        elif value != self.value:
            self.step, self.run, self.rises = 0, self.run + 1, self.rises + 1
        self.value = value
        return self.step


class _ModelState:
    """What is remembered of one model between its forwards."""

    def __init__(self) -> None:
        self.counter = StepCounter()
        self.warned = False
        # By graph, and gone with it.
        self.kept: WeakKeyDictionary[SparseGraph, KeptPlans] = WeakKeyDictionary()
        # The schedule registered for the model, as of the generation of registrations in which it was looked up.
        self.schedule: Schedule | None = None
        self.generation = -1


class _Registry:
    """The schedules registered now, and the models' states; holds no model and no pipeline alive."""

    def __init__(self) -> None:
        self.schedules: tuple[Schedule, ...] = ()
        self.generation = 0
        self.states: WeakIdKeyDictionary = WeakTensorKeyDictionary()

    def change(self, schedules: tuple[Schedule, ...]) -> None:
        self.schedules = schedules
        self.generation += 1

    def state_of(self, parameter: Tensor) -> _ModelState:
        state: _ModelState | None = self.states.get(parameter)
        if state is None:
            # A model's first forward, or a parameter put in the place of another (LoRA, load_state_dict(assign=True)).
            state = self.states[parameter] = _ModelState()
        if state.generation != self.generation:
            state.generation = self.generation
            found = (s for s in reversed(self.schedules) if any(p is parameter for p in s.parameters()))
            state.schedule = next(found, None)
        return state


_REGISTRY = _Registry()
_observers: tuple[Callable[[Forward], object], ...] = ()


def register(schedule: Schedule) -> None:
    """Let a schedule drive the models it names; of two for one model, the later one does."""
    _REGISTRY.change((*_REGISTRY.schedules, schedule))


def unregister(schedule: Schedule) -> None:
    """Undo `register`; nothing happens where it is undone already."""
    if schedule in _REGISTRY.schedules:
        _REGISTRY.change(tuple(s for s in _REGISTRY.schedules if s is not schedule))


def registered() -> tuple[Schedule, ...]:
    """The schedules registered now, oldest first."""
    return _REGISTRY.schedules


@contextmanager
def watch(observer: Callable[[Forward], object]) -> Iterator[None]:
    """Show `observer` every forward in the block, of all models, in order, after it was launched."""
    global _observers
    # One object to find again: a bound method is a new one at each access.
    mine: Callable[[Forward], object] = partial(observer)
    _observers = (*_observers, mine)
    try:
        yield
    finally:
        _observers = tuple(other for other in _observers if other is not mine)


@contextmanager
def observe() -> Iterator[list[Decision]]:
    """Collect the decision of every forward in the block, of all models, in order."""
    seen: list[Decision] = []
    with watch(lambda forward: seen.append(forward.decision)):
        yield seen


class Dispatcher:
    """A compiled graph in its variants: each forward is run by the one that its step asks for.

    dense: None where no step is dense. parameter: the place of the model's key parameter among the inputs, None where
    parameters are no inputs. marked: whether the graph is a block that was told of its model.
    """

    def __init__(
        self,
        dense: Callable[..., Any] | None,
        sparse: SparseGraph,
        config: SvgConfig,
        timestep: Timestep | None,
        parameter: int | None,
        marked: bool = False,
    ) -> None:
        self.dense = dense
        self.sparse = sparse
        self.config = config
        self.timestep = timestep
        self.parameter = parameter
        self.marked = marked
        self._own_state = _ModelState()

    def __call__(self, *inputs: Any) -> Any:
        note_run()
        parameter = None if self.parameter is None else inputs[self.parameter]
        state = self._own_state if parameter is None else _REGISTRY.state_of(parameter)
        # Nothing depends on the step, but who looks on may be told it by a schedule, which costs nothing to ask.
        asks = self._asks or (_observers and state.schedule is not None)
        decision = self.decide(inputs, state) if asks else _NOT_ASKED
        plans: tuple[Tensor, ...] = ()
        errors: tuple[Tensor, ...] = ()
        if decision.dense and self.dense is not None:
            outputs = self.dense(*inputs)
        else:
            kept = state.kept.setdefault(self.sparse, KeptPlans())
            outputs, plans, errors = self.sparse(inputs, decision, kept)
        if _observers or log.isEnabledFor(logging.DEBUG):
            ports = self.sparse.ports
            _publish(Forward(decision, parameter, ports.layers, plans, errors, ports.grids))
        return outputs

    @property
    def _asks(self) -> bool:
        """Whether anything depends on the step."""
        return self.dense is not None or self.config.staged

    def decide(self, inputs: Sequence[Any], state: _ModelState) -> Decision:
        """Find the step of a forward from its inputs; counts it."""

        # A model compiled whole may hold blocks that were told of it before: their numbers are not its own.
        told = self.parameter if self.marked else None
        regions, layer = region_of(None if told is None else inputs[told])

        @cache
        def read() -> float | None:
            if self.timestep is not None:
                return self.timestep.read(inputs)
            return None if regions is None else regions.timestep()

        position, source = None, "unknown"
        if state.schedule is not None:
            position, source = state.schedule.position(read), state.schedule.name
        if position is None and (value := read()) is not None:
            step = state.counter.count(value)
            position = Position(step, self.config.num_inference_steps, state.counter.run)
            source = "timestep"
        if position is None and (self.config.staged or not self.config.always_sparse):
            _warn_once(state, _UNKNOWN)
        if state.counter.rises > 3:
            _warn_once(state, _RISING)
        first = layer is not None and layer < self.config.dense_layers
        early = position is not None and position.step < self.config.dense_until(position.total)
        return Decision(position, self.dense is not None and (first or early), source if position else "unknown")


def key_parameter(graph_module: fx.GraphModule) -> int | None:
    """The place among a graph's inputs of the parameter that stands for its model: the first by name.

    By name, not by place: graphs of one model that are traced along other branches take their inputs in other orders.
    """
    places: dict[str, int] = {}
    for index, node in enumerate(graph_module.graph.find_nodes(op="placeholder")):
        if isinstance(node.meta.get("example_value"), Parameter) and is_parameter_or_buffer(node):
            places[node.name] = index
    return places[min(places)] if places else None


def _warn_once(state: _ModelState, message: str) -> None:
    if not state.warned:
        state.warned = True
        warnings.warn(message, stacklevel=3)


def _publish(forward: Forward) -> None:
    position, how = forward.decision.position, "dense" if forward.decision.dense else "sparse"
    where = "step ?" if position is None else f"step {position.step} of {position.total}"
    log.debug("%s (%s): %s", where, forward.decision.source, how)
    for observer in _observers:
        observer(forward)
