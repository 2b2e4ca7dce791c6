"""The step of a forward: of several pipelines, interrupted runs, threads and tasks. No graph is compiled."""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svg_compile
from scheduler_runs import SCHEDULERS, denoise
from step_models import FORMS, Pipe, StepModel, dispatcher, log_of
from svg_compile.runtime import timestep
from svg_compile.runtime.dispatcher import observe
from svg_compile.runtime.steps import Decision

X = torch.zeros(1, 4, 2, 3, 4)


# A warning of ours is an error, where a test does not expect it.
pytestmark = [pytest.mark.usefixtures("no_schedule_left"), pytest.mark.filterwarnings("error:svg")]


def euler(shift: float = 5.0) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=shift)


def forwards(pipe: Any, steps: int, form: Any = FORMS["copy"], first: int = 0) -> Iterator[Decision]:
    """A run as a generator: each step yields the decision of its forward."""
    pipe.scheduler.set_timesteps(steps)
    prompt = torch.zeros(1)
    for t in pipe.scheduler.timesteps[first:]:
        with observe() as seen:
            noise = pipe.transformer(X, form(t), prompt)
        # The scheduler has moved by the time another run goes on.
        pipe.scheduler.step(noise, t, X)
        yield seen[-1]


def in_turn(runs: list[Iterator[Decision]], seed: int) -> list[list[Decision]]:
    """The decisions of each of several interleaved runs."""
    order, seen = random.Random(seed), [[] for _ in runs]  # type: ignore[var-annotated]
    left = list(range(len(runs)))
    while left:
        which = order.choice(left)
        try:
            seen[which].append(next(runs[which]))
        except StopIteration:
            left.remove(which)
    return seen


def places(seen: list[Decision]) -> list[tuple[int, int]]:
    return [(d.position.step, d.position.total) for d in seen if d.position is not None]


@pytest.mark.parametrize("form", ["view", "copy"])
@pytest.mark.parametrize("seed", range(6))
def test_attached_pipelines_in_turn_over_one_model_each_have_their_own_steps(seed: int, form: str) -> None:
    model = StepModel()
    pipes = [Pipe(euler(shift), transformer=model) for shift in (5.0, 3.0, 7.0)]
    with contextlib.ExitStack() as stack:
        for pipe in pipes:
            stack.enter_context(svg_compile.attach(pipe))
        runs = [forwards(pipe, steps, FORMS[form]) for pipe, steps in zip(pipes, (8, 5, 12))]
        for seen, steps in zip(in_turn(runs, seed), (8, 5, 12)):
            assert places(seen) == [(step, steps) for step in range(steps)]
            assert [d.dense for d in seen] == [step < -(-steps // 4) for step in range(steps)]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_that_was_never_set_says_nothing(name: str) -> None:
    model = StepModel(num_inference_steps=8)
    mine, other = Pipe(SCHEDULERS[name](), transformer=model), Pipe(euler(), transformer=model)
    with svg_compile.attach(mine), observe() as seen:
        denoise(other, 8, FORMS["copy"])
        with svg_compile.attach(other):
            denoise(other, 8, FORMS["copy"])
    assert log_of(seen) == "DDssssss" * 2
    assert [d.source for d in seen] == ["timestep"] * 8 + ["attached"] * 8


def broken_off_by_a_generator(pipe: Any, stop: int) -> None:
    run = forwards(pipe, 8)
    for _ in range(stop):
        next(run)
    run.close()


def broken_off_by_an_error(pipe: Any, stop: int) -> None:
    def fail(t: Tensor) -> Any:
        raise KeyError

    with contextlib.suppress(KeyError):
        denoise(pipe, 8, lambda t: FORMS["copy"](t) if pipe.scheduler.step_index != stop else fail(t))


BROKEN: dict[str, Callable[[Any, int], None]] = {
    "interrupt": lambda pipe, stop: denoise(pipe, 8, FORMS["copy"], stop=stop),
    "generator": broken_off_by_a_generator,
    "error": broken_off_by_an_error,
}


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("how", BROKEN)
def test_a_run_that_was_broken_off_is_no_evidence_for_others(how: str, stop: int) -> None:
    # Unattached runs of the same steps, of others, of another shift, and one that passes through where it stands.
    for steps, shift in ((8, 5.0), (16, 5.0), (8, 3.0), (4, 5.0)):
        model = StepModel(num_inference_steps=steps)
        mine, other = Pipe(euler(), transformer=model), Pipe(euler(shift), transformer=model)
        with svg_compile.attach(mine):
            BROKEN[how](mine, stop)
            with observe() as seen:
                denoise(other, steps, FORMS["copy"])
        assert log_of(seen) == "D" * (steps // 4) + "s" * (steps - steps // 4), (steps, shift)
        assert {d.source for d in seen} == {"timestep"}


@pytest.mark.parametrize("seed", range(6))
def test_an_unattached_run_beside_an_attached_one_is_counted_by_its_tensors(seed: int) -> None:
    model = StepModel(num_inference_steps=8)
    mine, other = Pipe(euler(), transformer=model), Pipe(euler(3.0), transformer=model)
    with svg_compile.attach(mine):
        attached, counted = in_turn([forwards(mine, 12), forwards(other, 8)], seed)
    assert places(attached) == [(step, 12) for step in range(12)]
    assert places(counted) == [(step, 8) for step in range(8)]
    assert {d.source for d in counted} == {"timestep"}


@pytest.mark.parametrize("seed", range(6))
def test_two_requests_in_turn_without_attach_are_counted_apart_by_their_tensors(seed: int) -> None:
    model = StepModel(num_inference_steps=8)
    runs = [forwards(Pipe(euler(shift), transformer=model), steps) for shift, steps in ((5.0, 8), (3.0, 6))]
    with warnings.catch_warnings():
        # One run that another one interrupts looks like one that ended.
        warnings.filterwarnings("ignore", message="svg: all . steps of the last run")
        seen_by = in_turn(runs, seed)
    for seen, steps in zip(seen_by, (8, 6)):
        assert places(seen) == [(step, 8) for step in range(steps)]


def test_requests_that_pass_the_same_table_are_counted_apart_by_what_is_their_own() -> None:
    runtime, table = dispatcher(num_inference_steps=8), torch.zeros(3)
    weight, prompts = nn.Parameter(torch.zeros(1)), (torch.zeros(1), torch.zeros(1))
    times = ([1000.0, 900.0, 800.0, 700.0, 600.0], [1000.0, 930.0, 880.0, 730.0, 650.0])
    with observe() as seen:
        for step in range(5):
            for prompt, mine in zip(prompts, times):
                runtime(weight, torch.tensor([mine[step]]), torch.zeros(2), prompt, table)
    assert [d.position.step for d in seen if d.position] == [step for step in range(5) for _ in range(2)]


def test_a_pipeline_that_steps_copies_of_its_scheduler_is_known_by_its_timesteps() -> None:
    pipe = Pipe(euler(), transformer=StepModel())
    with svg_compile.attach(pipe):
        for chunks in (1, 3):
            pipe.scheduler.set_timesteps(8)
            with observe() as seen:
                for _ in range(chunks):
                    twin = copy.deepcopy(pipe.scheduler)
                    for t in twin.timesteps:
                        # Diffusion forcing: a timestep for each frame, the first ones ahead.
                        noise = pipe.transformer(X, torch.stack([t * 0, t / 2, t])[None])
                        twin.step(noise, t, X)
            assert places(seen) == [(step, 8) for step in range(8)] * chunks
            assert {d.source for d in seen} == {"attached"}
            assert len({d.position.run for d in seen if d.position}) == chunks


def test_steps_by_the_schedules_own_timesteps_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Tensor] = []
    real = timestep._read
    monkeypatch.setattr(timestep, "_read", lambda tensor: read.append(tensor) or real(tensor))
    for name, make in SCHEDULERS.items():
        pipe = Pipe(make(), transformer=StepModel())
        with svg_compile.attach(pipe):
            denoise(pipe, 8, FORMS["view"])
            denoise(pipe, 8, FORMS["view"], strength=0.5)
        assert not read, name
        with svg_compile.denoising(pipe.transformer, steps=4) as run:
            pipe.transformer(X, torch.tensor([5.0]))
            run.advance()
        assert not read
    # A slice of the schedule is no timestep of it: as many values as samples.
    pipe = Pipe(euler(), transformer=StepModel())
    pipe.scheduler.set_timesteps(8)
    with svg_compile.attach(pipe), observe() as seen:
        pipe.transformer(X, pipe.scheduler.timesteps[2:4])
    assert len(read) == 1
    assert places(seen) == [(2, 8)]


def test_a_timestep_tensor_that_is_written_in_place_is_read_anew() -> None:
    model, t = StepModel(num_inference_steps=8), torch.tensor([1000.0])
    with observe() as seen:
        for _ in range(8):
            model(X, t)
            model(X, t)
            t -= 100
    assert places(seen) == [(step, 8) for step in range(8) for _ in range(2)]
    with torch.inference_mode(), observe() as seen:
        t = torch.tensor([1000.0])
        for _ in range(8):
            model(X, t)
            t -= 100
    assert places(seen) == [(step, 8) for step in range(8)]


def test_a_counted_run_keeps_its_count_when_the_pipeline_is_attached_in_its_middle_and_let_go() -> None:
    model = StepModel(num_inference_steps=8)
    pipe = Pipe(euler(), transformer=model)
    run, seen = forwards(pipe, 8), []
    for step in range(8):
        if step == 3:
            handle = svg_compile.attach(pipe)
        if step == 6:
            handle.remove()
        seen.append(next(run))
    assert places(seen) == [(step, 8) for step in range(8)]
    assert [d.source for d in seen] == ["timestep"] * 3 + ["attached"] * 3 + ["timestep"] * 2
