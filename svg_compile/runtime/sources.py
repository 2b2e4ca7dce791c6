"""Steps told from outside a model: by its pipeline's scheduler, or by the loop that calls it.

No graph changes: the dispatcher of a compiled model finds its schedule by one of its parameters. The hooks that
`watch_regions` sets do nothing unless the model is compiled block by block.
diffusers is not imported; a pipeline is whatever has a `scheduler` and components.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from svg_compile.errors import ScheduleError
from svg_compile.regional.whole_model import leave_regions, watch_regions
from svg_compile.runtime.dispatcher import Position, register, registered, unregister

# A pipeline may hand the model a timestep rounded to a narrower dtype: bfloat16 keeps 8 bits.
_ROUNDING = 2.0**-8
_runs = itertools.count()


class Attached:
    """The tie between a pipeline and its compiled models; `remove()` it, or leave the `with` block, to undo it.

    The pipeline's scheduler is asked as it is at each forward, so it may be replaced, or run with any number of steps.
    """

    name = "attached"

    def __init__(self, pipe: Any) -> None:
        self._pipe = weakref.ref(pipe, lambda _: self.remove())
        self._watched: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        # The host's copy of scheduler.timesteps, for schedulers that keep no step index: one transfer a run.
        self._timesteps: tuple[weakref.ref[Tensor], list[float]] | None = None
        self._run = 0
        self._last: tuple[Callable[[], Any], int] = (lambda: None, 0)

    def parameters(self) -> Iterator[Tensor]:
        """The parameters of the pipeline's denoisers, as they are now."""
        pipe = self._pipe()
        for model in () if pipe is None else denoisers(pipe):
            yield from model.parameters()

    def position(self, timestep: Callable[[], float | None]) -> Position | None:
        """The scheduler's own step; None before its first and after its last one."""
        scheduler = getattr(self._pipe(), "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if scheduler is None or timesteps is None or getattr(scheduler, "num_inference_steps", 0) is None:
            return None
        if hasattr(scheduler, "step_index"):
            step = scheduler.step_index
            if step is None:
                step = getattr(scheduler, "begin_index", None) or 0
        else:
            value = timestep()
            step = None if value is None else _nearest(self._on_host(timesteps), value)
        if step is None or step >= len(timesteps):
            return None
        return Position(step, len(timesteps), self._run_of(timesteps, step))

    def _run_of(self, timesteps: Any, step: int) -> int:
        """The number of the run: a new one begins with the timesteps set anew, or with a step that was passed."""
        set_by, last = self._last
        if set_by() is not timesteps or step < last:
            self._run += 1
        self._last = (weakref.ref(timesteps) if isinstance(timesteps, Tensor) else lambda: timesteps), step
        return self._run

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
        """Whether this is the tie of that pipeline."""
        return self._pipe() is pipe

    def _on_host(self, timesteps: Any) -> list[float]:
        if not isinstance(timesteps, Tensor):
            return list(timesteps)
        if self._timesteps is None or self._timesteps[0]() is not timesteps:
            self._timesteps = (weakref.ref(timesteps), timesteps.tolist())
        return self._timesteps[1]


def attach(pipe: Any) -> Attached:
    """Let a pipeline's own scheduler tell the steps of its compiled transformers, exactly and under any scheduler.

    Call it once, before or after compiling; it holds for every later run, for any number of steps, and for all
    denoisers of the pipeline (Wan 2.2's two share one schedule). Attaching a pipeline again returns the same handle;
    do so after giving it another transformer that has run already.
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
    """The components of a pipeline that are denoisers: modules whose forward takes `timestep`."""
    components = getattr(pipe, "components", None)
    for component in (components if isinstance(components, dict) else vars(pipe)).values():
        model = getattr(component, "_orig_mod", component)
        if isinstance(model, nn.Module) and "timestep" in inspect.signature(type(model).forward).parameters:
            yield model


def _nearest(timesteps: list[float], value: float) -> int | None:
    """The place of a timestep in a schedule, None where it is none of the schedule's."""
    place = min(range(len(timesteps)), key=lambda at: abs(timesteps[at] - value), default=None)
    return place if place is not None and abs(timesteps[place] - value) <= _ROUNDING * abs(value) else None


class Denoising:
    """A run of `steps` steps over some models; made by `denoising`, told of each finished step by `advance()`."""

    name = "denoising"

    def __init__(self, models: tuple[nn.Module, ...], steps: int, start: int) -> None:
        self.steps = steps
        self.step = start
        self._start = start
        self._run = next(_runs)
        self._models = models
        self._state = "new"
        self._asked = False

    def parameters(self) -> Iterator[Tensor]:
        """The parameters of the run's models, as they are now."""
        for model in self._models:
            yield from model.parameters()

    def position(self, timestep: Callable[[], float | None]) -> Position | None:
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
        mine = {id(parameter) for parameter in self.parameters()}
        for schedule in registered():
            if isinstance(schedule, Denoising) and any(id(parameter) in mine for parameter in schedule.parameters()):
                raise ScheduleError("denoising: one of these models is in a run already; leave that block first.")
        self._state = "running"
        register(self)
        for model in self._models:
            watch_regions(model, self)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        unregister(self)
        for model in self._models:
            leave_regions(model, self)
        if error is None and self._asked and self.step == self._start and self.steps - self._start > 1:
            warnings.warn(
                f"svg: run.advance() was never called in a run of {self.steps} steps, so all its forwards counted as "
                f"step {self._start}. Call it after each step.",
                stacklevel=2,
            )
        self._state, self._models = "over", ()


def denoising(*models: nn.Module, steps: int, start: int = 0) -> Denoising:
    """Tell compiled models their steps from a loop of your own.

        with svg_compile.denoising(model, steps=len(timesteps)) as run:
            for t in timesteps:
                latents = step(model(latents, t), latents)
                run.advance()

    Call `run.advance()` after each step, however many forwards it made. Several models may share a run. `start` is the
    first step where a run is resumed, or begins in the middle of its schedule.
    """
    for name, value, least in (("steps", steps, 1), ("start", start, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ScheduleError(f"denoising: {name} must be an integer of at least {least}, got {value!r}.")
    if start >= steps:
        raise ScheduleError(f"denoising: start must be below steps, got start={start}, steps={steps}.")
    plain = tuple(getattr(model, "_orig_mod", model) for model in models)
    for model in plain:
        if not isinstance(model, nn.Module) or next(model.parameters(), None) is None:
            raise ScheduleError(f"denoising: expected modules with parameters, got {type(model).__name__}.")
    if not plain:
        raise ScheduleError("denoising: expected at least one model.")
    return Denoising(plain, steps, start)
