"""Steps from outside of a model: of its pipeline's scheduler, or of the loop that calls it.

No graph changes: the dispatcher of a compiled model finds its schedules by its parameters. The hooks that
`watch_regions` sets do nothing unless the model is compiled block by block.
diffusers is not imported; a pipeline is whatever has a `scheduler` and components.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from torch import nn

from svg_compile._compat.modules import uncompiled
from svg_compile.errors import ScheduleError
from svg_compile.passes.timestep_names import timestep_among
from svg_compile.regional.whole_model import leave_regions, watch_regions
from svg_compile.runtime.registry import register, registered, unregister
from svg_compile.runtime.scheduler_steps import Claim, SchedulerSteps
from svg_compile.runtime.steps import Position, new_run
from svg_compile.runtime.timestep import Moment

# A `denoising` block takes precedence over any scheduler.
_SAID = 5


class Attached:
    """The tie between a pipeline and its compiled models; `remove()` it, or leave the `with` block, to undo it.

    The pipeline's scheduler is asked as it is at each forward, so it may be replaced, or run with any number of steps.
    """

    name = "attached"

    def __init__(self, pipe: Any) -> None:
        self._pipe = weakref.ref(pipe, lambda _: self.remove())
        self._watched: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._steps = SchedulerSteps()

    def models(self) -> Iterator[nn.Module]:
        """The pipeline's denoisers, as they are now."""
        pipe = self._pipe()
        yield from () if pipe is None else denoisers(pipe)

    def claim(self, moment: Moment) -> Claim | None:
        """The scheduler's claim on a forward with this timestep; None before its run and after it."""
        scheduler = getattr(self._pipe(), "scheduler", None)
        return None if scheduler is None else self._steps.claim(scheduler, moment)

    def accept(self, claim: Claim) -> Position:
        """The step of a forward that was found to be of this pipeline."""
        return self._steps.accept(getattr(self._pipe(), "scheduler", None), claim)

    def watch(self) -> None:
        """Serve the denoisers that are compiled block by block, too."""
        for model in denoisers(self._pipe()):
            watch_regions(model, self)
            self._watched.add(model)

    def remove(self) -> None:
        """Undo `attach`: the models go back to counting their timesteps."""
        unregister(self)
        for model in self._watched:
            leave_regions(model, self)
        self._watched.clear()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def is_of(self, pipe: Any) -> bool:
        """True if this object is attached to that pipeline."""
        return self._pipe() is pipe


def attach(pipe: Any) -> Attached:
    """Let a pipeline's own scheduler give the steps of its compiled transformers, exactly and under any scheduler.

    Call it once, before or after compiling; it holds for every later run, for any number of steps, and for all
    denoisers of the pipeline (Wan 2.2's two share one schedule). Several pipelines may hold one transformer: a forward
    is of the one whose timestep it gets, and is counted where it is of none. Attaching a pipeline again returns
    the same handle; do so after giving it another transformer that has run already.
    """
    for schedule in registered():
        if isinstance(schedule, Attached) and schedule.is_of(pipe):
            # Registering anew has every model look for its schedule again.
            unregister(schedule)
            register(schedule)
            schedule.watch()
            return schedule
    if not hasattr(getattr(pipe, "scheduler", None), "timesteps"):
        raise ScheduleError(
            f"attach expects a pipeline with a scheduler that has timesteps, got {type(pipe).__name__}. For a loop of "
            "your own, use `with svg_compile.denoising(model, steps=...)`."
        )
    if not list(denoisers(pipe)):
        raise ScheduleError(
            f"attach found no denoiser in {type(pipe).__name__}: no component is a module whose forward takes "
            "`timestep`. Use `with svg_compile.denoising(model, steps=...)`."
        )
    handle = Attached(pipe)
    register(handle)
    handle.watch()
    return handle


def denoisers(pipe: Any) -> Iterator[nn.Module]:
    """The components of a pipeline that are denoisers: modules whose forward takes `timestep`, or one of a modality."""
    components = getattr(pipe, "components", None)
    for component in (components if isinstance(components, dict) else vars(pipe)).values():
        model = uncompiled(component)
        if isinstance(model, nn.Module) and timestep_among(inspect.signature(type(model).forward).parameters):
            yield model


# The runs whose blocks this thread, or task, is in; tasks and copied contexts inherit them.
_ACTIVE: ContextVar[tuple[Denoising, ...]] = ContextVar("svg_compile.denoising", default=())


class Denoising:
    """A run of `steps` steps over some models; made by `denoising`; `advance()` ends each step."""

    name = "denoising"

    def __init__(self, models: tuple[nn.Module, ...], steps: int, start: int) -> None:
        self.steps = steps
        self.step = start
        self._start = start
        self._run = new_run()
        self._models = models
        self._state = "new"
        self._asked = False

    def models(self) -> Iterator[nn.Module]:
        """The run's models."""
        yield from self._models

    def claim(self, moment: Moment) -> Claim | None:
        """Every forward of the run's own thread or task is of it; nothing is read."""
        return Claim(self.step, self.step, _SAID) if self in _ACTIVE.get() and self._state == "running" else None

    def accept(self, claim: Claim) -> Position:
        """The run's own step."""
        if self.step >= self.steps:
            raise ScheduleError(
                f"denoising: a forward came after all {self.steps} steps were advanced over. Call run.advance() once a "
                "step, after the step's last forward (with guidance, a step has several)."
            )
        if self.step > self._start and not self._asked:
            raise ScheduleError("denoising: run.advance() came before the first forward. Call it after each step.")
        self._asked = True
        return Position(self.step, self.steps, self._run)

    def note_forward(self) -> None:
        """A forward runs that asks for no step, as all of it is dense."""
        self._asked = self._asked or self._state == "running"

    def advance(self) -> None:
        """Say that a step is done: what is called from now on belongs to the next one."""
        if self._state != "running":
            raise ScheduleError("denoising: run.advance() was called outside of its `with` block.")
        if self.step >= self.steps:
            raise ScheduleError(
                f"denoising: run.advance() was called more than {self.steps - self._start} times for {self.steps} "
                f"steps from step {self._start}. Call it once a step, not once a forward."
            )
        self.step += 1

    def __enter__(self) -> Denoising:
        if self._state != "new":
            raise ScheduleError("denoising: a run is used once. Call svg_compile.denoising(...) for each.")
        mine = set(_parameter_ids(self))
        # Another thread may have a run of its own over the same models.
        if any(mine.intersection(_parameter_ids(other)) for other in _ACTIVE.get()):
            raise ScheduleError("denoising: one of these models is in a run already; leave that block first.")
        self._state = "running"
        _ACTIVE.set((*_ACTIVE.get(), self))
        register(self)
        for model in self._models:
            watch_regions(model, self)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        unregister(self)
        # A generator may be closed in another thread than it was begun in: elsewhere the run is known to be over.
        _ACTIVE.set(tuple(run for run in _ACTIVE.get() if run is not self))
        for model in self._models:
            leave_regions(model, self)
        if error is None and self._asked and self.step == self._start and self.steps - self._start > 1:
            warnings.warn(
                f"svg: run.advance() was never called in a run of {self.steps} steps, so all its forwards counted as "
                f"step {self._start}. Call it after each step.",
                stacklevel=2,
            )
        self._state, self._models = "over", ()


def note_forward() -> None:
    """A forward of the runs under way in this thread has no sparse attention yet, and so asks for no step."""
    for run in _ACTIVE.get():
        run.note_forward()


def _parameter_ids(run: Denoising) -> Iterator[int]:
    return (id(parameter) for model in run.models() for parameter in model.parameters())


def denoising(*models: nn.Module, steps: int, start: int = 0) -> Denoising:
    """Tell compiled models their steps from a loop of your own.

        with svg_compile.denoising(model, steps=len(timesteps)) as run:
            for t in timesteps:
                latents = step(model(latents, t), latents)
                run.advance()

    Call `run.advance()` after each step, however many forwards it made. Several models may share a run. `start` is the
    first step where a run is resumed, or begins in the middle of its schedule. It holds for the thread or asyncio task
    that enters the block, and for tasks that are made in it: other threads may run the same models at the same time.
    """
    for name, value, least in (("steps", steps, 1), ("start", start, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ScheduleError(f"denoising: {name} must be an integer of at least {least}, got {value!r}.")
    if start >= steps:
        raise ScheduleError(f"denoising: start must be below steps, got start={start}, steps={steps}.")
    plain = tuple(map(uncompiled, models))
    for model in plain:
        if not isinstance(model, nn.Module) or next(model.parameters(), None) is None:
            raise ScheduleError(f"denoising: expected modules with parameters, got {type(model).__name__}.")
    if not plain:
        raise ScheduleError("denoising: expected at least one model.")
    return Denoising(plain, steps, start)
