"""What is remembered of each model between its forwards, and which schedules hold it: one registry for all.

A graph does not know which model it runs for: Dynamo shares graphs between models where their guards agree. But it
takes the parameters as inputs, and *all* of them together name the model: the module that holds them all, if one is
known (it was compiled, attached, or given to `denoising`), else these parameters themselves. One parameter would not
do, since models may share some.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from svg_compile.runtime.counting import Chains, current_strand
from svg_compile.runtime.dense_runs import DenseRuns
from svg_compile.runtime.scheduler_steps import FOLLOWS, VALUE, VIEW, Claim
from svg_compile.runtime.sparse_variant import KeptPlans
from svg_compile.runtime.steps import Position
from svg_compile.runtime.timestep import Moment

if TYPE_CHECKING:
    from svg_compile.passes.expose_plans import PlanPorts

# Runs of one model that are under way at once, of which plans are kept.
_MOST_RUNS = 16
_ELSEWHERE = (
    "svg: a denoising block of another thread or task holds this model, and this forward is not in it: its steps are "
    "counted from its timesteps. To run forwards of that block in a thread of your own, start them by "
    "contextvars.copy_context().run(...)."
)
_RISING = (
    "svg: the timesteps of this model rise from forward to forward, and each rise is taken for the start of a new run: "
    "all steps stay dense. Call svg_compile.attach(pipe), or run the loop in `with svg_compile.denoising(model, "
    "steps=...)`."
)


class Schedule(Protocol):
    """A source of steps outside of the models' graphs."""

    name: str

    def models(self) -> Iterable[nn.Module]:
        """The models that this schedule drives, as they are now."""

    def claim(self, moment: Moment) -> Claim | None:
        """Whether a forward with this timestep is of the run under way; None where none is, here. Notes nothing."""

    def accept(self, claim: Claim) -> Position:
        """The step of a forward that was found to be of this schedule."""


class ModelContext:
    """What is remembered of one model."""

    def __init__(self) -> None:
        self.chains = Chains()
        self.dense_runs = DenseRuns()
        self._warned: set[str] = set()
        # By strand: the state in which each schedule was when a forward was not of it; and the run that was last.
        self._passed: WeakKeyDictionary[Any, WeakKeyDictionary[Any, Any]] = WeakKeyDictionary()
        # Of each schedule: the timesteps of its run, and the strands that follow it.
        self._followers: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()
        self._last: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()
        self._lock = threading.RLock()

    def find_step(
        self, schedules: Sequence[Schedule], moment: Moment, tensors: Sequence[Tensor], total: int
    ) -> tuple[Position | None, str]:
        """(the step of the forward at hand, the name of what it was found by).

        tensors: its inputs beside the timestep; total: the steps of a run that no schedule knows.
        """
        strand = current_strand()
        with self._lock:
            found = self._claimed(schedules, moment, strand)
            chain = None
            if moment.was_read or (found is None and moment.known):
                assert moment.value is not None
                chain = self.chains.find(tensors, strand, moment.value)
            if found is not None and chain is not None and self._is_counted(*found, chain, moment, strand):
                found = None
            if found is not None:
                return self._follow(*found, chain, moment, tensors, strand)
            if chain is None or moment.value is None:
                return None, "unknown"
            if any(schedule.name == "denoising" for schedule in schedules):
                self.warn(_ELSEWHERE)
            step = chain.counter.count(moment.value)
            chain.source = None
            self.chains.keep(tensors, strand, chain)
            if chain.counter.rises > 3:
                self.warn(_RISING)
            return Position(step, total, chain.counter.run, exact=False), "timestep"

    @property
    def fresh(self) -> bool:
        """Whether no forward was seen."""
        return not self._last and self.chains.empty

    def warn(self, message: str, kind: str | None = None) -> None:
        """Warn once of each kind, by default of each message, for this model."""
        kind = message if kind is None else kind
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=4)

    def _claimed(self, schedules: Sequence[Schedule], moment: Moment, strand: Any) -> tuple[Schedule, Claim] | None:
        """The schedule whose timestep this is: the surest, then the one that this strand followed last, then the one
        that was registered last.
        """
        best: tuple[Any, Schedule, Claim] | None = None
        last = self._last.get(strand)
        # A denoising block first: where it answers, nothing is read.
        for schedule in sorted(reversed(schedules), key=lambda schedule: schedule.name != "denoising"):
            if best is not None and best[2].sure > VIEW:
                break
            claim = schedule.claim(moment)
            if claim is None:
                continue
            if claim.index is None:
                self._passed.setdefault(strand, WeakKeyDictionary())[schedule] = claim.state
                self._followers.get(schedule, (None, set()))[1].discard(strand)
                continue
            if claim.index == 0 and claim.sure <= VIEW:
                # A first timestep may be that of several runs: whose it is not is let go at the next one.
                self._add_follower(schedule, claim, strand)
            rank = (claim.sure, last is not None and last[0]() is schedule)
            if best is None or rank > best[0]:
                best = rank, schedule, claim
        return None if best is None else best[1:]

    def _is_counted(self, schedule: Schedule, claim: Claim, chain: Any, moment: Moment, strand: Any) -> bool:
        """Whether a forward whose timestep is a schedule's by coincidence goes on with a chain that is not of it."""
        if claim.sure >= VIEW or not chain.goes_on_with(moment.value):
            return False
        begun = claim.state[1] is not None
        if chain.follows(schedule) and (chain.settled or claim.sure > FOLLOWS or begun):
            return False
        if claim.index == 0 and moment.value == chain.counter.value:
            # A first timestep of no known form may be anything: it is no reason to leave a run amid a step.
            return claim.sure <= FOLLOWS and chain.counter.step > 0
        if strand not in self._strands_of(schedule, claim, strand):
            return True
        # The scheduler has not moved since it let a forward of this strand pass: it stands still, after a run that was
        # broken off.
        passed: Any = self._passed.get(strand, {})
        if passed.get(schedule) == claim.state:
            return True
        free = chain.source is None or not chain.settled
        # A first timestep, found as it is, rather begins a run than to be the next one of a run that nobody knows.
        begins = claim.index == 0 and claim.sure == VALUE
        counted = free and claim.sure <= VALUE and moment.value != chain.counter.value and not begins
        if counted:
            # So are the other forwards of the step.
            self._passed.setdefault(strand, WeakKeyDictionary())[schedule] = claim.state
        return bool(counted)

    def _add_follower(self, schedule: Schedule, claim: Claim, strand: Any) -> None:
        timesteps, strands = self._followers.get(schedule, (None, weakref.WeakSet()))
        strands = strands if timesteps == claim.state[0] else weakref.WeakSet()
        strands.add(strand)
        self._followers[schedule] = (claim.state[0], strands)

    def _strands_of(self, schedule: Schedule, claim: Claim, default: Any) -> Any:
        """The strands that have followed a schedule's run since it began; the default where none has."""
        timesteps, strands = self._followers.get(schedule, (None, None))
        return strands if timesteps == claim.state[0] and strands else (default,)

    def _follow(
        self, schedule: Schedule, claim: Claim, chain: Any, moment: Moment, tensors: Sequence[Tensor], strand: Any
    ) -> tuple[Position, str]:
        position = schedule.accept(claim)
        if claim.sure <= VIEW:
            self._add_follower(schedule, claim, strand)
        if chain is not None:
            chain.counter.count(moment.value)
            chain.source, chain.settled = weakref.ref(schedule), claim.index != 0 or claim.sure >= VIEW
            self.chains.keep(tensors, strand, chain)
        elif self._last.get(strand, (None, None))[1] != position.run:
            self.chains.break_off(strand)
        self._last[strand] = (weakref.ref(schedule), position.run)
        return position, schedule.name


class Binding:
    """A model as the graphs of some of its parameters see it: its context, its schedules, and the plans they keep."""

    def __init__(self, context: ModelContext, schedules: tuple[Schedule, ...] = ()) -> None:
        self.context = context
        self.schedules = schedules
        self.generation = -1
        # By run, since several may be under way; then by what a graph's plans are of.
        self._kept: OrderedDict[int, dict[Any, KeptPlans]] = OrderedDict()
        self._lock = threading.Lock()

    def kept(self, ports: PlanPorts, run: int) -> KeptPlans:
        """The plans that a run keeps of a graph with these ports.

        Not of the graph itself: Dynamo may hold several for the same inputs (threads compile at once), and which of
        them serves a call changes.
        """
        with self._lock:
            plans = self._kept.setdefault(run, {})
            self._kept.move_to_end(run)
            while len(self._kept) > _MOST_RUNS:
                self._kept.popitem(last=False)
            return plans.setdefault((ports.layers, ports.grids, ports.shapes, ports.fits), KeptPlans())


class Registry:
    """The models and the schedules; holds none of them alive but the schedules registered now."""

    def __init__(self) -> None:
        self.schedules: tuple[Schedule, ...] = ()
        self.bindings: dict[tuple[int, ...], Binding] = {}
        self.models: WeakKeyDictionary[nn.Module, ModelContext] = WeakKeyDictionary()
        self._named: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._layers: WeakKeyDictionary[nn.Module, dict[int, Binding]] = WeakKeyDictionary()
        self._deaths: dict[tuple[int, ...], list[Any]] = {}
        self._generation = 0
        self._lock = threading.RLock()

    def register(self, schedule: Schedule) -> None:
        """Let a schedule drive the models that it names."""
        with self._lock:
            self.schedules = (*self.schedules, schedule)
            self._generation += 1
            for model in schedule.models():
                self.models.setdefault(model, ModelContext())
                self._named.add(model)

    def unregister(self, schedule: Schedule) -> None:
        """Undo `register`; nothing happens where it is undone already."""
        with self._lock:
            if schedule in self.schedules:
                self.schedules = tuple(other for other in self.schedules if other is not schedule)
                self._generation += 1

    def know(self, model: nn.Module) -> None:
        """Note a module that is compiled: graphs of its parameters are the module's."""
        with self._lock:
            self.models.setdefault(model, ModelContext())

    def binding(self, parameters: tuple[Tensor, ...]) -> Binding:
        """What is known of the model that a graph with these parameters runs for."""
        key = tuple(map(id, parameters))
        found = self.bindings.get(key)
        if found is None or found.generation != self._generation:
            with self._lock:
                found = self._bind(key, parameters)
        return found

    def binding_of(self, model: nn.Module, layer: int) -> Binding:
        """What is known of a model, for the graph of one of its attentions alone, by the number of its layer."""
        with self._lock:
            layers = self._layers.setdefault(model, {})
            found = layers.setdefault(layer, Binding(self.models.setdefault(model, ModelContext())))
            if found.generation != self._generation:
                found.context = self.models[model]
                found.schedules = tuple(s for s in self.schedules if any(model is other for other in s.models()))
                found.generation = self._generation
            return found

    def _bind(self, key: tuple[int, ...], parameters: tuple[Tensor, ...]) -> Binding:
        found, ids = self.bindings.get(key), set(key)

        def holds(model: nn.Module) -> int:
            """The number of a model's parameters if these are all among them, else 0."""
            own = {id(parameter) for parameter in model.parameters()}
            return len(own) if ids <= own else 0

        sizes = {model: size for model in list(self.models) if (size := holds(model))}
        # Of those that somebody named the smallest, of those that were compiled the one around all others.
        named = [model for model in sizes if model in self._named]
        model = min(named, key=sizes.__getitem__) if named else max(sizes, key=sizes.__getitem__, default=None)
        context = None if model is None else self.models[model]
        if found is None:
            found = self.bindings[key] = Binding(context or ModelContext())
            # An id is another parameter's after this one's death.
            self._deaths[key] = [weakref.ref(parameter, self._forget(key)) for parameter in parameters]
        elif context is not None and context.fresh and model is not None:
            # It is named only now, and was counted as these parameters before.
            self.models[model] = found.context
        elif context is not None:
            found.context = context
        found.schedules = tuple(s for s in self.schedules if any(map(holds, s.models())))
        found.generation = self._generation
        return found

    def _forget(self, key: tuple[int, ...]) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            self.bindings.pop(key, None)
            self._deaths.pop(key, None)

        return forget


REGISTRY = Registry()


def register(schedule: Schedule) -> None:
    """Let a schedule drive the models that it names."""
    REGISTRY.register(schedule)


def unregister(schedule: Schedule) -> None:
    """Undo `register`; nothing happens where it is undone already."""
    REGISTRY.unregister(schedule)


def registered() -> tuple[Schedule, ...]:
    """The schedules registered now, oldest first."""
    return REGISTRY.schedules
