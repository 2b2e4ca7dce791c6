"""Plans kept between profiles: their model and layer, their lifetime, and when they apply."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import fx

import svg_compile
from lowering import itself, watch
from pipelines import TimedDiT
from svg_compile import HeadKind
from svg_compile.runtime import dispatcher as schedule
from svg_compile.runtime.dispatcher import Forward
from svg_compile.runtime.sparse_variant import KeptPlans
from test_plans_over_steps import LAYOUT, compiled, forwards, profiled
from toy import latents

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[fx.GraphModule]:
    return watch(monkeypatch, itself)


def test_kinds_are_kept_between_profiles_and_the_width_follows_the_step(built: list[fx.GraphModule]) -> None:
    run = compiled(TimedDiT(), profile_every=3, density=[(0.0, 0.9), (0.5, 0.3)], widths="uniform")
    seen = forwards(run, 8)
    assert profiled(seen) == [step % 3 == 0 for step in range(8)]
    kinds = [torch.stack(forward.plans)[..., 0] for forward in seen]
    for step in range(8):
        assert torch.equal(kinds[step], kinds[step - step % 3])
        density = 0.9 if step < 4 else 0.3
        wide = [LAYOUT.half_width_for(density, HeadKind(int(kind))) for kind in kinds[step].flatten()]
        assert torch.stack(seen[step].plans)[..., 1].flatten().tolist() == wide
    assert len(built) == 1


def test_half_widths_by_need_are_kept_until_the_density_changes(built: list[fx.GraphModule]) -> None:
    run = compiled(TimedDiT(), profile_every=5, density=[(0.0, 0.7), (0.5, 0.4)])
    seen = forwards(run, 8)
    assert profiled(seen) == [True, False, False, False, True, False, False, False]
    for step, forward in enumerate(seen):
        assert all(map(torch.equal, forward.plans, seen[step // 4 * 4].plans))
        for plan in forward.plans:
            mean = sum(LAYOUT.density(int(width), int(kind)) for kind, width in plan[0]) / plan.shape[1]
            assert mean <= (0.7 if step < 4 else 0.4) + 1e-6
    assert len(built) == 1


def test_each_forward_of_a_step_keeps_its_own_plans(built: list[fx.GraphModule]) -> None:
    run = compiled(TimedDiT(), profile_every=4, sampled_rows=2)
    seen = forwards(run, 4, calls=2)
    assert profiled(seen) == [True, True] + [False] * 6
    for call in (0, 1):
        for forward in seen[call::2]:
            assert all(map(torch.equal, forward.plans, seen[call].plans))


def test_a_kept_plan_gives_what_a_profile_would_where_nothing_changes(built: list[fx.GraphModule]) -> None:
    model = TimedDiT()
    outputs = {}
    for every in (1, 4):
        # With a repair the steps that profile also have the dense output of the sampled rows, which no step keeps.
        run = compiled(model, profile_every=every, repair=False)
        outputs[every] = []
        with svg_compile.denoising(model, steps=4) as denoising:
            for _ in range(4):
                outputs[every].append(run(latents(), torch.tensor([500.0])))
                denoising.advance()
    assert all(map(torch.equal, outputs[1], outputs[4]))


def test_repairs_are_kept_as_long_as_the_kinds(built: list[fx.GraphModule]) -> None:
    model = TimedDiT()
    errors = {}
    exact = model(latents(), torch.tensor([500.0]))
    for repair in (True, False):
        run = compiled(model, profile_every=3, repair=repair, density=[(0.0, 0.5), (0.75, 0.3)], sampled_rows=16)
        with svg_compile.denoising(model, steps=4) as denoising:
            errors[repair] = []
            for _ in range(4):
                errors[repair].append(float((run(latents(), torch.tensor([500.0])) - exact).square().mean()))
                denoising.advance()
    profiled, *kept, other_width = zip(errors[True], errors[False], strict=True)
    assert all(mended < 0.9 * bare for mended, bare in (profiled, *kept, other_width))
    assert kept[0] == kept[1]
    assert len(built) == 2


def test_a_kept_fit_is_not_used_for_another_width(built: list[fx.GraphModule]) -> None:
    model = TimedDiT()
    outputs = {}
    for repair in (True, False):
        run = compiled(model, profile_every=4, repair=repair, density=[(0.0, 0.5), (0.75, 0.3)], widths="uniform")
        with svg_compile.denoising(model, steps=4) as denoising:
            outputs[repair] = []
            for _ in range(4):
                outputs[repair].append(run(latents(), torch.tensor([500.0])))
                denoising.advance()
    assert torch.equal(outputs[True][3], outputs[False][3])
    assert not torch.equal(outputs[True][2], outputs[False][2])


def test_plans_never_outlive_a_run(built: list[fx.GraphModule]) -> None:
    run = compiled(TimedDiT(), profile_every=10)
    assert profiled(forwards(run, 4)) == [True, False, False, False]
    # The next run is profiled anew, also where it begins at a later step than the last one ended.
    assert profiled(forwards(run, 9, start=6)) == [True, False, False]
    with contextlib.suppress(KeyError), svg_compile.denoising(run, steps=20, start=10):
        run(latents(), torch.tensor([500.0]))
        raise KeyError
    assert profiled(forwards(run, 20, start=11))[:2] == [True, False]


def test_without_a_schedule_a_rise_of_the_timestep_profiles_anew(built: list[fx.GraphModule]) -> None:
    run = compiled(TimedDiT(), profile_every=10, num_inference_steps=4)
    seen: list[Forward] = []
    with schedule.watch(seen.append):
        for time in (900.0, 600.0, 300.0, 900.0, 600.0, 300.0):
            run(latents(), torch.tensor([time]))
    # Nothing is kept of a counted run's first step: the next test says why.
    assert profiled(seen) == [True, True, False, True, True, False]


def test_without_a_schedule_a_warm_up_leaves_no_plans_to_the_run(built: list[fx.GraphModule]) -> None:
    run = compiled(TimedDiT(), profile_every=10, num_inference_steps=4, sampled_rows=2)
    run(latents(seed=9), torch.tensor([900.0]))
    seen: list[Forward] = []
    with schedule.watch(seen.append):
        for time in (900.0, 600.0, 300.0):
            for call in range(2):
                run(latents(seed=call), torch.tensor([time]))
    assert profiled(seen) == [True] * 4 + [False] * 2
    for call in range(2):
        assert all(map(torch.equal, seen[4 + call].plans, seen[2 + call].plans))


def test_models_that_share_a_graph_keep_their_own_plans(built: list[fx.GraphModule]) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList([TimedDiT(), TimedDiT()])

    two = Two()
    runs = [compiled(part, profile_every=2, sampled_rows=2) for part in two.parts]
    seen: list[Forward] = []
    with schedule.watch(seen.append), svg_compile.denoising(*two.parts, steps=2) as denoising:
        for _ in range(2):
            for seed, run in enumerate(runs):
                run(latents(seed=seed), torch.tensor([500.0]))
            denoising.advance()
    assert profiled(seen) == [True, True, False, False]
    for before, after in zip(seen[:2], seen[2:], strict=True):
        assert all(map(torch.equal, before.plans, after.plans))


def test_another_resolution_in_the_middle_has_its_own_plans(built: list[fx.GraphModule]) -> None:
    run = compiled(TimedDiT(), profile_every=10)
    seen: list[Forward] = []
    with schedule.watch(seen.append), svg_compile.denoising(run, steps=4) as denoising:
        for frames, batch in ((5, 1), (6, 1), (6, 2), (5, 1)):
            run(latents(batch, frames), torch.full((batch,), 500.0))
            denoising.advance()
    assert profiled(seen) == [True, True, True, False]


def test_what_is_kept_is_bounded() -> None:
    kept = KeptPlans()
    for _ in range(50):
        call = kept.enter(0)
        if kept.due(call, 5, None):
            kept.keep(call, 0, ())
    assert len(kept.profiled) == 8
