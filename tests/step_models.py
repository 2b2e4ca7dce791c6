"""Models that hold a dispatcher and no graph: the runtime alone, at a thousandth of the cost of a compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from svg_compile.config import SvgConfig
from svg_compile.passes.expose_plans import PlanPorts
from svg_compile.runtime.dispatcher import Dispatcher
from svg_compile.runtime.sparse_variant import SparseGraph
from svg_compile.runtime.steps import Decision
from svg_compile.runtime.timestep import Timestep


def dispatcher(parameters: int = 1, named: bool = True, **options: Any) -> Dispatcher:
    """A dispatcher whose inputs are that many parameters, a timestep, and then whatever a test adds."""
    config = SvgConfig.from_options({"dense_steps": 0.25, **options})
    dense, sparse = (lambda *inputs: ("dense",)), (lambda *inputs: ("sparse",))
    graph = SparseGraph(sparse, PlanPorts(outputs=1), config)
    timestep = Timestep("timestep", parameters) if named else None
    return Dispatcher(dense, graph, config, timestep, tuple(range(parameters)))


class StepModel(nn.Module):
    """A denoiser that computes nothing: latents, a timestep and prompt embeddings -> zeros like the latents."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.dispatcher = dispatcher(**options)

    def forward(self, latents: Tensor, timestep: Any, prompt: Tensor | None = None) -> Tensor:
        more = () if prompt is None else (prompt,)
        self.dispatcher(self.weight, timestep, latents, *more)
        return torch.zeros_like(latents)


class Pipe:
    """A pipeline in little: a scheduler and components."""

    def __init__(self, scheduler: Any, **components: Any) -> None:
        self.scheduler = scheduler
        vars(self).update(components)


def log_of(decisions: list[Decision]) -> str:
    """One letter a forward: D for dense, s for sparse."""
    return "".join("D" if decision.dense else "s" for decision in decisions)


# How pipelines pass a timestep on: as a view of the schedule, rounded, computed, or one a token.
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "view": lambda t: t.expand(1),
    "copy": lambda t: t.reshape(1).clone(),
    "bfloat16": lambda t: t.expand(1).to(torch.bfloat16),
    "whole number": lambda t: t.reshape(1).long().clone(),
    "number": float,
    "from 0 to 1": lambda t: t.reshape(1).float() / 1000,
    "from the other end": lambda t: 1000 - t.reshape(1).float(),
    "one a token": lambda t: torch.cat([torch.zeros(1, 6), t.float() * torch.ones(1, 18)], 1),
    "no form that is known": lambda t: (t.reshape(1).float() + 3.0).sqrt(),
}
