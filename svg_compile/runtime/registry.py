"""Which model a graph runs for, what is remembered of it, and which schedules drive it: one registry for all.

A graph does not know which model it runs for: Dynamo shares graphs between models where their guards agree. But it
takes the parameters as inputs, and *all* of them together name the model: the module that holds them all, if one is
known (it was compiled, attached, or passed to `denoising`), else these parameters themselves. One parameter would not
do, since models may share some.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from svg_compile._compat.subclasses import referable
from svg_compile.runtime.model_context import ModelContext, Schedule
from svg_compile.runtime.sparse_variant import KeptPlans

if TYPE_CHECKING:
    from svg_compile.passes.expose_plans import PlanPorts

# Runs of one model that are under way at once, of which plans are kept.
_MOST_RUNS = 16


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
        """The binding of the model that a graph with these parameters runs for."""
        key = tuple(map(id, parameters))
        found = self.bindings.get(key)
        if found is None or found.generation != self._generation:
            with self._lock:
                found = self._bind(key, parameters)
        return found

    def binding_of(self, model: nn.Module, layer: int) -> Binding:
        """The binding of a model, for the graph of a single one of its attentions, by its layer number."""
        with self._lock:
            layers = self._layers.setdefault(model, {})
            found = layers.get(layer)
            if found is None:
                found = layers[layer] = Binding(self.models.setdefault(model, ModelContext()))
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
            self._deaths[key] = [weakref.ref(parameter, self._forget(key)) for parameter in referable(parameters)]
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
