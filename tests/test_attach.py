"""`attach` and `denoising`: the step of a forward, and the state when they end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import svg_compile
from lowering import itself, watch
from pipelines import TimedDiT
from svg_compile import ScheduleError
from svg_compile.runtime import dispatcher as schedule
from svg_compile.runtime.dispatcher import Decision
from toy import latents
from traced import answer_with_zeros

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise", "strict": True}
TIMES = (1000.0, 750.5, 500.0, 2.5)


pytestmark = pytest.mark.usefixtures("no_schedule_left", "fresh_dynamo")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[fx.GraphModule]:
    return watch(monkeypatch, itself, lambda graph_module, inputs, patches: answer_with_zeros(graph_module))


def steps(decisions: list[Decision]) -> list[tuple[int, bool]]:
    return [(d.position.step, d.dense) for d in decisions if d.position is not None]


class Stop(Exception):
    pass


def fail(_: object) -> None:
    raise Stop


class Scheduler:
    """A minimal scheduler with a step index."""

    def __init__(self) -> None:
        self.timesteps = torch.arange(1000.0)
        self.num_inference_steps: int | None = None
        self.step_index: int | None = None
        self.begin_index: int | None = None

    def set_timesteps(self, count: int) -> None:
        self.num_inference_steps, self.step_index = count, None
        self.timesteps = torch.linspace(1000, 1, count)

    def step(self) -> None:
        self.step_index = (self.begin_index or 0) + 1 if self.step_index is None else self.step_index + 1


class Pipe:
    """A minimal pipeline: a scheduler and components."""

    def __init__(self, scheduler: Any, **components: Any) -> None:
        self.scheduler = scheduler
        vars(self).update(components)


def toy_pipe(**components: Any) -> Any:
    return Pipe(Scheduler(), **components)


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="svg", dynamic=False, options={**OPTIONS, "dense_steps": 2, **options})


def run(pipe: Any, count: int, model: Any = None) -> None:
    pipe.scheduler.set_timesteps(count)
    for t in pipe.scheduler.timesteps:
        (model or pipe.transformer)(latents(), t)
        pipe.scheduler.step()


@pytest.mark.parametrize("where", ["before", "after", "in place"])
def test_attach_may_come_before_or_after_the_compile(where: str, built: list[fx.GraphModule]) -> None:
    model = TimedDiT()
    pipe = toy_pipe(transformer=model)
    if where != "before":
        pipe.transformer = compiled(model)
        run(pipe, 3)
    with svg_compile.attach(pipe):
        if where == "before":
            pipe.transformer = compiled(model)
        if where == "in place":
            torch._dynamo.reset()
            pipe.transformer = model
            model.compile(backend="svg", options={**OPTIONS, "dense_steps": 2})
        with schedule.observe() as seen:
            run(pipe, 3)
    assert [(d.source, d.dense) for d in seen] == [("attached", dense) for dense in (True, True, False)]


def test_replaced_parameters_are_found_again(built: list[fx.GraphModule]) -> None:
    model = TimedDiT()
    pipe = toy_pipe(transformer=compiled(model))
    with svg_compile.attach(pipe), schedule.observe() as seen:
        run(pipe, 3)
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
        run(pipe, 3)
    assert {d.source for d in seen} == {"attached"}


def test_two_pipelines_and_a_transformer_shared_by_them(built: list[fx.GraphModule]) -> None:
    one, other = (toy_pipe(transformer=compiled(TimedDiT(seed))) for seed in (0, 1))
    third = toy_pipe(transformer=one.transformer)
    for pipe, count in ((one, 4), (other, 8)):
        pipe.scheduler.set_timesteps(count)
    with svg_compile.attach(one), svg_compile.attach(other), schedule.observe() as seen:
        for step in range(8):
            for pipe in (one, other) if step < 4 else (other,):
                pipe.transformer(latents(), pipe.scheduler.timesteps[step])
                pipe.scheduler.step()
        interleaved = [d.position for d in seen]
        # The pipeline attached last drives a transformer that two hold.
        with svg_compile.attach(third):
            run(third, 3)
        run(one, 4)
    assert [p.step for p in interleaved if p and p.total == 4] == list(range(4))
    assert [p.step for p in interleaved if p and p.total == 8] == list(range(8))
    assert [d.position.total for d in seen[12:] if d.position] == [3] * 3 + [4] * 4


def test_outside_of_a_run_an_attached_model_counts_its_timesteps(built: list[fx.GraphModule]) -> None:
    pipe = toy_pipe(transformer=compiled(TimedDiT()))
    with svg_compile.attach(pipe), schedule.observe() as seen:
        pipe.transformer(latents(), torch.tensor(500.0))
        run(pipe, 2)
        pipe.transformer(latents(), torch.tensor(400.0))
    assert [d.source for d in seen] == ["timestep", "attached", "attached", "timestep"]


def test_a_scheduler_without_a_step_index_is_asked_by_value(built: list[fx.GraphModule]) -> None:
    class NoStep(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = TimedDiT()

        def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
            return self.inner(latents, timestep)

    scheduler = SimpleNamespace(timesteps=torch.tensor([999, 997, 994, 3]))
    pipe = Pipe(scheduler, transformer=compiled(NoStep()))
    with svg_compile.attach(pipe), schedule.observe() as seen:
        for value in (999, 994, 999, 3):
            pipe.transformer(latents(), torch.tensor([value]))
        # None of the schedule's: counted instead.
        pipe.transformer(latents(), torch.tensor([500]))
        scheduler.timesteps = torch.tensor([500])
        pipe.transformer(latents(), torch.tensor([500]))
    assert [d.position.step for d in seen if d.position] == [0, 2, 0, 3, 0, 0]
    assert [d.source for d in seen] == ["attached"] * 4 + ["timestep", "attached"]


@pytest.mark.parametrize("pipe", [object(), Pipe(None), toy_pipe(vae=torch.nn.Linear(2, 2))])
def test_attach_refuses_what_it_cannot_serve(pipe: Any) -> None:
    with pytest.raises(ScheduleError, match=r"denoising\(model, steps=\.\.\.\)"):
        svg_compile.attach(pipe)


def test_denoising_tells_the_steps_whatever_the_timesteps_are(built: list[fx.GraphModule], reads: list[float]) -> None:
    high, low = compiled(TimedDiT(), dense_steps=0.5), compiled(TimedDiT(seed=1), dense_steps=0.5)
    with schedule.observe() as seen:
        for start in (0, 0, 2):
            with svg_compile.denoising(high, low, steps=6, start=start) as run:
                for step in range(start, 6):
                    for _guidance in range(2):
                        (high if step < 4 else low)(latents(), torch.tensor([float(step)]))
                    run.advance()
        high(latents(), torch.tensor([7.0]))
    forwards = [(step, step < 3) for start in (0, 0, 2) for step in range(start, 6) for _ in range(2)]
    assert steps(seen) == [*forwards, (0, True)]
    assert [d.source for d in seen] == ["denoising"] * len(forwards) + ["timestep"]
    assert reads == [7.0]


def test_denoising_refuses_misuse(built: list[fx.GraphModule]) -> None:
    model = compiled(TimedDiT())
    for wrong in (0, -1, 2.0, True, None):
        with pytest.raises(ScheduleError, match="steps must be an integer of at least 1"):
            svg_compile.denoising(model, steps=wrong)  # type: ignore[arg-type]
    with pytest.raises(ScheduleError, match="start must be below steps"):
        svg_compile.denoising(model, steps=4, start=4)
    with pytest.raises(ScheduleError, match="at least one model"):
        svg_compile.denoising(steps=4)
    for thing in (torch.nn.ReLU(), lambda x: x):
        with pytest.raises(ScheduleError, match="modules with parameters"):
            svg_compile.denoising(thing, steps=4)  # type: ignore[arg-type]
    run = svg_compile.denoising(model, steps=2)
    with pytest.raises(ScheduleError, match="outside of its `with` block"):
        run.advance()
    with run:
        with pytest.raises(ScheduleError, match="in a run already"), svg_compile.denoising(model, steps=2):
            pass
        model(latents(), torch.tensor(9.0))
        run.advance()
        run.advance()
        with pytest.raises(ScheduleError, match="more than 2 times"):
            run.advance()
        with pytest.raises(ScheduleError, match="after all 2 steps"):
            model(latents(), torch.tensor(9.0))
    with pytest.raises(ScheduleError, match="outside of its `with` block"):
        run.advance()
    with pytest.raises(ScheduleError, match="used once"), run:
        pass
    with svg_compile.denoising(model, steps=3) as early:
        early.advance()
        with pytest.raises(ScheduleError, match="before the first forward"):
            model(latents(), torch.tensor(9.0))
    with pytest.warns(UserWarning, match="never called"), svg_compile.denoising(model, steps=3):
        model(latents(), torch.tensor(9.0))
    # An error in the loop itself is raised unchanged, and leaves no run behind.
    with pytest.raises(Stop), svg_compile.denoising(model, steps=3):
        fail(model(latents(), torch.tensor(9.0)))


@pytest.mark.parametrize("how", ["attach", "denoising"])
def test_with_inductor_the_dense_steps_are_inductors(how: str) -> None:
    x = latents()
    model = compiled(TimedDiT())
    pipe = toy_pipe(transformer=model)
    pipe.scheduler.set_timesteps(3)
    times = [t.reshape(1) for t in pipe.scheduler.timesteps]
    dense = [torch.compile(TimedDiT(), backend="inductor")(x, t) for t in times]
    torch._dynamo.reset()
    sparse = compiled(TimedDiT(), dense_steps=0)(x, times[2])
    torch._dynamo.reset()
    out = []
    with svg_compile.attach(pipe) if how == "attach" else svg_compile.denoising(model, steps=3) as tie:  # type: ignore[arg-type]
        for t in times:
            out.append(model(x, t))
            pipe.scheduler.step() if how == "attach" else tie.advance()  # type: ignore[union-attr]
    assert [torch.equal(*pair) for pair in zip(out, dense, strict=True)] == [True, True, False]
    assert torch.equal(out[2], sparse)


def test_the_name_stays_a_function_after_its_module_is_imported() -> None:
    import svg_compile.runtime.sources

    assert svg_compile.attach is svg_compile.runtime.sources.attach
    assert svg_compile.denoising is svg_compile.runtime.sources.denoising


def test_the_docs_snippet_runs(built: list[fx.GraphModule]) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "schedule.md").read_text()
    snippet = page.split("```python\n")[1].split("```")[0]
    exec(compile(snippet, "docs/schedule.md", "exec"), {})
    assert len(built) == 2
