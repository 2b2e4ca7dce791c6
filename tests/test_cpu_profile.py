"""The CPU profile against the oracle, on planted patterns, where errors are not finite, and from step to step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import svg_compile
from strategies import Problem, problems
from svg_compile.errors import LayoutError
from svg_compile.kernels import ops
from svg_compile.kernels.cpu.profile import profile_rows
from svg_compile.kernels.plan import plan_from_errors
from svg_compile.kernels.reference import profile_errors
from svg_compile.layout import HeadKind, VideoLayout

LAYOUT = VideoLayout(8, 8, 8, text_len=5, block=16)


def profile_heads(*operands: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The plan and the errors, with uniform half-widths."""
    found = profile_rows(*operands, **options)
    return found.plan, found.errors


def planted(layout: VideoLayout, late_frames_only: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [1, 2, N, D]: head 0 attends the places of its frame, head 1 its place in all frames.

    Each token's key is its own frame's (or place's) random direction, with the query along it. With
    `late_frames_only` the last half of the video alone has a pattern, and that the other way around: spatial in head
    1, temporal in head 0; earlier queries are 0, which costs both bands the same little.
    """
    generator = torch.Generator().manual_seed(0)
    video = torch.arange(layout.video)
    labels = (video // layout.area, video % layout.area)
    width = 256
    key = torch.zeros(1, 2, layout.tokens, width)
    span = slice(layout.video_start, layout.video_start + layout.video)
    for head, label in enumerate(reversed(labels) if late_frames_only else labels):
        directions = torch.randn(int(label.max()) + 1, width, generator=generator)
        key[0, head, span] = directions[label]
    query = key.clone()
    if late_frames_only:
        query[:, :, : layout.video_start + layout.video // 2] = 0
    return query, key, torch.randn(1, 2, layout.tokens, width, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampled_rows", [16, 64])
def test_planted_heads_are_told_apart(dtype: torch.dtype, sampled_rows: int) -> None:
    query, key, value = (tensor.to(dtype) for tensor in planted(LAYOUT))
    plan, _ = profile_heads(query, key, value, LAYOUT, density=0.4, sampled_rows=sampled_rows)
    widths = [LAYOUT.half_width_for(0.4, kind) for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL)]
    assert plan.dtype == torch.int32
    assert plan.tolist() == [[[0, widths[0]], [1, widths[1]]]]


def test_autocast_of_a_caller_does_not_round_the_scores() -> None:
    query, key, value = planted(LAYOUT)
    want, errors = profile_heads(query, key, value, LAYOUT, density=0.4, sampled_rows=64)
    with torch.autocast("cpu", torch.bfloat16):
        plan, within = profile_heads(query, key, value, LAYOUT, density=0.4, sampled_rows=64)
    assert torch.equal(plan, want)
    assert torch.equal(errors, within)


def test_late_rows_count() -> None:
    plan, _ = profile_heads(*planted(LAYOUT, late_frames_only=True), LAYOUT, density=0.4, sampled_rows=32)
    assert plan[0, :, 0].tolist() == [HeadKind.TEMPORAL, HeadKind.SPATIAL]


@given(
    problem=problems(),
    density=st.sampled_from((0.2, 0.5, 1.0)),
    sampled_rows=st.sampled_from((1, 5, 64)),
    scale=st.sampled_from((None, 1.0)),
)
def test_chooses_as_the_oracle(problem: Problem, density: float, sampled_rows: int, scale: float | None) -> None:
    query, key, value = problem.tensors()
    options = {"density": density, "sampled_rows": sampled_rows, "key_mask": problem.mask(), "scale": scale}
    plan, found = profile_heads(query, key, value, problem.layout, **options)
    errors = profile_errors(query, key, value, problem.layout, **options)
    torch.testing.assert_close(found.double(), errors, rtol=1e-4, atol=1e-9)
    expected = plan_from_errors(errors, problem.layout, density)
    # Where the errors differ by less than float32 can tell, either kind will do.
    close = (errors[..., 0] - errors[..., 1]).abs() <= 1e-5 * errors.amax(-1) + 1e-10
    assert torch.equal(plan[~close], expected[~close])
    assert (plan[..., 0] != HeadKind.DENSE).all()


def test_a_tie_is_spatial() -> None:
    query = torch.zeros(1, 2, LAYOUT.tokens, 4)
    plan, _ = profile_heads(query, query, query, LAYOUT, density=0.3, sampled_rows=8)
    assert plan[0, :, 0].tolist() == [HeadKind.SPATIAL, HeadKind.SPATIAL]


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("planted_value", [float("nan"), float("inf")])
def test_what_is_not_finite_never_wins(part: int, planted_value: float) -> None:
    tensors = list(planted(LAYOUT))
    tensors[part] = tensors[part].clone()
    tensors[part][0, 0] = planted_value
    plan, _ = profile_heads(*tensors, LAYOUT, density=0.4, sampled_rows=16)
    assert plan[0, :, 0].tolist() == [HeadKind.DENSE, HeadKind.TEMPORAL]


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ((1.0, 2.0), HeadKind.SPATIAL),
        ((2.0, 1.0), HeadKind.TEMPORAL),
        ((1.0, 1.0), HeadKind.SPATIAL),
        ((float("nan"), 1.0), HeadKind.TEMPORAL),
        ((1.0, float("nan")), HeadKind.SPATIAL),
        ((float("inf"), 1.0), HeadKind.TEMPORAL),
        ((float("nan"), float("inf")), HeadKind.DENSE),
    ],
)
def test_plan_from_errors(errors: tuple[float, float], kind: HeadKind) -> None:
    plan = plan_from_errors(torch.tensor([[errors]]), LAYOUT, 0.3)
    dense = kind == HeadKind.DENSE
    width = LAYOUT.full_half_width if dense else LAYOUT.half_width_for(0.3, kind)
    assert plan[0, 0].tolist() == [kind, width]


def test_weights_far_below_the_dense_maximum_are_not_lost() -> None:
    layout = VideoLayout(4, 2, 4, block=2)
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(1, 1, layout.tokens, 4, generator=generator)
    # One key takes all of the weight; rows whose band lacks it are left with weights of exp(-1000).
    key[0, 0, 20] = 1000.0
    query = torch.ones_like(key)
    options = {"density": 0.5, "sampled_rows": 32, "scale": 0.3}
    plan, _ = profile_heads(query, key, key, layout, **options)
    errors = profile_errors(query, key, key, layout, **options)
    assert torch.equal(plan, plan_from_errors(errors, layout, 0.5))


def test_hidden_keys_are_not_read() -> None:
    query, key, value = planted(LAYOUT)
    key_mask = torch.ones(1, LAYOUT.tokens, dtype=torch.bool)
    key_mask[0, LAYOUT.text_start :] = False
    expected, _ = profile_heads(query, key, value, LAYOUT, density=0.4, sampled_rows=16, key_mask=key_mask)
    key[:, :, LAYOUT.text_start :] = float("nan")
    value[:, :, LAYOUT.text_start :] = float("nan")
    plan, _ = profile_heads(query, key, value, LAYOUT, density=0.4, sampled_rows=16, key_mask=key_mask)
    assert torch.equal(plan, expected)


DENSITIES = [0.2, 0.4, 0.8]


def staged(
    engine: str, when: tuple[int, int] | None, previous: Tensor | None = None, densities: list[float] = DENSITIES
) -> tuple[Tensor, Tensor]:
    """`svg::profile` of the planted heads, which are a spatial and a temporal one: (plan, errors)."""
    stage = None if when is None else torch.tensor(when, dtype=torch.int32)
    options = (densities, 16, False, None, engine, ops.ABI)
    plan, errors, _ = torch.ops.svg.profile(*planted(LAYOUT), None, LAYOUT.grid, *options, stage, previous, None)
    assert (plan.dtype, errors.dtype, plan.shape, errors.shape) == (torch.int32, torch.float32, (1, 2, 2), (1, 2, 2))
    return plan, errors


def plan_of(*kinds: int, density: float) -> Tensor:
    """int32 [1, heads, 2]: these kinds with the half-widths of a density."""
    heads = [
        (kind, LAYOUT.full_half_width if kind == HeadKind.DENSE else LAYOUT.half_width_for(density, kind))
        for kind in kinds
    ]
    return torch.tensor([heads], dtype=torch.int32)


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("index", range(3))
def test_each_step_profiles_with_its_own_density(engine: str, index: int) -> None:
    plan, errors = staged(engine, (index, 1))
    plain, plain_errors = staged(engine, None, densities=[DENSITIES[index]])
    assert torch.equal(plan, plain)
    assert torch.equal(errors, plain_errors)
    assert torch.equal(plan, plan_of(0, 1, density=DENSITIES[index]))
    exact = profile_errors(*planted(LAYOUT), LAYOUT, density=DENSITIES[index], sampled_rows=16)
    torch.testing.assert_close(errors.double(), exact, rtol=1e-4, atol=1e-9)
    # A plan before it changes nothing, and neither does a missing one.
    for again in (
        staged(engine, (index, 1), plan_of(1, 0, density=0.3)),
        staged(engine, (index, 0)),
    ):
        assert torch.equal(again[0], plan)
        assert torch.equal(again[1], errors)


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("kinds", [(1, 0), (0, 1), (2, 1), (0, 2)])
def test_kept_kinds_take_the_half_widths_of_the_current_density(engine: str, kinds: tuple[int, int]) -> None:
    previous = plan_of(*kinds, density=0.3)
    kept = previous.clone()
    for index, density in enumerate(DENSITIES):
        plan, errors = staged(engine, (index, 0), previous)
        assert torch.equal(plan, plan_of(*kinds, density=density))
        assert errors.isnan().all()
        assert plan.data_ptr() != previous.data_ptr()
    assert torch.equal(previous, kept)


def test_what_is_kept_and_no_kind_is_dense() -> None:
    previous = torch.tensor([[[7, 1], [-1, 1]]], dtype=torch.int32)
    assert torch.equal(staged("cpu", (0, 0), previous)[0], plan_of(2, 2, density=0.2))


def test_without_when_a_profile_is_made_of_the_first_density() -> None:
    assert torch.equal(staged("cpu", None, plan_of(1, 0, density=0.3))[0], plan_of(0, 1, density=0.2))


def test_the_public_function_gives_the_plan_alone() -> None:
    plan = svg_compile.profile_heads(*planted(LAYOUT), LAYOUT, density=0.4, sampled_rows=16, widths="uniform")
    assert torch.equal(plan, plan_of(0, 1, density=0.4))


@pytest.mark.parametrize(
    ("when", "previous", "densities", "message"),
    [
        ((3, 1), None, DENSITIES, "asks for density 3 of 3"),
        ((-1, 0), torch.zeros(1, 2, 2, dtype=torch.int32), DENSITIES, "asks for density -1 of 3"),
        (None, None, [], "at least one density"),
        ((0, 0), torch.zeros(2, 2, 2, dtype=torch.int32), DENSITIES, r"previous must be int32 \[1, 2, 2\]"),
        ((0, 0), torch.zeros(1, 2, 2), DENSITIES, "previous must be int32"),
        ((0, 0, 0), None, DENSITIES, r"when must be int32 \[2\]"),
    ],
)
def test_stages_that_do_not_fit_are_refused(
    when: tuple[int, ...] | None, previous: Tensor | None, densities: list[float], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        staged("cpu", when, previous, densities)


def test_steps_change_without_a_recompile() -> None:
    query, key, value = planted(LAYOUT)
    grid = LAYOUT.grid

    def step(query: Tensor, when: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        options = (DENSITIES, 16, False, None, "auto", ops.ABI, when, previous, None)
        return torch.ops.svg.profile(query, key, value, None, grid, *options)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True)
    previous = plan_of(2, 2, density=0.2)
    with torch.no_grad():
        for index, anew in ((0, 1), (1, 0), (2, 0), (0, 1)):
            when = torch.tensor([index, anew], dtype=torch.int32)
            with torch._dynamo.config.patch(error_on_recompile=True):
                previous, errors, _ = compiled(query, when, previous)
            assert torch.equal(previous, plan_of(0, 1, density=DENSITIES[index]))
            assert bool(errors.isnan().all()) is not bool(anew)
