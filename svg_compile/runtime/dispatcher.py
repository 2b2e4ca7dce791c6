"""Which of the two compiled graphs runs a forward.

The first steps of a run are left dense (`dense_steps`). A `Dispatcher` stands in place of the compiled graph and asks,
once a forward, for its step: `ModelContext.find_step` knows the schedules (`svg_compile.attach`,
`svg_compile.denoising`) and counts where none of them fits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx
from torch.nn import Parameter

from svg_compile._compat.dynamo import is_parameter_or_buffer
from svg_compile._compat.subclasses import is_quantised
from svg_compile.config import SvgConfig
from svg_compile.regional.forward import Attending, attending, note_run, under_way
from svg_compile.regional.whole_model import region_of
from svg_compile.runtime.layer_shares import LayerShares, shares_of
from svg_compile.runtime.model_context import ModelContext, Schedule
from svg_compile.runtime.observers import Forward, observe, publish, watch, watched
from svg_compile.runtime.registry import REGISTRY, Binding, register, registered, unregister
from svg_compile.runtime.sparse_variant import KeptPlans, SparseGraph
from svg_compile.runtime.steps import NOT_ASKED, Decision, Position, StepCounter
from svg_compile.runtime.timestep import Moment, Timestep

__all__ = [
    "Decision",
    "Dispatcher",
    "Forward",
    "Position",
    "Schedule",
    "StepCounter",
    "key_parameter",
    "observe",
    "parameter_places",
    "register",
    "registered",
    "unregister",
    "watch",
]
log = logging.getLogger(__name__)
_UNKNOWN = (
    "svg: this graph receives no timestep and no schedule is attached, so every step runs sparse, even the first ones "
    "(at the first density), which costs quality. Call svg_compile.attach(pipe) once, run the loop in "
    "`with svg_compile.denoising(model, steps=...)`, or set options={'dense_steps': 0} if this is meant."
)


class Dispatcher:
    """A compiled graph in its variants: each forward is run by the one that its step asks for.

    dense: None where no step is dense. parameters: the places of the model's parameters among the inputs, in the order
    of their names; none where parameters are no inputs. marked: whether the graph is a block with a marker.
    """

    def __init__(
        self,
        dense: Callable[..., Any] | None,
        sparse: SparseGraph,
        config: SvgConfig,
        timestep: Timestep | None,
        parameters: Sequence[int] = (),
        marked: bool = False,
    ) -> None:
        self.dense = dense
        self.sparse = sparse
        self.config = config
        self.timestep = timestep
        self.parameters = tuple(parameters)
        self.marked = marked
        self._not_tensors = {*parameters, *([] if timestep is None else [timestep.index])}
        self._own = Binding(ModelContext())

    def __call__(self, *inputs: Any) -> Any:
        note_run()
        parameters = tuple(inputs[place] for place in self.parameters)
        # The graph of an attention alone, which runs for all of a model's, has no parameters.
        alone = attending() if self.marked and not parameters else None
        if alone is not None:
            binding = REGISTRY.binding_of(alone.model, alone.number)
        else:
            binding = REGISTRY.binding(parameters) if parameters else self._own
        # No option needs the step; but layers share by it, and observers may read it, where a schedule has it.
        asks = self._asks or ((watched() or self.sparse.ports.shared) and binding.schedules)
        decision = self.decide(inputs, parameters, binding, alone) if asks else NOT_ASKED
        plans: tuple[Tensor, ...] = ()
        errors: tuple[Tensor, ...] = ()
        if decision.dense and self.dense is not None:
            outputs = self.dense(*inputs)
        else:
            kept, shares, position = KeptPlans(), LayerShares(), decision.position
            if self.sparse.keeps and position is not None:
                kept = binding.kept(self.sparse.ports, position.run)
                forward, _ = self._under_way(parameters, alone)
                shares = shares_of(binding.context if forward is None else forward.model, position.run)
            key = (id(binding), self.sparse.ports.layers)
            outputs, plans, errors = self.sparse(inputs, decision, kept, shares, key)
        if watched() or log.isEnabledFor(logging.DEBUG):
            ports, first = self.sparse.ports, _first(parameters)
            layers = ports.layers
            if alone is not None:
                first, layers = alone.parameter, (alone.layer,) * len(layers)
            publish(Forward(decision, first, layers, plans, errors, ports.grids))
        return outputs

    def _under_way(self, parameters: tuple[Tensor, ...], alone: Attending | None) -> tuple[Any, int | None]:
        """(the forward of the whole model, the number of its layer) if the graph is a block of one or its attention."""
        if alone is not None:
            return under_way(), alone.number
        # A graph of a whole model may hold blocks that were compiled one by one: their numbers are not its own.
        regions, layer = region_of(_first(parameters) if self.marked else None)
        return None if regions is None else under_way(regions), layer

    @property
    def _asks(self) -> bool:
        """True if anything depends on the step."""
        return self.dense is not None or self.config.staged

    def decide(
        self, inputs: Sequence[Any], parameters: tuple[Tensor, ...], binding: Binding, alone: Attending | None = None
    ) -> Decision:
        """Find the step of a forward, count it, and choose the variant.

        alone: the attention that the graph is of, if it is of one that runs as plain Python.
        """
        context, config = binding.context, self.config
        forward, layer = self._under_way(parameters, alone)
        position, source = self._step(inputs, binding, forward)
        if position is None and (config.staged or not config.always_sparse):
            context.warn(_UNKNOWN)
        first = layer is not None and layer < config.dense_layers
        early = position is not None and position.step < config.dense_until(position.total)
        decision = Decision(position, self.dense is not None and (first or early), source)
        if self.dense is not None and (warning := context.dense_runs.note(decision, config, id(binding))) is not None:
            context.warn(warning, "dense runs")
        return decision

    def _step(self, inputs: Sequence[Any], binding: Binding, forward: Any) -> tuple[Position | None, str]:
        """(the step, what it was found by). forward: that of the whole model, if the graph is a block of one."""
        find, total = binding.context.find_step, self.config.num_inference_steps
        if self.timestep is not None:
            moment = Moment(self.timestep.of(inputs))
            tensors = [v for place, v in enumerate(inputs) if isinstance(v, Tensor) and place not in self._not_tensors]
            return find(binding.schedules, moment, tensors, total)
        if forward is None:
            return find(binding.schedules, Moment(None), (), total)
        # Once for all blocks: schedules move on meanwhile, in other threads.
        if total not in forward.steps:
            forward.steps[total] = find(binding.schedules, Moment(forward.timestep), (), total)
        found: tuple[Position | None, str] = forward.steps[total]
        return found


def parameter_places(graph_module: fx.GraphModule) -> tuple[int, ...]:
    """The places among a graph's inputs of its parameters, in the order of their names.

    By name, not by place: graphs of one model that are traced along other branches take their inputs in other orders.
    """
    places: dict[str, int] = {}
    for index, node in enumerate(graph_module.graph.find_nodes(op="placeholder")):
        if isinstance(node.meta.get("example_value"), Parameter) and is_parameter_or_buffer(node):
            places[node.name] = index
    return tuple(places[name] for name in sorted(places))


def key_parameter(graph_module: fx.GraphModule) -> int | None:
    """The place among a graph's inputs of its first parameter by name; None where parameters are no inputs."""
    return next(iter(parameter_places(graph_module)), None)


def _first(parameters: Sequence[Tensor]) -> Tensor | None:
    """The parameter that stands for the model: one that may be referred to weakly, if any may."""
    return next((each for each in parameters if not is_quantised(each)), parameters[0] if parameters else None)
