"""The CPU profile against the oracle, on planted patterns, and where errors are not finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from strategies import Problem, problems
from svg_compile.kernels.cpu_profile import profile_heads
from svg_compile.kernels.plan import plan_from_errors
from svg_compile.kernels.reference import profile_errors
from svg_compile.layout import HeadKind, VideoLayout

LAYOUT = VideoLayout(8, 8, 8, text_len=5, block=16)


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
    plan = profile_heads(query, key, value, LAYOUT, density=0.4, sampled_rows=sampled_rows)
    widths = [LAYOUT.half_width_for(0.4, kind) for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL)]
    assert plan.dtype == torch.int32
    assert plan.tolist() == [[[0, widths[0]], [1, widths[1]]]]


def test_late_rows_count() -> None:
    plan = profile_heads(*planted(LAYOUT, late_frames_only=True), LAYOUT, density=0.4, sampled_rows=32)
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
    plan = profile_heads(query, key, value, problem.layout, **options)
    errors = profile_errors(query, key, value, problem.layout, **options)
    expected = plan_from_errors(errors, problem.layout, density)
    # Where the errors differ by less than float32 can tell, either kind will do.
    close = (errors[..., 0] - errors[..., 1]).abs() <= 1e-5 * errors.amax(-1) + 1e-10
    assert torch.equal(plan[~close], expected[~close])
    assert (plan[..., 0] != HeadKind.DENSE).all()


def test_a_tie_is_spatial() -> None:
    query = torch.zeros(1, 2, LAYOUT.tokens, 4)
    plan = profile_heads(query, query, query, LAYOUT, density=0.3, sampled_rows=8)
    assert plan[0, :, 0].tolist() == [HeadKind.SPATIAL, HeadKind.SPATIAL]


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("planted_value", [float("nan"), float("inf")])
def test_what_is_not_finite_never_wins(part: int, planted_value: float) -> None:
    tensors = list(planted(LAYOUT))
    tensors[part] = tensors[part].clone()
    tensors[part][0, 0] = planted_value
    plan = profile_heads(*tensors, LAYOUT, density=0.4, sampled_rows=16)
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
    plan = profile_heads(query, key, key, layout, **options)
    errors = profile_errors(query, key, key, layout, **options)
    assert torch.equal(plan, plan_from_errors(errors, layout, 0.5))


def test_hidden_keys_are_not_read() -> None:
    query, key, value = planted(LAYOUT)
    key_mask = torch.ones(1, LAYOUT.tokens, dtype=torch.bool)
    key_mask[0, LAYOUT.text_start :] = False
    expected = profile_heads(query, key, value, LAYOUT, density=0.4, sampled_rows=16, key_mask=key_mask)
    key[:, :, LAYOUT.text_start :] = float("nan")
    value[:, :, LAYOUT.text_start :] = float("nan")
    plan = profile_heads(query, key, value, LAYOUT, density=0.4, sampled_rows=16, key_mask=key_mask)
    assert torch.equal(plan, expected)
