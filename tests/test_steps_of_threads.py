"""The step of a forward if threads and tasks run pipelines concurrently. No graph is compiled."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svg_compile
from scheduler_runs import denoise
from step_models import FORMS, Pipe, StepModel, dispatcher
from svg_compile import ScheduleError
from svg_compile.runtime.dispatcher import observe, watch
from svg_compile.runtime.registry import REGISTRY
from svg_compile.runtime.steps import Decision
from test_whose_step import X, euler, places

# A warning of ours is an error, where a test does not expect it.
pytestmark = [pytest.mark.usefixtures("no_schedule_left"), pytest.mark.filterwarnings("error:svg")]


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
