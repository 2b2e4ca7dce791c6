"""The profile kernels: errors against the float64 oracle, and the decisions that follow from them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strategies import STRIDES, Problem
from svg_compile.kernels import reference
from svg_compile.kernels.sampling import sampled_video_token
from svg_compile.kernels.triton import decide as triton_decide
from svg_compile.kernels.triton import profile as triton_profile
from svg_compile.layout import HeadKind, VideoLayout

LAYOUT = VideoLayout(5, 3, 4, text_len=5, block=4)


def profile(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: VideoLayout,
    *,
    key_mask: Tensor | None = None,
    density: float = 0.5,
    sampled_rows: int = 16,
    scale: float | None = None,
    densities: tuple[float, ...] = (),
    when: tuple[int, int] | None = None,
    previous: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The plan and the errors; `densities` in place of `density`."""
    options = (densities or (density,), sampled_rows, False, scale)
    stage = None if when is None else torch.tensor(when, dtype=torch.int32)
    plan, errors, _ = triton_profile.profile_heads(query, key, value, key_mask, layout.grid, *options, stage, previous)
    return plan, errors


def rand(layout: VideoLayout = LAYOUT, heads: int = 2, head_dim: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, layout.tokens, head_dim, generator=generator) for _ in range(3)]


def planted(layout: VideoLayout) -> list[Tensor]:
    """q, k, v with a spatial head 0 (tokens of a frame look alike) and a temporal head 1 (tokens of a place do)."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(2, layout.video, 16, generator=generator)
    token = torch.arange(layout.video)
    keys = torch.randn(1, 2, layout.tokens, 16, generator=generator)
    video = slice(layout.video_start, layout.video_start + layout.video)
    keys[0, 0, video] = 3 * codes[0, token // layout.area]
    keys[0, 1, video] = 3 * codes[1, token % layout.area]
    return [keys, keys.clone(), torch.randn(1, 2, layout.tokens, 16, generator=generator)]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    grid = (draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    names = st.sampled_from(STRIDES)
    return Problem(
        layout=VideoLayout(*grid, draw(st.sampled_from((0, 1, 9))), draw(st.booleans()), draw(st.sampled_from((1, 4)))),
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 2)),
        head_dim=draw(st.sampled_from((16, 20, 72))),
        strides=(draw(names), draw(names), draw(names)),
        key_mask=draw(st.sampled_from(("none", "text", "some", "most"))),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


@settings(max_examples=10)
@given(
    problem=problems(),
    dtype=st.sampled_from((torch.float32, torch.float16)),
    density=st.sampled_from((0.05, 0.3, 0.7, 1.0)),
    sampled_rows=st.sampled_from((1, 7, 40)),
)
def test_errors_match_the_oracle(problem: Problem, dtype: torch.dtype, density: float, sampled_rows: int) -> None:
    query, key, value = problem.tensors(dtype)
    layout, key_mask = problem.layout, problem.mask()
    options = {"density": density, "sampled_rows": sampled_rows, "key_mask": key_mask}
    plan, errors = profile(query, key, value, layout, **options)
    exact = reference.profile_errors(query, key, value, layout, **options)
    budget = 20 * torch.finfo(dtype).eps * float(value.double().square().mean().clamp_min(1e-6))
    assert float((errors.double() - exact).abs().max()) <= budget
    assert torch.equal(plan, reference.plan_from_errors(errors.double(), layout, density))
    # Where the two errors lie further apart than the budget, the label is the oracle's.
    clear = (exact[..., 0] - exact[..., 1]).abs() > 2 * budget
    expected = reference.plan_from_errors(exact, layout, density)
    assert torch.equal(plan[clear], expected[clear])


@pytest.mark.parametrize("text_first", [False, True])
def test_planted_heads_are_told_apart(text_first: bool) -> None:
    layout = VideoLayout(5, 3, 4, text_len=5, text_first=text_first, block=4)
    plan, _ = profile(*planted(layout), layout)
    assert plan[0, :, 0].tolist() == [HeadKind.SPATIAL, HeadKind.TEMPORAL]
    for head, kind in enumerate((HeadKind.SPATIAL, HeadKind.TEMPORAL)):
        assert plan[0, head, 1] == layout.half_width_for(0.5, kind)


def test_late_rows_count() -> None:
    """Only the last frame's queries have a preference, and it decides."""
    query, key, value = planted(LAYOUT)
    early = slice(0, LAYOUT.video - LAYOUT.area)
    query[:, :, early] = 0.0
    value[:, :, early] *= 1e-3
    options = {"density": 0.5, "sampled_rows": LAYOUT.video}
    plan, errors = profile(query, key, value, LAYOUT, sampled_rows=LAYOUT.video)
    exact = reference.profile_errors(query, key, value, LAYOUT, **options)
    torch.testing.assert_close(errors.double(), exact, rtol=1e-4, atol=1e-9)
    assert torch.equal(plan, reference.plan_from_errors(exact, LAYOUT, 0.5))
    # Strata cover all the video: the last one's row lies in the last stratum.
    assert sampled_video_token(15, 16, 1600) >= 1500


@pytest.mark.parametrize("layout", [LAYOUT, VideoLayout(1, 3, 4, block=4), VideoLayout(4, 1, 1, 3, block=1)])
def test_ties_are_spatial(layout: VideoLayout) -> None:
    """At density 1 both kinds see everything: both errors are 0, bit for bit."""
    plan, errors = profile(*rand(layout), layout, density=1.0)
    assert torch.equal(errors, torch.zeros_like(errors))
    assert plan[..., 0].eq(HeadKind.SPATIAL).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_means_dense(bad: float, which: int) -> None:
    tensors = rand()
    tensors[which][0, 1, 9 if which else slice(None)] = bad
    plan, _ = profile(*tensors, LAYOUT)
    assert plan[0, 0, 0] != HeadKind.DENSE
    assert plan[0, 1].tolist() == [HeadKind.DENSE, LAYOUT.full_half_width]


def test_one_error_that_is_not_finite_loses() -> None:
    """The decision itself: partial outputs whose spatial error is NaN, then whose temporal error is infinite."""
    for column, kind in ((1, HeadKind.TEMPORAL), (2, HeadKind.SPATIAL)):
        partial, sums = torch.zeros(16, 3, 16, 16), torch.zeros(16, 3, 2, 16)
        sums[:, :, 1] = 1.0
        partial[:, 3 - column] = 5.0
        partial[3, column, 0, 0] = float("nan") if column == 1 else float("inf")
        plan, errors = torch.empty(1, 1, 2, dtype=torch.int32), torch.empty(1, 1, 2)
        widths = torch.tensor([3, 4, 5], dtype=torch.int32)
        triton_decide.profile_plan_fwd_kernel[(1,)](
            partial, sums, widths, widths, widths, plan, errors, 1, 1, 16, 1, HAS_WHEN=False, HAS_PREVIOUS=False,
            SPLITS=16, VALUE_DIM=16, WIDTH=16, BLOCK_M=16, ROWS=16,
        )  # fmt: skip
        assert plan.flatten().tolist() == [kind, 3 + kind]


def test_hidden_keys_are_never_read() -> None:
    query, key, value = rand()
    seen = torch.ones(1, LAYOUT.tokens, dtype=torch.bool)
    seen[0, 3::5] = False
    clean = profile(query, key, value, LAYOUT, key_mask=seen)
    key[:, :, ~seen[0]] = float("nan")
    value[:, :, ~seen[0]] = float("nan")
    for found, expected in zip(profile(query, key, value, LAYOUT, key_mask=seen), clean, strict=True):
        assert torch.equal(found, expected)


def test_bands_far_below_the_dense_maximum_keep_their_weights() -> None:
    """Sharing the dense maximum would lose the band's sums to underflow, and with them the error's size."""
    query, key, value = rand()
    query[..., 0], key[..., 0] = 40.0, 0.0
    far = LAYOUT.video_start + LAYOUT.video - 1
    key[:, :, far, 0] = 60.0
    _, errors = profile(query, key, value, LAYOUT, density=0.3)
    exact = reference.profile_errors(query, key, value, LAYOUT, density=0.3, sampled_rows=16)
    torch.testing.assert_close(errors.double(), exact, rtol=1e-4, atol=1e-6)


def test_no_random_numbers_are_drawn() -> None:
    before = torch.get_rng_state()
    first = profile(*rand(), LAYOUT)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(*pair) for pair in zip(first, profile(*rand(), LAYOUT), strict=True))


DENSITIES = (0.2, 0.5, 0.8)


def plan_of(*kinds: int, density: float) -> Tensor:
    """int32 [1, heads, 2]: these kinds with the half-widths of a density."""
    widths = [LAYOUT.half_width_for(density, kind) for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL)]
    widths.append(LAYOUT.full_half_width)
    return torch.tensor([[(kind, widths[kind]) for kind in kinds]], dtype=torch.int32)


@pytest.mark.parametrize("index", range(3))
def test_each_step_profiles_with_its_own_density(index: int) -> None:
    plain = profile(*planted(LAYOUT), LAYOUT, density=DENSITIES[index])
    assert torch.equal(plain[0], plan_of(0, 1, density=DENSITIES[index]))
    # A previous plan changes nothing, nor does one that is missing.
    for anew, previous in ((1, None), (0, None), (1, plan_of(2, 0, density=0.3))):
        found = profile(*planted(LAYOUT), LAYOUT, densities=DENSITIES, when=(index, anew), previous=previous)
        assert all(torch.equal(*pair) for pair in zip(found, plain, strict=True))


@pytest.mark.parametrize("kinds", [(1, 0), (0, 1), (2, 1), (0, 2)])
@pytest.mark.parametrize("strided", [False, True])
def test_kept_kinds_take_the_half_widths_of_the_current_density(kinds: tuple[int, int], strided: bool) -> None:
    previous = plan_of(*kinds, density=0.3)
    if strided:
        previous = previous.transpose(1, 2).contiguous().transpose(1, 2)
    before = previous.clone()
    for index, density in enumerate(DENSITIES):
        plan, errors = profile(*planted(LAYOUT), LAYOUT, densities=DENSITIES, when=(index, 0), previous=previous)
        assert torch.equal(plan, plan_of(*kinds, density=density))
        assert errors.isnan().all()
    assert torch.equal(previous, before)


def test_what_is_kept_and_no_kind_is_dense() -> None:
    previous = torch.tensor([[[7, 1], [-1, 1]]], dtype=torch.int32)
    plan, _ = profile(*rand(), LAYOUT, densities=DENSITIES, when=(0, 0), previous=previous)
    assert torch.equal(plan, plan_of(2, 2, density=0.2))


def test_every_head_of_every_batch_entry_is_kept() -> None:
    tensors = [torch.cat([tensor, tensor.flip(1)]) for tensor in planted(LAYOUT)]
    first, _ = profile(*tensors, LAYOUT, densities=DENSITIES, when=(1, 1))
    assert first[..., 0].tolist() == [[0, 1], [1, 0]]
    kept, _ = profile(*tensors, LAYOUT, densities=DENSITIES, when=(1, 0), previous=first)
    assert torch.equal(kept, first)


def test_without_when_a_profile_is_made_of_the_first_density() -> None:
    previous = plan_of(2, 2, density=0.3)
    plan, _ = profile(*planted(LAYOUT), LAYOUT, densities=DENSITIES, previous=previous)
    assert torch.equal(plan, plan_of(0, 1, density=0.2))
