"""Whose step a forward is: of several pipelines, runs that were broken off, threads and tasks. No graph is compiled."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import gc
import random
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svg_compile
from scheduler_runs import SCHEDULERS, denoise
from step_models import FORMS, Pipe, StepModel, dispatcher, log_of
from svg_compile import ScheduleError
from svg_compile.runtime import timestep
from svg_compile.runtime.dispatcher import observe, registered, watch
from svg_compile.runtime.registry import REGISTRY
from svg_compile.runtime.steps import Decision

X = torch.zeros(1, 4, 2, 3, 4)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = registered()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        yield
    gc.collect()
    assert registered() == before, "a test left a schedule registered"


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
    """What each of several interleaved runs saw."""
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


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """The results of jobs that run in a thread each."""
    barrier = threading.Barrier(len(jobs))

    def start(job: Callable[[], Any]) -> Any:
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(start, job) for job in jobs]]


def decisions_of(run: Callable[[], Any]) -> list[Decision]:
    """The decisions of this thread's forwards."""
    seen: list[Decision] = []
    mine = threading.get_ident()
    with watch(lambda forward: seen.append(forward.decision) if threading.get_ident() == mine else None):
        run()
    return seen


@pytest.mark.parametrize("form", ["view", "copy"])
def test_threads_with_pipelines_of_their_own_over_one_model(form: str) -> None:
    model = StepModel(num_inference_steps=8)
    pipes = [Pipe(euler(shift), transformer=model) for shift in (5.0, 3.0, 7.0, 2.0)]
    counts = (12, 20, 8, 8)
    handles = [svg_compile.attach(pipe) for pipe in pipes[:2]]
    try:
        for _ in range(5):
            jobs = [
                lambda pipe=pipe, count=count: decisions_of(lambda: denoise(pipe, count, FORMS[form]))
                for pipe, count in zip(pipes, counts)
            ]
            for seen, count, attached in zip(together(*jobs), counts, (True, True, False, False)):
                assert [step for step, _ in places(seen)] == list(range(count))
                assert [d.dense for d in seen] == [step < -(-count // 4) for step in range(count)]
                # All runs have the same first timestep: any schedule that has just been set may give its step.
                assert {d.source for d in seen[1:]} == {"attached" if attached else "timestep"}
                assert not attached or {total for _, total in places(seen)[1:]} == {count}
    finally:
        for handle in handles:
            handle.remove()


def test_a_denoising_block_is_of_its_thread_and_its_tasks() -> None:
    model = StepModel(num_inference_steps=8)

    def loop(steps: int) -> list[Decision]:
        def run() -> None:
            with svg_compile.denoising(model, steps=steps) as told:
                for _ in range(steps):
                    model(X, torch.tensor([500.0]))
                    told.advance()

        return decisions_of(run)

    for seen, steps in zip(together(*(lambda n=n: loop(n) for n in (4, 9, 16))), (4, 9, 16)):
        assert places(seen) == [(step, steps) for step in range(steps)]
    with svg_compile.denoising(model, steps=4) as run:
        with pytest.raises(ScheduleError, match="in a run already"), svg_compile.denoising(model, steps=2):
            pass
        context = contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool, observe() as seen:
            pool.submit(context.run, model, X, torch.tensor([500.0])).result()
        assert [d.source for d in seen] == ["denoising"]
        said = pytest.warns(UserWarning, match="another thread or task")
        with said, ThreadPoolExecutor(1) as pool, observe() as seen:
            pool.submit(model, X, torch.tensor([500.0])).result()
        assert [d.source for d in seen] == ["timestep"]
        with observe() as seen:
            model(X, torch.tensor([1.0]))
        assert [d.source for d in seen] == ["denoising"]
        run.advance()


def test_tasks_are_counted_and_told_apart() -> None:
    model = StepModel(num_inference_steps=8)

    async def counted(steps: int) -> list[Decision]:
        seen = []
        for step in range(steps):
            with observe() as now:
                model(X.clone(), torch.tensor([1000.0 - 1000 / steps * step]))
            seen += now
            await asyncio.sleep(0)
        return seen

    async def told(steps: int) -> list[Decision]:
        seen = []
        with svg_compile.denoising(model, steps=steps) as run:
            for _ in range(steps):
                with observe() as now:
                    model(X.clone(), torch.tensor([5.0]))
                seen += now
                run.advance()
                await asyncio.sleep(0)
        return seen

    async def both(run: Callable[[int], Any]) -> list[list[Decision]]:
        return list(await asyncio.gather(*(run(steps) for steps in (8, 5, 11))))

    for seen, steps in zip(asyncio.run(both(counted)), (8, 5, 11)):
        assert places(seen) == [(step, 8) for step in range(steps)]
    for seen, steps in zip(asyncio.run(both(told)), (8, 5, 11)):
        assert places(seen) == [(step, steps) for step in range(steps)]


def test_models_that_share_a_parameter_are_told_apart_by_all_of_them() -> None:
    runtime = dispatcher(2, num_inference_steps=8)

    class Tied(nn.Module):
        def __init__(self, shared: nn.Parameter) -> None:
            super().__init__()
            self.embedding, self.own = shared, nn.Parameter(torch.zeros(1))

        def forward(self, timestep: Tensor) -> None:
            runtime(self.embedding, self.own, timestep, torch.zeros(1))

    shared = nn.Parameter(torch.zeros(1))
    one, other = Tied(shared), Tied(shared)
    with observe() as seen:
        for step in range(8):
            one(torch.tensor([1000.0 - 100 * step]))
            other(torch.tensor([990.0 - 90 * step]))
    assert [d.position.step for d in seen if d.position] == [step for step in range(8) for _ in range(2)]
    with svg_compile.denoising(one, steps=3) as run, observe() as seen:
        one(torch.tensor([1000.0]))
        other(torch.tensor([1000.0]))
        run.advance()
    assert [d.source for d in seen] == ["denoising", "timestep"]
    known = len(REGISTRY.bindings)
    del one, other
    gc.collect()
    assert len(REGISTRY.bindings) == known - 2


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


def play(times: list[float], **options: Any) -> list[str]:
    """The warnings of a model that is given these timesteps."""
    model = StepModel(**options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for time in times:
            model(torch.zeros(1), torch.tensor([time]))
    return [str(w.message) for w in caught if "svg" in str(w.message)]


def falling(steps: int, forwards: int = 1) -> list[float]:
    return [1000.0 - 900 * step / steps for step in range(steps) for _ in range(forwards)]


NEVER_SPARSE: dict[str, tuple[list[float], str]] = {
    "8 steps of 50": (falling(8) * 2, "all 8 steps.*num_inference_steps': 8"),
    "12 steps with guidance": (falling(12, 2) * 2, "all 12 steps"),
    "2 steps": ([1000.0, 500.0] * 3, "all 2 steps"),
    "1 step": ([1000.0] * 60, "forwards in a row were dense"),
    "alternating": ([900.0, 100.0] * 40, "all 2 steps"),
    "rolling": ([1000.0] * 80, "do not tell the steps"),
    "rising": (falling(9)[::-1], "rise from forward to forward"),
}


@pytest.mark.parametrize("case", NEVER_SPARSE)
def test_a_run_without_a_sparse_step_says_so_once(case: str) -> None:
    times, message = NEVER_SPARSE[case]
    said = play(times * 3)
    assert len([text for text in said if "rise" in text or "dense" in text]) <= 2
    assert any(re.search(message, text) for text in said), said


@pytest.mark.parametrize("guidance", [1, 2, 3])
def test_runs_as_long_as_asked_say_nothing(guidance: int) -> None:
    for dense in (0.25, 0.9, 3, 0):
        assert play(falling(50, guidance) * 3, dense_steps=dense) == []
    assert play([500.0, *falling(50, guidance) * 2]) == [], "a warm-up"


def test_an_attached_run_says_so_at_its_last_step_where_all_its_steps_are_asked_to_be_dense() -> None:
    for steps, dense, says in ((1, 0.25, True), (4, 6, True), (4, 3, False), (8, 0.25, False)):
        pipe = Pipe(euler(), transformer=StepModel(dense_steps=dense))
        with svg_compile.attach(pipe), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                denoise(pipe, steps, FORMS["view"])
        said = [str(w.message) for w in caught if "svg" in str(w.message)]
        assert len(said) == says, (steps, dense, said)
