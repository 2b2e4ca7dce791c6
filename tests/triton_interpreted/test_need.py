"""Half-widths by need: what the kernels find missing, and the plans that they make of it, against `kernels.widths`."""

from __future__ import annotations

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heads_in_parts import in_parts
from strategies import strided
from svg_compile.kernels import reference, widths
from svg_compile.kernels.plan import plan_from_errors
from svg_compile.kernels.repair import inverts_rows, repair_of
from svg_compile.kernels.spread import Spread
from svg_compile.kernels.triton.fit import profile_and_fit
from svg_compile.kernels.triton.half_width import ladders
from svg_compile.kernels.triton.need import plan_by_need_fwd_kernel
from svg_compile.kernels.triton.profile import profile_parts
from svg_compile.layout import HeadKind, VideoLayout

LAYOUT = VideoLayout(5, 4, 4, text_len=5, block=4)
RUNGS = 2 * len(widths.LADDER)


def rand(layout: VideoLayout, head_dim: int, dtype: torch.dtype = torch.float32, heads: int = 3) -> list[Tensor]:
    """q, k, v [2, heads, N, D], whose heads are sharp to a different degree."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, heads, layout.tokens, head_dim)
    tensors = [torch.randn(shape, generator=generator) for _ in range(3)]
    tensors[0] *= torch.linspace(0.3, 3.0, heads)[:, None, None]
    return [strided(tensor.to(dtype), "bshd") for tensor in tensors]


def planned(
    errors: Tensor, missing: Tensor, layout: VideoLayout, density: float, share: Tensor | None = None
) -> Tensor:
    """The kernel's plan for errors [B, H, 2] and missing mass [B, H, 2, rungs]."""
    batch, heads, _ = errors.shape
    rungs, cost = ladders(layout.grid, [density], errors.device)
    uniform = plan_from_errors(errors, layout, density)
    plan = torch.full_like(uniform, -1)
    shares = errors if share is None else share
    plan_by_need_fwd_kernel[(batch,)](
        errors.contiguous(), missing.contiguous(), uniform, rungs, cost, rungs, rungs, shares, plan,
        0, 0, shares.stride(0), heads,
        HAS_WHEN=False, HAS_PREVIOUS=False, HAS_SHARE=share is not None,
        HEADS=triton.next_power_of_2(heads), RUNGS=RUNGS, UNIFORM=widths.UNIFORM, LEAST_PRICE=widths.LEAST_PRICE,
        MOST_PRICE=widths.MOST_PRICE, STEPS=widths.STEPS, FILLS=widths.FILLS, SLACK=widths.SLACK,
    )  # fmt: skip
    return plan


@settings(max_examples=20)
@given(
    heads=st.integers(1, 6), seed=st.integers(0, 999), density=st.sampled_from((0.1, 0.3, 0.6, 1.0)),
    wrong=st.sampled_from((None, float("nan"), float("inf"))), shared=st.booleans(),
)  # fmt: skip
def test_the_kernel_plans_as_the_definition(
    heads: int, seed: int, density: float, wrong: float | None, shared: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    missing = (torch.rand(2, heads, 2, RUNGS // 2, generator=generator) ** 4).flip(-1).cumsum(-1).flip(-1)
    missing[0, 0, 0] = 0.0
    errors = torch.rand(2, heads, 2, generator=generator) ** 3
    if wrong is not None:
        errors[0, heads - 1, seed % 2] = wrong
        errors[1, 0] = wrong
    # From less than the narrowest rungs cost to more than the widest.
    share = 4 * torch.rand(2, generator=generator) ** 2 + 0.1 if shared else None
    expected = widths.plan_by_need(errors, missing, LAYOUT, density, share)
    assert torch.equal(planned(errors, missing, LAYOUT, density, share), expected)


@pytest.mark.parametrize(
    ("head_dim", "sampled_rows", "text_first", "masked", "dtype"),
    [
        (16, 12, False, False, torch.float32),
        (20, 24, True, True, torch.float32),
        (72, 7, True, False, torch.float16),
        (16, 40, False, True, torch.float16),
    ],
)
def test_the_profile_by_need_is_the_oracles(
    head_dim: int, sampled_rows: int, text_first: bool, masked: bool, dtype: torch.dtype
) -> None:
    layout = VideoLayout(5, 4, 4, text_len=5, text_first=text_first, block=4)
    operands = rand(layout, head_dim, dtype)
    key_mask = torch.ones(2, layout.tokens, dtype=torch.bool) if masked else None
    if key_mask is not None:
        key_mask[0, 3::5] = False
    parts = profile_parts(*operands, key_mask, layout.grid, [0.4], sampled_rows, True, None)
    options = {"density": 0.4, "sampled_rows": sampled_rows, "key_mask": key_mask, "scale": None}
    exact = reference.profile_rows(*operands, layout, adaptive=True, **options)
    near = 20 * torch.finfo(dtype).eps
    assert float((parts.errors.double() - exact.errors).abs().max()) <= near
    assert len({tuple(head) for head in parts.plan.flatten(0, 1).tolist()}) > 2
    assert torch.equal(parts.plan, exact.plan)

    plan, errors, rows, fit, _ = profile_and_fit(*operands, key_mask, layout.grid, [0.4], sampled_rows, True, None)
    assert torch.equal(plan, exact.plan)
    assert torch.equal(errors[..., :2], parts.errors)
    assert float((rows.double() - exact.dense).abs().max()) <= near
    expected = reference.profile_rows(*operands, layout, adaptive=True, **options)

    _, wanted, left = repair_of(
        expected.dense.float(), expected.sparse.float(), by_rows=inverts_rows(sampled_rows, head_dim)
    )
    torch.testing.assert_close(errors[..., 2], left, rtol=200 * near, atol=1e-6)
    assert torch.equal((fit != 0).any(-1).any(-1), (wanted != 0).any(-1).any(-1))


def test_plans_are_kept_whole_and_each_density_has_its_ladder() -> None:
    operands = rand(LAYOUT, 16)

    def call(index: int, anew: int, previous: Tensor | None) -> Tensor:
        when = torch.tensor([index, anew], dtype=torch.int32)
        return profile_parts(*operands, None, LAYOUT.grid, [0.4, 0.7], 12, True, None, when, previous).plan

    plans = [call(index, 1, None) for index in range(2)]
    for index, density in enumerate((0.4, 0.7)):
        alone = profile_parts(*operands, None, LAYOUT.grid, [density], 12, True, None)
        assert torch.equal(plans[index], alone.plan)
        assert torch.equal(call(index, 1, plans[1 - index]), alone.plan)
        assert torch.equal(call(1 - index, 0, plans[index]), plans[index])
    assert not torch.equal(*plans)


def test_a_head_that_is_not_finite_is_dense() -> None:
    operands = rand(LAYOUT, 16)
    operands[2][0, 1, 9] = float("nan")
    plan = profile_parts(*operands, None, LAYOUT.grid, [0.4], 12, True, None).plan
    assert plan[0, 1].tolist() == [HeadKind.DENSE, LAYOUT.full_half_width]
    assert (plan[0, ::2, 0] != HeadKind.DENSE).all()


@pytest.mark.parametrize("anew", [1, 0])
def test_heads_spread_over_processes_share_as_in_one(anew: int, monkeypatch: pytest.MonkeyPatch) -> None:
    operands = rand(LAYOUT, 16, heads=4)
    when, previous = torch.tensor([0, anew], dtype=torch.int32), torch.tensor([[[0, 3], [1, 2], [0, 5], [2, 4]]] * 2)
    share = torch.tensor([1.2, 0.8])

    def profiled(own: slice, spread: Spread | None = None) -> tuple[Tensor, ...]:
        kept = previous[:, own].to(torch.int32)
        fits = torch.zeros(2, kept.shape[1], 18, 16)
        parts = [operand[:, own] for operand in operands]
        options = (LAYOUT.grid, [0.4], 12, True, None, when, kept, fits, share, spread)
        return profile_and_fit(*parts, None, *options)

    def half(rank: int) -> tuple[Tensor, ...]:
        return profiled(slice(2 * rank, 2 * rank + 2), Spread("heads", rank, 2))

    whole = profiled(slice(None))
    if anew:
        halves = in_parts(2, half, monkeypatch)
    else:
        # Nothing is profiled, so what is gathered has no values.
        monkeypatch.setattr("svg_compile.kernels.spread.all_gathered", lambda each, group, ranks: torch.cat([each] * 2))
        halves = [half(0), half(1)]
    for index, result in enumerate(whole[:4]):
        torch.testing.assert_close(torch.cat([each[index] for each in halves], dim=1), result, equal_nan=True)
    assert torch.equal(whole[0], previous.to(torch.int32)) is not bool(anew)
