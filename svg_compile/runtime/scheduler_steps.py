"""Which step of a scheduler's run a forward belongs to, by the forward's own timestep.

A scheduler is read as it is: its `timesteps`, its `step_index` where it keeps one, its `sigmas`. It is believed only
where its timestep of that step is the forward's argument. Pipelines hand a timestep over in several forms
(the timestep, a fraction of 1, a sigma, counted from the other end) and roundings; a run keeps to the form it began in.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from svg_compile.runtime.steps import Position, new_run
from svg_compile.runtime.timestep import Moment

# (timestep, its sigma or NaN, training steps) -> the model's argument.
_FORMS: tuple[Callable[[float, float, float], float], ...] = (
    lambda t, sigma, n: t,
    lambda t, sigma, n: t / n,
    lambda t, sigma, n: sigma,
    lambda t, sigma, n: sigma * n,
    lambda t, sigma, n: n - t,
    lambda t, sigma, n: 1 - t / n,
    lambda t, sigma, n: 1 - sigma,
    lambda t, sigma, n: sigma / (1 + sigma),
    lambda t, sigma, n: math.log(sigma) / 4 if sigma > 0 else math.nan,
)
_ALL = tuple(range(len(_FORMS)))
# How sure a claim is: the timestep is a view of the schedule; the scheduler's own step has this timestep; the schedule
# has it somewhere; it is in no form that is known, but follows the scheduler's steps.
VIEW, INDEX, VALUE, FOLLOWS = 4, 3, 2, 1


@dataclass(frozen=True)
class Claim:
    """A scheduler's answer: the index of the forward's timestep, None where the forward is not of its run.

    state: what the scheduler stands at, equal as long as nothing moves it; forms: in which the timestep is passed.
    """

    index: int | None
    state: Any
    sure: int = 0
    forms: tuple[int, ...] = ()
    follows: float | None = None


@dataclass
class _Run:
    """The state of one run: the result of `set_timesteps`, read to the host once, and the forms of its timesteps."""

    timesteps: Any
    number: int = field(default_factory=new_run)
    forms: tuple[int, ...] = _ALL
    passed: int = -1
    # Of forms that are not known: the timestep of each index so far.
    seen: dict[int, float] = field(default_factory=dict)
    _host: tuple[list[float], list[float]] | None = None
    _steps: list[int] | None = None

    def host(self, scheduler: Any) -> tuple[list[float], list[float]]:
        """(timesteps, their sigmas); a scheduler on a GPU is waited for once a run."""
        if self._host is None:
            times, sigmas = _floats(self.timesteps), _floats(getattr(scheduler, "sigmas", None))
            self._host = times, sigmas + [math.nan] * (len(times) - len(sigmas))
        return self._host

    def steps(self, scheduler: Any) -> list[int]:
        """The step of each index: solvers of second order (Heun) list a timestep twice."""
        if self._steps is None:
            if getattr(scheduler, "order", 1) == 1:
                self._steps = list(range(len(self.timesteps)))
            else:
                times, self._steps = self.host(scheduler)[0], []
                for index, time in enumerate(times):
                    self._steps.append(self._steps[-1] + (time != times[index - 1]) if index else 0)
        return self._steps

    def value(self, scheduler: Any, form: int, index: int) -> float:
        """The model's argument at an index, in one of the forms."""
        times, sigmas = self.host(scheduler)
        training = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None) or 1000
        return _FORMS[form](times[index], sigmas[index], training)

    def goes_on(self, scheduler: Any, index: int, start: int, value: float) -> bool:
        """True if timesteps of an unknown form continue at an index as before: one per index, in one direction."""
        if self.forms != _ALL or any(_same(time, value) for time in self.host(scheduler)[0]):
            return False
        if index in self.seen:
            return _same(self.seen[index], value)
        before = [self.seen[at] for at in sorted(self.seen)]
        if not before:
            return index == start
        straight = len(before) < 2 or (before[1] < before[0]) == (value < before[-1])
        return max(self.seen) == index - 1 and value != before[-1] and straight


class SchedulerSteps:
    """Reads one pipeline's scheduler, from run to run."""

    def __init__(self) -> None:
        self._run: _Run | None = None

    def claim(self, scheduler: Any, moment: Moment) -> Claim | None:
        """The scheduler's claim on a forward; None without a run in progress. Changes no state."""
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is None or _never_set(scheduler, timesteps):
            return None
        run = self._run
        if run is None or run.timesteps is not timesteps:
            run = self._run = _Run(timesteps)
        index = getattr(scheduler, "step_index", None)
        index = None if index is None else int(index)
        if index is not None and index >= len(timesteps):
            return None
        state, start = (id(timesteps), index), int(getattr(scheduler, "begin_index", None) or 0)
        place = moment.place_in(timesteps)
        if place is not None:
            return Claim(place, state, VIEW, _ALL[:1])
        value = moment.value
        if value is None:
            # Nothing speaks against the scheduler, which is all there is.
            return Claim(start if index is None else index, state, FOLLOWS, run.forms)
        # Before the first `step()`, where no pipeline says at which timestep it begins, and for schedulers that keep
        # no index, or of which a pipeline steps copies, the timestep itself is looked up.
        places = [index] if index is not None else [start, *range(len(timesteps))]
        # A forward of a video and its sound passes a timestep of each, of which one is of this scheduler.
        for passed, form, at in product(moment.values, run.forms, places):
            if _same(run.value(scheduler, form, at), passed):
                forms = tuple(other for other in run.forms if _same(run.value(scheduler, other, at), passed))
                return Claim(at, state, VALUE if index is None else INDEX, forms)
        at = start if index is None else index
        if run.goes_on(scheduler, at, start, value):
            return Claim(at, state, FOLLOWS, run.forms, follows=value)
        return Claim(None, state)

    def accept(self, scheduler: Any, claim: Claim) -> Position:
        """Note that a forward was of this scheduler's run, and give its step."""
        run = self._run
        assert run is not None
        assert claim.index is not None
        if claim.index < run.passed:
            # The timesteps are as they were, and begun again: by a pipeline that sets them once.
            run = self._run = replace(run, number=new_run(), passed=-1, seen={})
        run.passed, run.forms = claim.index, claim.forms
        if claim.follows is not None:
            run.seen.setdefault(claim.index, claim.follows)
        steps = run.steps(scheduler)
        return Position(steps[claim.index], steps[-1] + 1, run.number)


def _never_set(scheduler: Any, timesteps: Any) -> bool:
    """True if `set_timesteps` was never called, so that the timesteps are those of training."""
    steps = getattr(scheduler, "num_inference_steps", 0)
    if steps == 0 and not hasattr(scheduler, "num_inference_steps"):
        return len(timesteps) == getattr(getattr(scheduler, "config", None), "num_train_timesteps", -1)
    return steps is None or not len(timesteps)


def _floats(values: Any) -> list[float]:
    return [] if values is None else [float(v) for v in (values.tolist() if isinstance(values, Tensor) else values)]


def _same(time: float, value: float) -> bool:
    """True if `value` is the timestep, as is, converted to an integer, or rounded to bfloat16 or float16."""
    if math.isnan(time):
        return False
    if abs(time - value) <= 1e-5 * max(abs(time), 1.0):
        return True
    return (abs(time) > 1 and value in (math.trunc(time), round(time))) or value in _rounded(time)


def _rounded(time: float) -> tuple[float, float]:
    """A timestep in bfloat16 and in float16."""
    bits = torch.tensor(time, dtype=torch.float64)
    half = struct.unpack("e", struct.pack("e", time))[0] if abs(time) < 65504 else math.inf
    return float(bits.to(torch.bfloat16)), half
