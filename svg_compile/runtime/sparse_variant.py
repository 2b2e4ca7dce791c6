"""The compiled sparse variant of a graph: gives it the density and the plans of its step, and takes its plans out.

With `profile_every` N the plan of a profile, and the fits of its repairs, are kept for the N - 1 steps after it. A step
with another density keeps the kinds alone; half-widths by need are profiled anew for it. Plans are kept per model, per
graph and per forward of a step (guidance calls twice: each call keeps its own), and never from one run to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from svg_compile.config import SvgConfig

if TYPE_CHECKING:
    from svg_compile.passes.expose_plans import PlanPorts
    from svg_compile.runtime.steps import Decision

_Tensors = tuple[Tensor, ...]
# Forwards of one step whose plans are kept: guidance makes two or three. Calls beyond profile anew.
_MOST_CALLS = 8
# The step of a profile that no step is near enough to.
_NEVER = -(2**62)


class Profiled(NamedTuple):
    """A profile: its step, the place of that step's density, and its plans, with the fits behind them if it has any."""

    step: int
    stage: int
    plans: tuple[Tensor, ...]


@dataclass
class KeptPlans:
    """The plans that one run keeps of one graph: the last profile of each forward of a step."""

    step: int = -1
    call: int = 0
    profiled: list[Profiled] = field(default_factory=list)

    def enter(self, step: int, *, exact: bool = True) -> int:
        """Note a forward of a step; returns how many came before it in that step. exact: the step is not counted."""
        # A warm-up at the first timestep of a counted run looks like a call of step 0: keep no plans of that step.
        counted_first = not exact and self.step == 0 and step > 0
        if step < self.step or counted_first:
            self.profiled.clear()
        if step != self.step:
            self.step, self.call = step, 0
        self.call += 1
        return self.call - 1

    def due(self, call: int, every: int, stage: int | None) -> bool:
        """Whether a forward profiles anew: nothing is kept for it, or what is kept is old or of another stage.

        stage: the place of the step's density, None where a plan serves all densities.
        """
        if call >= len(self.profiled):
            return True
        profiled = self.profiled[call]
        return self.step - profiled.step >= every or (stage is not None and stage != profiled.stage)

    def keep(self, call: int, stage: int, plans: tuple[Tensor, ...]) -> None:
        """Keep what a forward profiled."""
        if call < len(self.profiled):
            self.profiled[call] = Profiled(self.step, stage, plans)
        elif call == len(self.profiled) < _MOST_CALLS:
            self.profiled.append(Profiled(self.step, stage, plans))

    def release(self, call: int) -> None:
        """Let go of what a forward kept: the run's last step has used it."""
        if call < len(self.profiled):
            self.profiled[call] = Profiled(_NEVER, 0, ())


class SparseGraph:
    """A compiled sparse graph; call it with the graph's own inputs and what is known of the step."""

    def __init__(self, compiled: Callable[..., Any], ports: PlanPorts, config: SvgConfig) -> None:
        self.compiled = compiled
        self.ports = ports
        self.config = config

    def __call__(self, inputs: Sequence[Any], decision: Decision, kept: KeptPlans) -> tuple[Any, _Tensors, _Tensors]:
        """(the graph's own outputs, plans, errors). kept: the plans that the forward's run keeps of this graph."""
        if not self.ports.staged:
            return self._split(self.compiled(*inputs))[:3]
        position = decision.position
        stage = 0 if position is None else self.config.stage(position.step, position.total)
        if position is None or not self.ports.shapes:
            return self._split(self.compiled(*inputs, _when(stage, True, self._device), *self.ports.inputs[1:]))[:3]
        call = kept.enter(position.step, exact=position.exact)
        due = kept.due(call, self.config.profile_every, stage if self.config.adaptive_widths else None)
        previous = self.ports.inputs[1:] if due else kept.profiled[call].plans
        outputs, plans, errors, fits = self._split(self.compiled(*inputs, _when(stage, due, self._device), *previous))
        if position.step + 1 >= position.total:
            # Fits of a large model take 100 MB and more.
            kept.release(call)
        elif due:
            # On a GPU the outputs may be a captured graph's memory, which its next replay overwrites.
            keep = (part if part.device.type == "cpu" else part.clone() for part in (*plans, *fits))
            kept.keep(call, stage, tuple(keep))
        return outputs, plans, errors

    @property
    def _device(self) -> torch.device:
        return self.ports.inputs[0].device

    def _split(self, outputs: Sequence[Any]) -> tuple[Any, _Tensors, _Tensors, _Tensors]:
        """(the graph's own outputs, plans, errors, fits)."""
        own, led_out = outputs[: self.ports.outputs], outputs[self.ports.outputs :]
        each = 3 if self.ports.fits else 2
        fits = tuple(led_out[2::3]) if self.ports.fits else ()
        return own, tuple(led_out[::each]), tuple(led_out[1::each]), fits


@lru_cache(maxsize=64)
def _when(stage: int, due: bool, device: torch.device) -> Tensor:
    """The `when` of `svg::profile` on a device; made once, since a copy to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor([stage, int(due)], dtype=torch.int32, device=device)
