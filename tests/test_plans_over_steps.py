"""Density that changes over the steps, and plans kept between profiles: both data, neither a recompile.

Unless a test says otherwise Inductor is replaced by the traced graph itself, so that a compile costs a trace.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import svg_compile
from lowering import itself, watch
from pipelines import TimedDiT
from svg_compile import HeadKind, VideoLayout
from svg_compile.config import SvgConfig
from svg_compile.runtime import dispatcher as schedule
from svg_compile.runtime.dispatcher import Forward
from svg_compile.runtime.sparse_variant import KeptPlans
from toy import latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise", "dense_steps": 0}
LAYOUT = VideoLayout(5, 7, 3, block=8)


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[fx.GraphModule]:
    return watch(monkeypatch, itself)


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="svg", fullgraph=True, dynamic=False, options={**OPTIONS, **options})


def forwards(run: Any, steps: int, calls: int = 1, start: int = 0, changes: bool = True) -> list[Forward]:
    """The record of every forward of a run; its latents change from step to step and call to call."""
    seen: list[Forward] = []
    with schedule.watch(seen.append), svg_compile.denoising(run, steps=steps, start=start) as denoising:
        for step in range(start, steps):
            for call in range(calls):
                run(latents(seed=10 * step + call if changes else 0), torch.tensor([500.0]))
            denoising.advance()
    return seen


def profiled(seen: list[Forward]) -> list[bool]:
    return [not torch.isnan(torch.stack(forward.errors)).any().item() for forward in seen]


def test_a_run_holds_no_plans_after_its_last_step() -> None:
    kept = KeptPlans()
    for step in range(4):
        call = kept.enter(step)
        if kept.due(call, 2, None):
            kept.keep(call, 0, (torch.zeros(1),))
        assert len(kept.profiled[call].plans) == 1
    kept.release(call)
    assert kept.profiled[call].plans == ()
    assert kept.due(call, 2, None)


def test_plans_of_half_widths_by_need_serve_one_density() -> None:
    kept = KeptPlans()
    for step, stage, due in ((0, 0, True), (1, 0, False), (2, 1, True), (3, 1, False)):
        call = kept.enter(step)
        assert kept.due(call, 5, stage) is due
        # A plan whose half-widths follow from its kinds serves all densities.
        assert kept.due(call, 5, None) is (step == 0)
        if due:
            kept.keep(call, stage, ())


def widths(plans: tuple[Tensor, ...]) -> set[tuple[int, int]]:
    return {(int(kind), int(width)) for plan in plans for kind, width in plan.flatten(0, 1)}


@pytest.mark.parametrize("dynamic", [False, True])
def test_each_step_has_the_density_of_its_fraction(built: list[fx.GraphModule], dynamic: bool) -> None:
    density = [(0.0, 0.9), (0.3, 0.5), (0.75, 0.25)]
    model = TimedDiT()
    run = torch.compile(
        model, backend="svg", dynamic=dynamic, options={**OPTIONS, "density": density, "widths": "uniform"}
    )
    for steps, expected in ((10, [0.9] * 3 + [0.5] * 5 + [0.25] * 2), (4, [0.9, 0.9, 0.5, 0.25])):
        seen = forwards(run, steps)
        assert all(profiled(seen))
        for forward, want in zip(seen, expected, strict=True):
            allowed = {(int(kind), LAYOUT.half_width_for(want, kind)) for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL)}
            assert widths(forward.plans) <= allowed
    assert len(built) == 1


def test_a_list_of_one_density_is_that_density(built: list[fx.GraphModule]) -> None:
    model = TimedDiT()
    outputs = [compiled(model, density=density)(latents(), torch.tensor([500.0])) for density in (0.4, [(0.0, 0.4)])]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_inductor_runs_both_and_nothing_recompiles_or_grows(dynamic: bool) -> None:
    density = [(0.0, 0.9), (0.5, 0.3)]
    model = TimedDiT()
    options = {**OPTIONS, "density": density, "profile_every": 2, "dense_steps": 1}
    run = torch.compile(model, backend="svg", dynamic=dynamic, options=options)
    exact = compiled(model, density=density, profile_every=2, dense_steps=1, engine="reference")
    inputs = latents(), torch.tensor([500.0])
    with svg_compile.denoising(model, steps=6) as denoising:
        for step in range(6):
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                got = run(*inputs)
            torch.testing.assert_close(got, exact(*inputs), rtol=1e-4, atol=1e-4)
            denoising.advance()
    counts = []
    for _ in range(22):
        forwards(run, 6)
        gc.collect()
        counts.append(len(gc.get_objects()))
    # A few runs are remembered by number; what they kept is gone with their last step.
    assert counts[-1] - counts[16] < 20


@torch.compiler.nested_compile_region
def region(x: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (x, x * 2, x + 1))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_a_child_graph_is_refused_where_it_would_need_the_step() -> None:
    class Nested(TimedDiT):
        def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
            x = self.patch(latents).flatten(2).transpose(1, 2)
            return region(x) + region(x + 1)

    model = Nested()
    inputs = latents(), torch.tensor([500.0])
    assert svg_compile.explain(model, *inputs, options=OPTIONS).rewritten
    report = svg_compile.explain(model, *inputs, options={**OPTIONS, "profile_every": 2})
    assert {site.reason for site in report.sites} == {svg_compile.Reason.HIGHER_ORDER}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "pairs"),
        ([(0.0, 0.5), 0.3], "pairs"),
        ([(0.1, 0.5)], r"first fraction 0\.0"),
        ([(0.0, 0.0)], "above 0"),
        ([(0.0, 1.5)], "up to 1"),
        ([(0.0, 0.5), (0.5, 0.4), (0.5, 0.3)], "rise"),
        ([(0.0, 0.5), (1.0, 0.3)], "below 1"),
        ([(0.0, True)], "pairs"),
        ("half", "pairs"),
    ],
)
def test_a_bad_density_says_what_was_expected(value: object, expected: str) -> None:
    with pytest.raises(svg_compile.OptionError, match=expected):
        SvgConfig.from_options({"density": value})
