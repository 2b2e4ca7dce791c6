"""The repair: its fit against a fit for each left-out row, unrepaired heads, and the CPU engine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from strategies import Problem, problems
from svg_compile.errors import LayoutError
from svg_compile.kernels import ops, reference_repair, repair_ops  # noqa: F401
from svg_compile.kernels.cpu.attention import sparse_attention
from svg_compile.kernels.cpu.repair import repair_
from svg_compile.kernels.repair import fit_repair, inverts_rows
from svg_compile.layout import HeadKind, VideoLayout

LAYOUT = VideoLayout(5, 6, 7, text_len=5, block=8)


def rows(count: int, channels: int, *, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(dense, sparse) [R, D], whose difference follows the sparse rows up to some noise."""
    generator = torch.Generator().manual_seed(seed)
    sparse = torch.randn(count, channels, generator=generator) + 2
    matrix = torch.randn(channels, channels, generator=generator) * 0.3
    return sparse + sparse @ matrix + noise * torch.randn(count, channels, generator=generator) - 1, sparse


@given(
    count=st.integers(1, 24),
    channels=st.sampled_from((1, 3, 8, 20)),
    noise=st.sampled_from((0.0, 0.1, 5.0)),
    by_rows=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_fit_is_the_one_that_leaves_least_on_rows_left_out(
    count: int, channels: int, noise: float, by_rows: bool, seed: int
) -> None:
    dense, sparse = rows(count, channels, noise=noise, seed=seed)
    expected, left = reference_repair.fit_head(dense, sparse)
    found, error = fit_repair(dense[None], sparse[None], by_rows=by_rows)
    torch.testing.assert_close(float(error), left, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_heads_are_fitted_each_for_itself() -> None:
    good, noise = rows(32, 8, noise=0.1), tuple(torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(3)))
    fit, error = fit_repair(*(torch.stack(pair)[None] for pair in zip(good, noise, strict=True)), by_rows=False)
    assert torch.equal(fit[0, 0], fit_repair(good[0], good[1], by_rows=False)[0])
    before = (noise[0] - noise[1]).square().mean()
    assert error[0, 1] <= before
    assert error[0, 0] < 0.1 * (good[0] - good[1]).square().mean()


NOTHING = torch.zeros(6, 4)
STRANGE = {
    "equal": (NOTHING + 3, NOTHING + 3),
    "one row": (torch.ones(1, 4), torch.zeros(1, 4)),
    "NaN": (NOTHING + float("nan"), NOTHING),
    "one NaN": (torch.ones(6, 4).index_fill(0, torch.tensor([2]), float("nan")), NOTHING),
    "infinite": (NOTHING + 1, NOTHING.index_fill(1, torch.tensor([1]), float("inf"))),
}


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("name", STRANGE)
def test_what_cannot_be_fitted_is_not_repaired(name: str, by_rows: bool) -> None:
    dense, sparse = STRANGE[name]
    fit, error = fit_repair(dense, sparse, by_rows=by_rows)
    assert not fit.any()
    before = (dense - sparse).square().mean()
    expected = before if before.isfinite() else torch.tensor(float("nan"))
    torch.testing.assert_close(error, expected, equal_nan=True)


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e15])
def test_constant_rows_are_finite_and_no_worse(size: float, by_rows: bool) -> None:
    sparse = torch.full((7, 3), 1.25 * size)
    dense = sparse + size * torch.tensor([1.0, 2.0, 3.0])
    fit, error = fit_repair(dense, sparse, by_rows=by_rows)
    matrix, mean_x, mean_y = fit.split((3, 1, 1))
    assert fit.isfinite().all()
    assert error.isfinite()
    mended = sparse + mean_y + (sparse - mean_x) @ matrix
    assert (mended - dense).norm() <= (sparse - dense).norm()


@given(count=st.integers(2, 30), channels=st.sampled_from((2, 9)), seed=st.integers(0, 200))
def test_sampled_rows_are_never_worse(count: int, channels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense, sparse = torch.randn(2, count, channels, generator=generator)
    fit, _ = fit_repair(dense, sparse, by_rows=inverts_rows(count, channels))
    matrix, mean_x, mean_y = fit.split((channels, 1, 1))
    mended = sparse + mean_y + (sparse - mean_x) @ matrix
    assert (mended - dense).square().sum() <= (1 + 1e-5) * (sparse - dense).square().sum()


def fitted(problem: Problem, density: float, sampled_rows: int, engine: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(plan, errors, exact, fit, out) of both ops."""
    operands, mask = problem.tensors(dtype), problem.mask()
    layout, tail = problem.layout.grid, (None, engine, ops.ABI)
    options = ([density], sampled_rows, False, *tail, None, None, None, None)
    plan, errors, exact, fit, _ = torch.ops.svg.profile_and_fit(*operands, mask, layout, *options)
    out = torch.ops.svg.attention(*operands, plan, mask, layout, *tail)
    torch.ops.svg.repair_(out, exact, fit, layout, *tail[1:])
    return plan, errors, exact, fit, out


@given(
    problem=problems(),
    density=st.sampled_from((0.2, 0.5, 1.0)),
    sampled_rows=st.sampled_from((1, 5, 20)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
)
def test_both_ops_against_the_oracle(problem: Problem, density: float, sampled_rows: int, dtype: torch.dtype) -> None:
    plan, errors, exact, fit, out = fitted(problem, density, sampled_rows, "cpu", dtype)
    query, key, value = problem.tensors(dtype)
    layout, mask = problem.layout, problem.mask()
    plain, old, _ = torch.ops.svg.profile(
        query, key, value, mask, layout.grid, [density], sampled_rows, False, None, "cpu", ops.ABI, *[None] * 3
    )
    assert torch.equal(plan, plain)
    assert torch.equal(errors[..., :2], old)
    # What is left on rows left out is no more than without a repair, and is it where there is none.
    kind = plan[..., 0].long().clamp(max=1)
    before = errors.gather(-1, kind[..., None])[..., 0]
    on = (fit != 0).any(-1).any(-1)
    assert (errors[..., 2] < before)[on].all()
    torch.testing.assert_close(errors[..., 2][~on], before[~on], rtol=1e-4, atol=1e-12)
    sparse = sparse_attention(query, key, value, plan, layout, key_mask=mask)
    if density == 1.0 or layout.frames == 1:
        assert torch.equal(out, sparse)
    expected = reference_repair.repaired(sparse, exact, fit, layout)
    eps = torch.finfo(dtype).eps
    assert float((out - expected).abs().max()) <= 2 * eps * float(expected.abs().max()) + 1e-5
    text = slice(layout.text_start, layout.text_start + layout.text_len)
    assert torch.equal(out[:, :, text], sparse[:, :, text])


@given(problem=problems(key_masks=("none", "text", "some")), sampled_rows=st.sampled_from((1, 6)))
def test_the_fits_of_both_engines_agree(problem: Problem, sampled_rows: int) -> None:
    found = fitted(problem, 0.3, sampled_rows, "cpu", torch.float32)
    exact = fitted(problem, 0.3, sampled_rows, "reference", torch.float32)
    same = (found[0] == exact[0]).all(-1)
    torch.testing.assert_close(found[1][same], exact[1][same], rtol=1e-3, atol=1e-9)


def test_rows_of_a_kept_fit_and_of_another_width() -> None:
    operands = [torch.randn(1, 2, LAYOUT.tokens, 16, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    tail = (24, False, None, "cpu", ops.ABI)

    def call(when: tuple[int, int], *kept: Tensor | None) -> tuple[Tensor, ...]:
        stage = torch.tensor(when, dtype=torch.int32)
        return torch.ops.svg.profile_and_fit(*operands, None, LAYOUT.grid, [0.3, 0.6], *tail, stage, *kept, None)

    plan, _, exact, fit, _ = call((0, 1), None, None)
    assert fit.any()
    assert exact.isfinite().all()
    kept_plan, errors, no_rows, kept, _ = call((0, 0), plan, fit)
    assert torch.equal(kept_plan, plan)
    assert torch.equal(kept, fit)
    assert errors.isnan().all()
    assert no_rows.isnan().all()
    # The fit was made for another mask than the one that runs now.
    wider, _, _, none, _ = call((1, 0), plan, fit)
    assert (wider[..., 1] > plan[..., 1]).all()
    assert not none.any()
    anew = call((0, 1), plan, torch.full_like(fit, 7.0))
    assert torch.equal(anew[3], fit)
    with pytest.raises(LayoutError, match="together"):
        call((0, 0), plan, None)


def test_a_head_that_is_not_finite_is_dense_and_left_alone() -> None:
    problem = Problem(LAYOUT, 1, 2, 16, ("contiguous",) * 3, "none", 0)
    query, key, value = problem.tensors()
    value[0, 0, 40] = float("nan")
    options = ([0.3], 16, False, None, "cpu", ops.ABI, None, None, None, None)
    plan, _, exact, fit, _ = torch.ops.svg.profile_and_fit(query, key, value, None, LAYOUT.grid, *options)
    assert plan[0, 0, 0] == HeadKind.DENSE
    assert plan[0, 1, 0] != HeadKind.DENSE
    assert not fit[0, 0].any()
    assert exact[0, 0].isnan().all()
    assert exact[0, 1].isfinite().all()


def test_half_precision_stays_finite() -> None:
    out = torch.full((1, 1, LAYOUT.tokens, 2), 60000.0, dtype=torch.float16)
    fit = torch.zeros(1, 1, 4, 2)
    fit[..., 3, :] = 30000.0
    repair_(out, torch.full((1, 1, 1, 2), float("nan")), fit, LAYOUT)
    assert out.isfinite().all()
    assert out.max() == torch.finfo(torch.float16).max


def test_products_are_float32_whatever_torch_is_set_to() -> None:
    problem = Problem(LAYOUT, 1, 2, 64, ("contiguous",) * 3, "none", 1)
    expected = fitted(problem, 0.3, 32, "cpu", torch.float32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            found = fit_repair(expected[2], expected[2] * 0.5 + 1, by_rows=True)
        again = fit_repair(expected[2], expected[2] * 0.5 + 1, by_rows=True)
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))


def test_the_ops_are_well_formed() -> None:
    problem = Problem(LAYOUT, 2, 2, 16, ("bshd",) * 3, "some", 2)
    operands, mask = problem.tensors(), problem.mask()
    options = ([0.3], 16, False, None, "auto", ops.ABI, None, None, None, None)
    profile = (*operands, mask, LAYOUT.grid, *options)
    _, _, exact, fit, _ = torch.ops.svg.profile_and_fit(*profile)
    repair = (operands[0].clone(), torch.zeros_like(exact), fit, LAYOUT.grid, "auto", ops.ABI)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    # Exact rows may be NaN, which is equal to nothing, itself included.
    torch.library.opcheck(torch.ops.svg.profile_and_fit.default, profile, test_utils=tests)
    torch.library.opcheck(torch.ops.svg.repair_.default, repair, test_utils=tests)
