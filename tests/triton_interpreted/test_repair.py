"""The repair's kernels: the profile's rows and fits against the oracle, inverses, and the repaired result."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strategies import strided
from svg_compile.kernels import reference, reference_repair
from svg_compile.kernels.triton.attention import sparse_attention
from svg_compile.kernels.triton.fit import inverses, profile_and_fit
from svg_compile.kernels.triton.profile import profile_heads
from svg_compile.kernels.triton.repair import repair_
from svg_compile.layout import HeadKind, VideoLayout

LAYOUT = VideoLayout(4, 3, 4, text_len=5, block=4)


def rand(layout: VideoLayout, head_dim: int, dtype: torch.dtype = torch.float32, strides: str = "bshd") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 2, layout.tokens, head_dim)
    return [strided(torch.randn(shape, generator=generator).to(dtype), strides) for _ in range(3)]


@pytest.mark.parametrize("size", [1, 5, 16, 20])
def test_inverses(size: int) -> None:
    rows = torch.randn(3, size, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    matrices = rows @ rows.mT + 0.01 * torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(inverses(matrices, 20), torch.linalg.inv(matrices), rtol=1e-7, atol=1e-9)
    matrices[1] = float("nan")
    found = inverses(matrices, 20)
    assert found[1].isnan().all()
    assert found[::2].isfinite().all()


@pytest.mark.parametrize(
    ("head_dim", "sampled_rows", "text_first", "masked", "dtype"),
    [
        (16, 12, False, False, torch.float32),
        (20, 24, True, True, torch.float32),
        (72, 7, True, False, torch.float16),
        (16, 60, False, True, torch.float16),
    ],
)
def test_profile_fit_and_repair_match_the_oracle(
    head_dim: int, sampled_rows: int, text_first: bool, masked: bool, dtype: torch.dtype
) -> None:
    layout = VideoLayout(4, 3, 4, text_len=5, text_first=text_first, block=4)
    operands = rand(layout, head_dim, dtype)
    key_mask = torch.ones(2, layout.tokens, dtype=torch.bool) if masked else None
    if key_mask is not None:
        key_mask[0, 3::5] = False
    options = ((0.4,), sampled_rows, False, None)
    plan, errors, exact, fit, _ = profile_and_fit(*operands, key_mask, layout.grid, *options)
    old = profile_heads(*operands, key_mask, layout.grid, *options)
    assert torch.equal(plan, old[0])
    assert torch.equal(errors[..., :2], old[1])
    outputs = reference.uniform_rows(
        *operands, layout, density=0.4, sampled_rows=sampled_rows, key_mask=key_mask, scale=None
    )
    near = 20 * torch.finfo(dtype).eps
    assert float((exact.double() - outputs[:, :, 0]).abs().max()) <= near
    assert fit.any()
    for batch in range(2):
        for head in range(2):
            found = outputs[batch, head, 0], outputs[batch, head, 1 + int(plan[batch, head, 0])]
            _, left = reference_repair.fit_head(*found)
            assert float(errors[batch, head, 2]) == pytest.approx(left, rel=100 * near, abs=1e-7)

    sparse = sparse_attention(*operands, plan, key_mask, layout.grid, None)
    out = sparse.clone()
    repair_(out, exact, fit, layout.grid)
    expected = reference_repair.repaired(sparse, exact, fit, layout)
    eps = torch.finfo(dtype).eps
    assert float((out - expected).abs().max()) <= 2 * eps * float(expected.abs().max()) + 1e-5
    text = slice(layout.text_start, layout.text_start + layout.text_len)
    assert torch.equal(out[:, :, text], sparse[:, :, text])


def test_density_one_leaves_everything_as_it_is() -> None:
    operands = rand(LAYOUT, 16)
    plan, errors, exact, fit, _ = profile_and_fit(*operands, None, LAYOUT.grid, (1.0,), 16, False, None)
    assert not errors.any()
    assert exact.isnan().all()
    assert not fit.any()
    sparse = sparse_attention(*operands, plan, None, LAYOUT.grid, None)
    out = sparse.clone()
    repair_(out, exact, fit, LAYOUT.grid)
    assert torch.equal(out, sparse)


def test_a_head_that_is_not_finite_is_left_alone() -> None:
    operands = rand(LAYOUT, 16)
    operands[2][0, 1, 9] = float("nan")
    plan, _, exact, fit, _ = profile_and_fit(*operands, None, LAYOUT.grid, (0.4,), 12, False, None)
    assert plan[0, 1, 0] == HeadKind.DENSE
    assert exact[0, 1].isnan().all()
    assert not fit[0, 1].any()
    assert exact[0, 0].isfinite().all()
    assert fit.isfinite().all()


def test_fits_are_kept_with_their_kinds_and_for_their_widths() -> None:
    operands, options = rand(LAYOUT, 16), ((0.4, 0.7), 12, False, None)

    def call(index: int, anew: int, *kept: Tensor | None) -> tuple[Tensor, ...]:
        when = torch.tensor([index, anew], dtype=torch.int32)
        return profile_and_fit(*operands, None, LAYOUT.grid, *options, when, *kept)

    plan, _, exact, fit, _ = call(0, 1, None, None)
    assert fit.any()
    kept_plan, errors, none, kept, _ = call(0, 0, plan, fit)
    assert torch.equal(kept_plan, plan)
    assert torch.equal(kept, fit)
    assert errors.isnan().all()
    assert none.isnan().all()
    assert not call(1, 0, plan, fit)[3].any()
    anew = call(0, 1, plan, torch.full_like(fit, 7.0))
    assert torch.equal(anew[2], exact)
    assert torch.equal(anew[3], fit)


@pytest.mark.parametrize("strides", ["contiguous", "spread"])
def test_half_precision_stays_finite_and_strides_are_read(strides: str) -> None:
    source = strided(torch.full((1, 2, LAYOUT.tokens, 20), 60000.0, dtype=torch.float16), strides)
    fit = torch.zeros(1, 2, 22, 20)
    fit[:, 1, 21] = 30000.0
    exact = torch.full((1, 2, 3, 20), float("nan"))
    out = strided(source, strides)
    if out.data_ptr() == source.data_ptr():
        out = source.clone()
    repair_(out, exact, fit, LAYOUT.grid)
    assert torch.equal(out[:, 0], source[:, 0])
    assert (out[:, 1, : LAYOUT.video] == torch.finfo(torch.float16).max).all()
    assert torch.equal(out[:, 1, LAYOUT.video :], source[:, 1, LAYOUT.video :])
