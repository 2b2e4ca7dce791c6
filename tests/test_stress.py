"""Four threads, each with three pipelines (two attached, one not) over one transformer, two grids of equal length, runs
that are broken off anywhere: every result is that of the same run alone, every forward as asked.

Inductor is replaced by the traced graph itself, so that a compile costs a trace.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import svg_compile
from block_model import BlockModel
from lowering import kind, watch
from step_models import FORMS, Pipe, log_of
from svg_compile.runtime.dispatcher import observe, registered
from svg_compile.runtime.dispatcher import watch as watch_forwards
from svg_compile.runtime.steps import Decision
from toy import latents

COUNTED = 8
OPTIONS: dict[str, Any] = {
    "min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise", "num_inference_steps": COUNTED,
    "profile_every": 2, "density": [(0.0, 0.6), (0.6, 0.3)],
}  # fmt: skip
GRIDS = ((5, 7, 3), (7, 5, 3))
THREADS, PIPES = 4, 3

# Of runs that nobody attached and that are broken off early it is true that all of their steps were dense.
pytestmark = pytest.mark.filterwarnings("error:svg", "ignore:svg. all [0-9]+ steps of the last run stayed dense")


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    torch._dynamo.reset()
    before = registered()
    # Takes back what `compile_often` sets.
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        yield watch(monkeypatch, kind)
    torch._dynamo.reset()
    assert registered() == before


@dataclass(frozen=True)
class Run:
    """One run. pipe: 0 and 1 are attached; stop: the forwards after which it is interrupted, None for never."""

    pipe: int
    steps: int
    grid: tuple[int, int, int]
    seed: int
    stop: int | None
    form: str

    @classmethod
    def draw(cls, chance: random.Random) -> Run:
        pipe = chance.randrange(PIPES)
        steps = COUNTED if pipe == PIPES - 1 else chance.choice([3, 5, 8, 12])
        stop = chance.choice([None, None, chance.randrange(steps)])
        return cls(pipe, steps, chance.choice(GRIDS), chance.randrange(4), stop, chance.choice(["view", "copy"]))

    @property
    def log(self) -> str:
        dense = math.ceil(self.steps / 4)
        return ("D" * dense + "s" * (self.steps - dense))[: self.stop]


class Stop(Exception):
    pass


@torch.no_grad()
def play(run: Run, pipe: Any) -> Tensor | None:
    """The last latents of a run, None where it was broken off; guidance calls the model twice."""
    x = latents(1, *run.grid, seed=run.seed)
    prompts = [torch.full((1, 32), 0.1 * (run.seed + place)) for place in (1, 2)]
    pipe.scheduler.set_timesteps(run.steps)
    try:
        for place, t in enumerate(pipe.scheduler.timesteps):
            if place == run.stop:
                raise Stop
            yes, no = (pipe.transformer(x, FORMS[run.form](t), prompt) for prompt in prompts)
            x = pipe.scheduler.step(no + 2.0 * (yes - no), t, x, return_dict=False)[0]
    except Stop:
        return None
    return x


def compile_often() -> None:
    """Let Dynamo compile often in this thread, whose settings are its own. Timesteps are views of schedules, whose
    lengths are guarded, and threads that make their first calls at once may each compile what one would do for all.
    """
    torch._dynamo.config.recompile_limit = 100


def pipelines(model: Any) -> list[Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=7.0)
    schedulers = FlowMatchEulerDiscreteScheduler(shift=5.0), unipc, FlowMatchEulerDiscreteScheduler(shift=3.0)
    return [Pipe(scheduler, transformer=model) for scheduler in schedulers]


def alone(run: Run, model: Any) -> Tensor | None:
    """The run as the only one there is, its pipeline attached."""
    pipe = pipelines(model)[run.pipe]
    with svg_compile.attach(pipe), observe() as seen:
        out = play(run, pipe)
    assert_as_asked(run, seen, len(seen))
    return out


def assert_as_asked(run: Run, seen: list[Decision], forwards: int) -> None:
    times = forwards // max(len(run.log), 1)
    assert log_of(seen) == "".join(letter * times for letter in run.log), (run, [(d.source, d.position) for d in seen])


def stress(how: str, runs: int, seed: int, cold: bool) -> None:
    chance = random.Random(seed)
    model = BlockModel()
    compile_often()
    model.compile_in_place(how, options=OPTIONS)
    todo = [[Run.draw(chance) for _ in range(-(-runs // THREADS))] for _ in range(THREADS)]
    expected: dict[Run, Tensor | None] = {}

    def fill() -> None:
        for run in (run for queue in todo for run in queue):
            if run not in expected:
                expected[run] = alone(run, model)

    if not cold:
        fill()
    results: list[tuple[Run, Tensor | None, list[Decision]]] = []

    def work(queue: list[Run], pipes: list[Any]) -> None:
        mine = threading.get_ident()
        for run in queue:
            seen: list[Decision] = []

            def see(forward: Any, seen: list[Decision] = seen) -> None:
                if threading.get_ident() == mine:
                    seen.append(forward.decision)

            with watch_forwards(see):
                results.append((run, play(run, pipes[run.pipe]), seen))

    sets = [pipelines(model) for _ in range(THREADS)]
    held = [] if how == "whole" else [svg_compile.attach(pipe) for pipe in pipelines(model)[:1]]
    handles = [svg_compile.attach(pipe) for pipes in sets for pipe in pipes[: PIPES - 1]] + held
    try:
        with ThreadPoolExecutor(THREADS, initializer=compile_often) as pool:
            for future in [pool.submit(work, *job) for job in zip(todo, sets)]:
                future.result()
    finally:
        for handle in handles:
            handle.remove()
    fill()
    layers = 1 if how == "whole" else len(model.blocks)
    for run, out, seen in results:
        assert_as_asked(run, seen, 2 * layers * len(run.log))
        want = expected[run]
        assert (out is None) == (want is None)
        if out is not None and want is not None:
            torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_runs_in_threads_are_what_they_are_alone(how: str) -> None:
    stress(how, runs=16, seed=0, cold=False)


@pytest.mark.slow
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_two_hundred_runs_in_threads_are_what_they_are_alone(how: str, cold: bool) -> None:
    stress(how, runs=200, seed=1 + cold, cold=cold)
