"""The compiled sparse variant of a graph: gives it the density and the plans of its step, and takes its plans out.

With `profile_every` N the plan of a profile, and the fits of its repairs, are kept for the N - 1 steps after it. A step
with another density keeps the kinds alone; half-widths by need are profiled anew for it. Plans are kept per model, per
graph and per forward of a step (guidance calls twice: each call keeps its own), and never from one run to the next.

Where layers share the pairs, the graph gets the shares of its layers, and what these found is noted for the next
step (runtime/layer_shares.py).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from svg_compile.config import SvgConfig
from svg_compile.layout import VideoLayout
from svg_compile.runtime.layer_shares import LayerShares, Profiles

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
        """True if a forward profiles anew: nothing is kept for it, or what is kept is old or of another stage.

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

    def __call__(
        self, inputs: Sequence[Any], decision: Decision, kept: KeptPlans, shares: LayerShares, key: Hashable = 0
    ) -> tuple[Any, _Tensors, _Tensors]:
        """(the graph's own outputs, plans, errors).

        kept: the plans that the forward's run keeps of this graph. shares: of the layers of its model in this run; key:
        what tells this graph from others of the model.
        """
        ports, position = self.ports, decision.position
        stage = 0 if position is None else self.config.stage(position.step, position.total)
        if position is None or not self.keeps:
            # The density alone, if that much.
            return self._split(self.compiled(*inputs, *self._given(stage, True)))[:3]
        previous: Sequence[Tensor] = ()
        call, due, turn, share = 0, True, 0, None
        if ports.shapes:
            call = kept.enter(position.step, exact=position.exact)
            due = kept.due(call, self.config.profile_every, stage if self.config.adaptive_widths else None)
            previous = () if due else kept.profiled[call].plans
        if ports.shared:
            turn, share = shares.enter(position.step, key, exact=position.exact)
        given = self._given(stage, due, previous, share)
        own, plans, errors, missing, fits, sizes = self._split(self.compiled(*inputs, *given))
        last = position.step + 1 >= position.total
        if ports.shapes and last:
            # Fits of a large model take 100 MB and more.
            kept.release(call)
        elif ports.shapes and due:
            kept.keep(call, stage, _copied((*plans, *fits)))
        if ports.shared and last:
            shares.release(turn, key)
        elif ports.shared and due:
            found = _copied([each[..., :2] for each in errors]), _copied(missing)
            layouts = _layouts(ports.grids, sizes)
            shares.note(turn, key, Profiles(*found, layouts, self.config.densities[stage], ports.spreads))
        return own, plans, errors

    def _given(
        self, stage: int, due: bool, previous: Sequence[Tensor] = (), share: Tensor | None = None
    ) -> Sequence[Tensor]:
        """The graph's additional inputs, as `PlanPorts` has them."""
        given = list(self.ports.inputs)
        if self.ports.staged:
            given[0] = _when(stage, due, given[0].device)
        given[1 : 1 + len(previous)] = previous
        # Another resolution in the middle of a run may be of another batch size.
        if share is not None and share.shape == given[-1].shape:
            given[-1] = share
        return given

    @property
    def keeps(self) -> bool:
        """True if a step depends on earlier steps."""
        return bool(self.ports.shapes) or self.ports.shared

    def _split(self, outputs: Sequence[Any]) -> tuple[Any, _Tensors, _Tensors, _Tensors, _Tensors, tuple[int, ...]]:
        """(the graph's own outputs, plans, errors, missing mass, fits, symbolic sizes)."""
        ports, end = self.ports, len(outputs) - self.ports.sizes
        own, led_out, sizes = outputs[: ports.outputs], outputs[ports.outputs : end], tuple(map(int, outputs[end:]))
        each = 2 + ports.shared + ports.fits
        missing = tuple(led_out[2::each]) if ports.shared else ()
        fits = tuple(led_out[each - 1 :: each]) if ports.fits else ()
        return own, tuple(led_out[::each]), tuple(led_out[1::each]), missing, fits, sizes


def _copied(outputs: Sequence[Tensor]) -> _Tensors:
    """Outputs of a graph to keep: on a GPU they may be a captured graph's memory, which its next replay overwrites."""
    return tuple(part if part.device.type == "cpu" else part.clone() for part in outputs)


@lru_cache(maxsize=64)
def _layouts(grids: tuple[tuple[int | None, ...], ...], sizes: tuple[int, ...]) -> tuple[VideoLayout, ...]:
    """The grids of the layers of a graph. sizes: those that are symbolic, None in `grids`, in order."""
    rest = iter(sizes)
    return tuple(VideoLayout.of([next(rest) if size is None else size for size in grid]) for grid in grids)


@lru_cache(maxsize=64)
def _when(stage: int, due: bool, device: torch.device) -> Tensor:
    """The `when` of `svg::profile` on a device; made once, since a copy to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor([stage, int(due)], dtype=torch.int32, device=device)
