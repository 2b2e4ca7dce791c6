"""Steps counted from a forward's own timestep, the two variants and the dispatcher between them.

Unless a test says otherwise Inductor is replaced by the traced graph itself, so that a compile costs a trace.
"""

from __future__ import annotations

import gc
import logging
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lowering import kind, watch
from pipelines import TimedDiT
from svg_compile import backend
from svg_compile.config import SvgConfig
from svg_compile.passes.expose_plans import PlanPorts
from svg_compile.runtime import dispatcher as schedule
from svg_compile.runtime.dispatcher import Decision, Dispatcher, StepCounter
from svg_compile.runtime.registry import REGISTRY
from svg_compile.runtime.sparse_variant import SparseGraph
from svg_compile.runtime.timestep import Timestep
from toy import ToyVideoDiT, latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise", "dense_steps": 2}
TIMES = (1000.0, 750.5, 500.0, 2.5)
DENSE_THEN_SPARSE = [(0, True), (1, True), (2, False), (3, False)]


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


TOKENS = 5 * 7 * 3


FORMS: dict[str, Callable[[float], Any]] = {
    "scalar": lambda t: torch.tensor(t),
    "one": lambda t: torch.tensor([t]),
    "sample": lambda t: torch.full((2,), t),
    "integers": lambda t: torch.full((2,), round(t)),
    "from 0 to 1": lambda t: torch.full((2,), t / 1000),
    "bfloat16": lambda t: torch.full((2,), t, dtype=torch.bfloat16),
    "token, first frame clean": lambda t: torch.cat([torch.zeros(2, 21), torch.full((2, TOKENS - 21), t)], 1),
    "number": lambda t: t,
    "whole number": lambda t: round(t),
}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return watch(monkeypatch, kind)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return watch(monkeypatch, kind, backend.lower)


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="svg", fullgraph=True, dynamic=False, options={**OPTIONS, **options})


def steps(decisions: list[Decision]) -> list[tuple[int, bool]]:
    return [(d.position.step, d.dense) for d in decisions if d.position is not None]


def test_equal_is_the_same_step_smaller_the_next_larger_a_new_run() -> None:
    counter = StepCounter()
    seen = [counter.count(value) for value in (1000, 1000, 900, 900, 20, 20, 1000, 400, 1000, 1000, 999.5, 1)]
    assert seen == [0, 0, 1, 1, 2, 2, 0, 1, 0, 0, 1, 2]
    assert StepCounter().count(0.0) == 0
    # A timestep that is no number starts a run: dense is the safe side.
    assert [counter.count(float("nan")) for _ in range(2)] == [0, 0]


def test_a_fraction_is_the_first_ceil_of_it_and_float_fuzz_adds_no_step() -> None:
    def until(dense_steps: float, total: int) -> int:
        return SvgConfig(dense_steps=dense_steps).dense_until(total)

    assert [until(0.25, n) for n in (1, 4, 10, 50)] == [1, 1, 3, 13]
    assert (until(0.1, 30), until(0.1 + 0.2, 10), until(0.7, 10), until(1 / 3, 3), until(1e-6, 50)) == (3, 3, 7, 1, 1)
    assert [until(3, n) for n in (1, 4, 50)] == [3, 3, 3]
    for total in range(1, 101):
        assert [until(k / total, total) for k in range(total + 1)] == list(range(total + 1))


def test_without_a_timestep_every_step_is_sparse_and_one_warning_says_what_to_do(built: list[str]) -> None:
    model = compiled(ToyVideoDiT())
    with schedule.observe() as seen, pytest.warns(UserWarning, match=r"attach\(pipe\).*'dense_steps': 0") as caught:
        [model(latents(1, *shape)) for shape in [(5, 7, 3), (5, 7, 3), (6, 4, 3)]]
    assert len([w for w in caught if "svg" in str(w.message)]) == 1
    assert seen == [Decision(None, False, "unknown")] * 3
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        torch._dynamo.reset()
        compiled(ToyVideoDiT(), dense_steps=0)(latents())


def test_timesteps_that_rise_stay_dense_and_one_warning_says_so(built: list[str]) -> None:
    model, x = compiled(TimedDiT()), latents()
    with schedule.observe() as seen, pytest.warns(UserWarning, match="timesteps of this model rise") as caught:
        [model(x, torch.tensor([time / 10])) for time in range(10)]
    assert len([w for w in caught if "svg" in str(w.message)]) == 1
    assert all(d.dense for d in seen)


def test_two_models_that_share_one_graph_count_apart(built: list[str]) -> None:
    one, other, x = compiled(TimedDiT()), compiled(TimedDiT(seed=1)), latents()
    with schedule.observe() as seen:
        for time in TIMES:
            one(x, torch.tensor([time]))
    assert steps(seen) == DENSE_THEN_SPARSE
    with schedule.observe() as seen:
        for time in (300.0, 200.0, 100.0):
            other(x, torch.tensor([time]))
            one(x, torch.tensor([2.0]))
    # The other one's schedule begins below the first one's end; neither moves the other.
    assert steps(seen) == [(0, True), (4, False), (1, True), (4, False), (2, False), (4, False)]
    assert built == ["dense", "sparse"], "the models no longer share a graph: the test is blind"


def test_a_recompile_in_the_middle_of_a_run_goes_on_counting(built: list[str]) -> None:
    model = compiled(TimedDiT())
    shapes = [(5, 7, 3), (6, 4, 3), (5, 7, 3), (7, 4, 4)]
    with schedule.observe() as seen:
        for time, shape in zip(TIMES, shapes):
            model(latents(1, *shape), torch.tensor([time]))
    assert steps(seen) == DENSE_THEN_SPARSE
    assert len(built) == 6


def bare(latents: Tensor, timestep: Tensor) -> Tensor:
    x = latents.flatten(2).transpose(1, 2).unflatten(-1, (2, 2)).transpose(1, 2) * torch.cos(timestep)
    return torch.nn.functional.scaled_dot_product_attention(x, x, x)


def test_a_graph_without_parameters_counts_for_itself(built: list[str]) -> None:
    run = torch.compile(bare, backend="svg", options=OPTIONS)
    known = len(REGISTRY.bindings)
    with schedule.observe() as seen:
        for time in TIMES:
            run(latents(), torch.tensor([time]))
    assert steps(seen) == DENSE_THEN_SPARSE
    assert len(REGISTRY.bindings) == known


@pytest.mark.parametrize("form", ["scalar", "sample", "token, first frame clean"])
def test_a_forward_reads_its_timestep_once_and_nothing_else(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        real = getattr(Tensor, name)

        def spy(self: Tensor, *args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
            reads.append(name)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, spy)
    key = torch.nn.Parameter(torch.zeros(1))
    config = SvgConfig(dense_steps=2)
    sparse = SparseGraph(lambda *a: ("sparse",), PlanPorts(outputs=1), config)
    dispatch = Dispatcher(lambda *a: ("dense",), sparse, config, Timestep("t", 1), (0,))
    ran = [dispatch(key, FORMS[form](time))[0] for time in TIMES]
    assert ran == ["dense", "dense", "sparse", "sparse"]
    assert reads == ["tolist"] * 4


def test_decisions_are_logged_one_line_a_forward(built: list[str], caplog: pytest.LogCaptureFixture) -> None:
    model = compiled(TimedDiT(), num_inference_steps=40)
    with caplog.at_level(logging.DEBUG, logger="svg_compile.runtime.dispatcher"):
        for time in TIMES:
            model(latents(), torch.tensor([time]))
    lines = [record.getMessage() for record in caplog.records if record.name == "svg_compile.runtime.dispatcher"]
    kinds = {True: "dense", False: "sparse"}
    assert lines == [f"step {step} of 40 (timestep): {kinds[dense]}" for step, dense in DENSE_THEN_SPARSE]


def objects_after(run: Callable[..., Any], runs: int) -> int:
    for time in TIMES * runs:
        run(latents(), torch.tensor([time]))
    gc.collect()
    return len(gc.get_objects())


def test_twenty_runs_and_a_deleted_model_leave_nothing_behind(built: list[str]) -> None:
    states = REGISTRY.bindings
    gc.collect()
    before = len(states), len(REGISTRY.models)
    model = TimedDiT()
    run = compiled(model)
    # Sixteen runs are remembered by number; what they kept is gone with their last step.
    objects_after(run, runs=17)
    once = objects_after(run, runs=1)
    assert objects_after(run, runs=20) - once < 20
    assert len(states) == before[0] + 1
    model.to(torch.float32)
    gone = weakref.ref(model)
    del model, run
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None
    assert (len(states), len(REGISTRY.models)) == before


def test_dense_steps_equal_inductor_bit_for_bit_and_sparse_ones_the_sparse_model(counted: list[str]) -> None:
    x, times = latents(batch=2), [torch.full((2,), t) for t in TIMES]
    inductor = torch.compile(TimedDiT(), backend="inductor")
    dense = [inductor(x, t) for t in times]
    torch._dynamo.reset()
    sparse_only = compiled(TimedDiT(), dense_steps=0)
    sparse = [sparse_only(x, t) for t in times]
    assert counted == ["sparse"], "a dense variant was built for no step"
    torch._dynamo.reset()
    counted.clear()
    both = compiled(TimedDiT())
    out = [both(x, t) for t in times]
    assert counted == ["dense", "sparse"]
    assert all(torch.equal(a, b) for a, b in zip(out, [*dense[:2], *sparse[2:]]))
    assert not torch.equal(dense[2], sparse[2])
    torch._dynamo.reset()
    counted.clear()
    all_dense = compiled(TimedDiT(), dense_steps=1.0, strict=True)
    assert all(torch.equal(all_dense(x, t), expected) for t, expected in zip(times, dense))
    assert counted == ["dense"], "a sparse variant was built for no step"


def test_both_variants_are_right_at_every_resolution_of_one_dynamic_graph(counted: list[str]) -> None:
    shapes = [(5, 7, 3), (6, 9, 4), (7, 5, 6)]
    inductor = torch.compile(TimedDiT(), backend="inductor", dynamic=True)
    dense = [inductor(latents(1, *shape), torch.tensor([900.0])) for shape in shapes]
    torch._dynamo.reset()
    model = torch.compile(TimedDiT(), backend="svg", dynamic=True, options=OPTIONS)
    alone = torch.compile(TimedDiT(), backend="svg", dynamic=False, options={**OPTIONS, "dense_steps": 0})
    for shape, expected in zip(shapes, dense):
        x = latents(1, *shape)
        # The first two of each run are dense.
        assert torch.equal(model(x, torch.tensor([900.0])), expected)
        model(x, torch.tensor([800.0]))
        torch.testing.assert_close(model(x, torch.tensor([1.0])), alone(x, torch.tensor([1.0])), atol=2e-5, rtol=2e-5)
    assert counted.count("dense") == 1
