"""Half-widths by need: the missing mass of the profile, the division of pairs among heads, and kept plans."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import svg_compile
from strategies import Problem, problems
from svg_compile.errors import LayoutError
from svg_compile.kernels import ops, reference
from svg_compile.kernels.cpu.profile import profile_rows
from svg_compile.kernels.plan import plan_from_errors
from svg_compile.kernels.widths import (
    FILLS,
    LADDER,
    UNIFORM,
    estimated_errors,
    ladder,
    ladder_cost,
    plan_by_need,
    shares_of_layers,
)
from svg_compile.layout import HeadKind, VideoLayout

LAYOUT = VideoLayout(9, 8, 8, text_len=5, block=8)


def found_by_a_profile(heads: int, seed: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    """(errors [B, H, 2], missing [B, H, 2, rungs]) as a profile may find them: what is missing falls with the width."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(batch, heads, 2, len(LADDER), generator=generator) ** 4
    missing = steps.flip(-1).cumsum(-1).flip(-1) * torch.rand(batch, heads, 2, 1, generator=generator) ** 2
    return torch.rand(batch, heads, 2, generator=generator) ** 3, missing


def mean_density(plan: Tensor, layout: VideoLayout) -> float:
    densities = [layout.density(half_width, kind) for kind, half_width in plan.tolist()]
    return sum(densities) / len(densities)


def estimate(plan: Tensor, need: Tensor, layout: VideoLayout, density: float) -> float:
    """The errors [H, 2 * rungs] of the entries of a plan [H, 2], added up; the least of rungs of one half-width."""
    widths = torch.tensor(ladder(layout, density))
    total = 0.0
    for (kind, half_width), row in zip(plan.tolist(), need.unflatten(1, (2, -1)), strict=True):
        total += float(row[kind][widths[kind] == half_width].min())
    return total


@given(
    heads=st.integers(1, 9),
    seed=st.integers(0, 999),
    density=st.sampled_from((0.15, 0.3, 0.6)),
    block=st.sampled_from((8, 64)),
)
def test_no_more_pairs_than_asked_and_no_more_error_than_uniform(
    heads: int, seed: int, density: float, block: int
) -> None:
    layout = VideoLayout(9, 8, 8, text_len=5, block=block)
    errors, missing = found_by_a_profile(heads, seed)
    plan = plan_by_need(errors, missing, layout, density)
    uniform = plan_from_errors(errors, layout, density)
    need = estimated_errors(errors, missing)
    assert plan.dtype == torch.int32
    for sample in range(2):
        fits = mean_density(uniform[sample], layout) <= density
        assert mean_density(plan[sample], layout) <= density + 1e-6 if fits else torch.equal(plan, uniform)
        after, before = (estimate(each[sample], need[sample], layout, density) for each in (plan, uniform))
        assert after <= before * (1 + 1e-5)
        # A sample is planned as it would be alone.
        assert torch.equal(plan_by_need(errors[sample, None], missing[sample, None], layout, density)[0], plan[sample])


@given(heads=st.integers(2, FILLS), seed=st.integers(0, 999))
def test_no_head_could_gain_from_what_is_left_over(heads: int, seed: int) -> None:
    density = 0.3
    errors, missing = found_by_a_profile(heads, seed, batch=1)
    plan = plan_by_need(errors, missing, LAYOUT, density)[0]
    if torch.equal(plan, plan_from_errors(errors, LAYOUT, density)[0]):
        return
    need = estimated_errors(errors, missing)[0]
    cost = torch.tensor(ladder_cost(LAYOUT, density)).flatten()
    rest = heads * density - mean_density(plan, LAYOUT) * heads
    for head in range(heads):
        now = estimate(plan[head, None], need[head, None], LAYOUT, density)
        more = cost - LAYOUT.density(int(plan[head, 1]), int(plan[head, 0]))
        gains = (need[head] < now) & (more > 0) & (more <= rest - 1e-6)
        assert not gains.any()


@given(heads=st.integers(1, 5), seed=st.integers(0, 999), share=st.floats(0.5, 4.0))
def test_a_plan_costs_no_more_than_its_share(heads: int, seed: int, share: float) -> None:
    errors, missing = found_by_a_profile(heads, seed, batch=1)
    plan = plan_by_need(errors, missing, LAYOUT, 0.3, torch.tensor([share]))[0]
    narrowest = max(rungs[0] for rungs in ladder_cost(LAYOUT, 0.3))
    assert 0.3 * share >= narrowest
    assert mean_density(plan, LAYOUT) <= 0.3 * share + 1e-5


def test_the_head_that_loses_more_is_given_more() -> None:
    errors = torch.tensor([[[1.0, 9.0], [0.01, 9.0], [9.0, 1.0], [9.0, 0.01]]])
    falling = torch.tensor([4.0, 2.5, 1.5, 1.0, 0.6, 0.3, 0.1, 0.02])
    plan = plan_by_need(errors, falling.expand(1, 4, 2, -1), LAYOUT, 0.3)[0]
    assert plan[:, 0].tolist() == [0, 0, 1, 1]
    uniform = plan_from_errors(errors, LAYOUT, 0.3)[0]
    assert plan[0, 1] > uniform[0, 1] > plan[1, 1]
    assert plan[2, 1] > uniform[2, 1] > plan[3, 1]


def test_heads_that_are_alike_and_heads_that_miss_nothing_stay_uniform() -> None:
    errors = torch.ones(1, 3, 2) * torch.tensor([1.0, 2.0])
    nothing = torch.zeros(1, 3, 2, len(LADDER))
    assert torch.equal(plan_by_need(errors, nothing, LAYOUT, 0.3), plan_from_errors(errors, LAYOUT, 0.3))
    # What the uniform rung misses is 0, what narrower ones miss is not: nothing can be said of them.
    narrow = nothing.clone()
    narrow[..., :UNIFORM] = 0.5
    assert torch.equal(plan_by_need(errors, narrow, LAYOUT, 0.3), plan_from_errors(errors, LAYOUT, 0.3))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_heads_that_are_not_finite_are_dense_and_not_counted(wrong: float) -> None:
    errors, missing = found_by_a_profile(4, seed=3, batch=1)
    alone = plan_by_need(errors[:, 1:], missing[:, 1:], LAYOUT, 0.3)
    errors[:, 0], missing[:, 0] = wrong, wrong
    plan = plan_by_need(errors, missing, LAYOUT, 0.3)
    assert plan[0, 0].tolist() == [HeadKind.DENSE, LAYOUT.full_half_width]
    assert torch.equal(plan[:, 1:], alone)
    errors[:, 2, 0] = wrong
    assert plan_by_need(errors, missing, LAYOUT, 0.3)[0, 2, 0] == HeadKind.TEMPORAL


@given(
    layers=st.integers(1, 4),
    heads=st.integers(1, 5),
    seed=st.integers(0, 999),
    density=st.sampled_from((0.15, 0.3, 0.6)),
)
def test_layers_share_out_the_density(layers: int, heads: int, seed: int, density: float) -> None:
    layout = VideoLayout(9, 8, 8, text_len=5, block=8)
    # Layers of different weight and, at the end, of different numbers of heads.
    found = [found_by_a_profile(heads + (n == layers - 1), seed + n) for n in range(layers)]
    errors, missing = [10.0**n * each[0] for n, each in enumerate(found)], [each[1] for each in found]
    shares = shares_of_layers(errors, missing, layout, density)
    assert shares.shape == (layers, 2)
    counts = torch.tensor([[float(each.shape[1])] for each in errors])
    torch.testing.assert_close((shares * counts).sum(0) / counts.sum(), torch.ones(2))
    plans = [plan_by_need(e, m, layout, density, s) for e, m, s in zip(errors, missing, shares, strict=True)]
    for sample in range(2):
        paid = [mean_density(plan[sample], layout) for plan in plans]
        uniform = mean_density(plan_from_errors(errors[0], layout, density)[sample], layout)
        assert (
            sum(p * float(n) for p, n in zip(paid, counts, strict=True)) / counts.sum() <= max(density, uniform) + 1e-5
        )
        # What all layers lose is no more than where each has the same.
        same = [plan_by_need(e, m, layout, density) for e, m in zip(errors, missing, strict=True)]
        need = [estimated_errors(e, m) for e, m in zip(errors, missing, strict=True)]
        after, before = (
            sum(estimate(plan[sample], n[sample], layout, density) for plan, n in zip(each, need, strict=True))
            for each in (plans, same)
        )
        # `same` fills up what is left of each layer; shares are those of whole rungs.
        assert after <= before * 1.25
        alone = shares_of_layers([e[sample, None] for e in errors], [m[sample, None] for m in missing], layout, density)
        assert torch.equal(alone[:, 0], shares[:, sample])


@given(heads=st.integers(2, 9), seed=st.integers(0, 999))
def test_plans_and_shares_do_not_follow_the_default_dtype(heads: int, seed: int) -> None:
    errors, missing = found_by_a_profile(heads, seed)
    layers = [errors, 3 * errors], [missing, missing]
    plan, shares = plan_by_need(errors, missing, LAYOUT, 0.3), shares_of_layers(*layers, LAYOUT, 0.3)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(plan_by_need(errors, missing, LAYOUT, 0.3), plan)
        assert torch.equal(shares_of_layers(*layers, LAYOUT, 0.3), shares)
    finally:
        torch.set_default_dtype(torch.float32)
    assert shares.dtype is torch.float32


def test_uniform_half_widths_take_no_share() -> None:
    operands = [torch.randn(1, 1, LAYOUT.tokens, 16) for _ in range(3)]
    options = ([0.3], 8, False, None, "cpu", ops.ABI, None, None, torch.ones(1))
    with pytest.raises(LayoutError, match="adaptive half-widths alone"):
        torch.ops.svg.profile(*operands, None, LAYOUT.grid, *options)


def test_a_layer_that_loses_more_has_a_larger_share() -> None:
    falling = torch.tensor([4.0, 2.5, 1.5, 1.0, 0.6, 0.3, 0.1, 0.02]).expand(1, 4, 2, -1)
    errors = [torch.full((1, 4, 2), size) for size in (1.0, 0.01)]
    more, less = shares_of_layers(errors, [falling, falling], LAYOUT, 0.3)[:, 0].tolist()
    assert more > 1 > less
    plans = [plan_by_need(e, falling, LAYOUT, 0.3, torch.tensor([share])) for e, share in zip(errors, (more, less))]
    wide, narrow = (mean_density(plan[0], LAYOUT) for plan in plans)
    assert narrow < 0.3 < wide
    assert narrow + wide <= 0.6 + 1e-6


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_layers_without_finite_errors_take_no_part(wrong: float) -> None:
    errors, missing = found_by_a_profile(3, seed=4, batch=1)
    nothing = torch.full_like(errors, wrong), torch.full_like(missing, wrong)
    alone = shares_of_layers([errors, errors / 50], [missing, missing], LAYOUT, 0.3)
    shares = shares_of_layers([errors, nothing[0], errors / 50], [missing, nothing[1], missing], LAYOUT, 0.3)
    assert torch.equal(shares[[0, 2]], alone)
    assert shares[1].tolist() == [1.0]


def test_a_density_that_no_half_width_reaches() -> None:
    layout = VideoLayout(9, 8, 8, block=256)
    errors, missing = found_by_a_profile(3, seed=1)
    plan = plan_by_need(errors, missing, layout, 0.1)
    assert torch.equal(plan, plan_from_errors(errors, layout, 0.1))


@given(
    problem=problems(),
    density=st.sampled_from((0.1, 0.3, 1.0)),
    sampled_rows=st.sampled_from((1, 5, 64)),
    scale=st.sampled_from((None, 1.0)),
)
def test_the_cpu_profile_is_the_oracles(
    problem: Problem, density: float, sampled_rows: int, scale: float | None
) -> None:
    operands = problem.tensors()
    options = {"density": density, "sampled_rows": sampled_rows, "key_mask": problem.mask(), "scale": scale}
    found = profile_rows(*operands, problem.layout, adaptive=True, **options)
    exact = reference.profile_rows(*operands, problem.layout, adaptive=True, **options)
    torch.testing.assert_close(found.errors.double(), exact.errors, rtol=1e-4, atol=1e-9)
    same = (found.plan == exact.plan).all(-1)
    torch.testing.assert_close(found.sparse[same].double(), exact.sparse[same], rtol=1e-4, atol=1e-5)
    if not bool(same.all()):
        # Another plan is as good: by the oracle's estimates it loses no more.
        missing = reference.missing_mass(*operands[:2], problem.layout, **options)
        need = estimated_errors(exact.errors, missing)
        for sample in range(problem.batch):
            ours, theirs = (
                estimate(plan[sample], need[sample], problem.layout, density) for plan in (found.plan, exact.plan)
            )
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-9)


def engine_plan(engine: str, when: tuple[int, int], previous: Tensor | None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(1, 3, LAYOUT.tokens, 16, generator=generator) for _ in range(3)]
    operands[0] *= torch.tensor([0.2, 1.0, 3.0])[:, None, None]
    grid = LAYOUT.grid
    options = ([0.2, 0.5], 32, True, None, engine, ops.ABI, torch.tensor(when, dtype=torch.int32), previous, None)
    plan, errors, missing = torch.ops.svg.profile(*operands, None, grid, *options)
    assert missing.shape == (1, 3, 2, len(LADDER))
    return plan, errors


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_a_kept_plan_is_kept_whole(engine: str) -> None:
    plan, errors = engine_plan(engine, (0, 1), None)
    assert len({tuple(head) for head in plan[0].tolist()}) > 1
    assert errors.isfinite().all()
    kept, none = engine_plan(engine, (0, 0), plan)
    assert torch.equal(kept, plan)
    assert kept.data_ptr() != plan.data_ptr()
    assert none.isnan().all()
    anew, _ = engine_plan(engine, (1, 1), plan)
    assert mean_density(anew[0], LAYOUT) > mean_density(plan[0], LAYOUT)


def test_the_plain_functions_take_widths() -> None:
    rows = torch.randn(1, 2, LAYOUT.tokens, 8, generator=torch.Generator().manual_seed(1))
    rows[:, 1] *= 3
    adaptive, uniform = (
        svg_compile.profile_heads(rows, rows, rows, LAYOUT, widths=widths) for widths in ("adaptive", "uniform")
    )
    widths = [LAYOUT.half_width_for(0.3, kind) for kind in uniform[0, :, 0].tolist()]
    assert uniform[0, :, 1].tolist() == widths
    assert adaptive[0, :, 1].tolist() != widths
    outputs = [
        svg_compile.repaired_attention(rows, rows, rows, LAYOUT, widths=widths) for widths in ("adaptive", "uniform")
    ]
    assert not torch.equal(*outputs)
    with pytest.raises(LayoutError, match="widths must be one of 'adaptive', 'uniform', got 'wide'"):
        svg_compile.profile_heads(rows, rows, rows, LAYOUT, widths="wide")
