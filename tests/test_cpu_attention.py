"""The CPU engine against the float64 oracle, and the properties of attention that need no oracle."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from torch import Tensor

from strategies import STRIDES, Problem, problems, strided
from svg_compile.kernels.cpu.attention import sparse_attention
from svg_compile.kernels.reference import attention_mask
from svg_compile.layout import HeadKind, VideoLayout
from tolerances import assert_close, assert_matches_oracle, eager_attention

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Long enough for chunks of several tiles, the ring, and tiles clipped at either end; ragged in blocks and frames.
LONG = VideoLayout(5, 20, 26, text_len=19, text_first=True)
BANDS = (HeadKind.SPATIAL, HeadKind.TEMPORAL)


def rand(layout: VideoLayout, heads: int = 2, head_dim: int = 16, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v [1, H, N, D], the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, layout.tokens, head_dim, generator=generator).to(dtype) for _ in range(3)]


def plan_of(*heads: tuple[int, int]) -> Tensor:
    """A plan [1, H, 2] from (kind, half-width) pairs."""
    return torch.tensor([heads], dtype=torch.int32)


def full_plan(layout: VideoLayout) -> Tensor:
    return plan_of(*((int(kind), layout.full_half_width) for kind in BANDS))


@given(problem=problems())
@example(Problem(VideoLayout(9, 8, 16, block=8), 1, 4, 8, ("contiguous",) * 3, "none", 3))
@example(Problem(VideoLayout(1, 3, 3, 5), 2, 2, 8, ("contiguous",) * 3, "most", 0))
def test_matches_the_oracle(problem: Problem) -> None:
    query, key, value = problem.tensors()
    plan, key_mask = problem.plan(), problem.mask()
    out = sparse_attention(query, key, value, plan, problem.layout, key_mask=key_mask)
    assert_matches_oracle(out, query, key, value, plan, problem.layout, key_mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "half_width"), [(64, 2), (72, 4), (128, 7)])
def test_long_sequences_match_the_oracle(dtype: torch.dtype, head_dim: int, half_width: int) -> None:
    query, key, value = rand(LONG, 3, head_dim, dtype)
    plan = plan_of((0, half_width), (1, half_width), (1, half_width + 1))
    out = sparse_attention(query, key, value, plan, LONG)
    assert_matches_oracle(out, query, key, value, plan, LONG)


@pytest.mark.parametrize("block", [1, 4, 32, 64, 256])
@pytest.mark.parametrize("reach", [64, 600])
def test_every_block_size_matches_the_oracle(block: int, reach: int) -> None:
    layout = VideoLayout(6, 16, 20, block=block)
    query, key, value = rand(layout)
    plan = plan_of((0, reach // block), (1, reach // block))
    assert_matches_oracle(sparse_attention(query, key, value, plan, layout), query, key, value, plan, layout)


@pytest.mark.parametrize("area", [1, 2, 63, 64, 65, 127, 128, 129, 131, 257])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_lengths_at_block_edges(area: int, frames: int) -> None:
    layout = VideoLayout(frames, 1, area, text_len=area % 3)
    query, key, value = rand(layout)
    for half_width in (0, 1):
        plan = plan_of((0, half_width), (1, half_width))
        assert_matches_oracle(sparse_attention(query, key, value, plan, layout), query, key, value, plan, layout)


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_bands_are_dense_attention(dtype: torch.dtype) -> None:
    layout = VideoLayout(5, 8, 9, text_len=6, block=16)
    query, key, value = rand(layout, dtype=dtype)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    eager = eager_attention(query, key, value, torch.ones((), dtype=torch.bool), 16**-0.5)
    for plan in (full_plan(layout), plan_of((2, 0), (2, 0)), full_plan(layout) - plan_of((0, 1), (0, 1))):
        out = sparse_attention(query, key, value, plan, layout)
        if int(plan[0, 0, 1]) in (0, layout.full_half_width):
            assert_close(out, exact, eager)
        else:
            assert_matches_oracle(out, query, key, value, plan, layout)


@pytest.mark.parametrize("half_width", [0, 1, 3])
def test_values_of_one_give_one_and_outputs_stay_in_range(half_width: int) -> None:
    query, key, value = rand(LONG)
    plan = plan_of((0, half_width), (1, half_width))
    ones = sparse_attention(query, key, torch.ones_like(value), plan, LONG)
    torch.testing.assert_close(ones, torch.ones_like(ones), rtol=0, atol=1e-5)
    out = sparse_attention(query, key, value, plan, LONG)
    assert out.max() <= value.max() + 1e-5
    assert out.min() >= value.min() - 1e-5


@pytest.mark.parametrize("kind", BANDS)
def test_zero_queries_average_the_visible_values(kind: HeadKind) -> None:
    query, key, value = rand(LONG, heads=1)
    out = sparse_attention(torch.zeros_like(query), key, value, plan_of((kind, 2)), LONG)
    mask = attention_mask(LONG, 2, kind).double()
    mean = mask @ value[0, 0].double() / mask.sum(-1, keepdim=True)
    torch.testing.assert_close(out[0, 0].double(), mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shown", [0, 3, 70, 200, 359])
def test_one_visible_key_gives_its_value(shown: int) -> None:
    layout = VideoLayout(5, 8, 9, block=16)
    query, key, value = rand(layout)
    key_mask = torch.zeros(1, layout.tokens, dtype=torch.bool)
    key_mask[0, shown] = True
    plan = plan_of((0, 2), (1, 2))
    out = sparse_attention(query, key, value, plan, layout, key_mask=key_mask)
    for head, kind in enumerate(BANDS):
        sees = attention_mask(layout, 2, kind)[:, shown, None]
        expected = torch.where(sees, value[0, head, shown], 0.0)
        torch.testing.assert_close(out[0, head], expected, rtol=1e-6, atol=0)


def test_rows_that_see_no_key_are_zero() -> None:
    layout = VideoLayout(4, 8, 16, text_len=9)
    query, key, value = rand(layout, heads=3)
    plan = plan_of((0, 0), (1, 0), (2, 0))
    nothing = torch.zeros(1, layout.tokens, dtype=torch.bool)
    assert not sparse_attention(query, key, value, plan, layout, key_mask=nothing).any()
    # Without text and sink, rows of frame 0 and far rows are left with nothing.
    far = nothing.clone()
    far[0, -20:] = True
    far[0, layout.text_start :] = False
    out = sparse_attention(query, key, value, plan, layout, key_mask=far)
    assert not out[0, 0, : layout.area].any()
    assert_matches_oracle(out, query, key, value, plan, layout, far)


@pytest.mark.parametrize(("planted", "part"), list(product((float("nan"), float("inf")), ("key", "value"))))
def test_what_the_mask_hides_is_never_read(planted: float, part: str) -> None:
    query, key, value = rand(LONG)
    plan = plan_of((0, 1), (1, 1))
    clean = sparse_attention(query, key, value, plan, LONG)
    victim = LONG.video_start + LONG.area + 1500
    tensors = {"key": key.clone(), "value": value.clone()}
    tensors[part][:, :, victim] = planted
    out = sparse_attention(query, tensors["key"], tensors["value"], plan, LONG)
    for head, kind in enumerate(BANDS):
        blind = ~attention_mask(LONG, 1, kind)[:, victim]
        assert blind.any()
        assert torch.equal(out[0, head, blind], clean[0, head, blind])
    key_mask = torch.ones(1, LONG.tokens, dtype=torch.bool)
    key_mask[0, victim] = False
    hidden = sparse_attention(query, tensors["key"], tensors["value"], plan, LONG, key_mask=key_mask)
    assert_matches_oracle(hidden, query, key, value, plan, LONG, key_mask)


@pytest.mark.parametrize("factor", [30.0, 1000.0])
def test_large_scores(factor: float) -> None:
    query, key, value = rand(LONG)
    plan = plan_of((0, 2), (1, 2))
    out = sparse_attention(query * factor, key, value, plan, LONG)
    assert_matches_oracle(out, query * factor, key, value, plan, LONG)


@pytest.mark.parametrize("strides", [name for name in STRIDES if name not in ("contiguous", "expanded_heads")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_change_no_bit(strides: str, dtype: torch.dtype) -> None:
    tensors = rand(LONG, heads=3, dtype=dtype)
    plan = plan_of((0, 2), (1, 3), (2, 0))
    out = sparse_attention(*tensors, plan, LONG)
    assert torch.equal(sparse_attention(*(strided(tensor, strides) for tensor in tensors), plan, LONG), out)
    assert out.transpose(1, 2).is_contiguous()


@given(problem=problems())
def test_inputs_are_left_alone_and_runs_repeat(problem: Problem) -> None:
    tensors = (*problem.tensors(), problem.plan())
    key_mask = problem.mask()
    before = [tensor.clone() for tensor in tensors]
    state = torch.get_rng_state()
    first = sparse_attention(*tensors, problem.layout, key_mask=key_mask)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, sparse_attention(*tensors, problem.layout, key_mask=key_mask))


def test_heads_and_batch_do_not_touch_each_other() -> None:
    layout = VideoLayout(5, 10, 13, text_len=5)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, layout.tokens, 8) for _ in range(3))
    heads = [[(0, 0), (1, 0), (0, 1), (2, 0)], [(1, 2), (0, 0), (1, 0), (0, 0)]]
    plan = torch.tensor(heads, dtype=torch.int32)
    together = sparse_attention(query, key, value, plan, layout)
    for batch, head in product(range(2), range(4)):
        one = (slice(batch, batch + 1), slice(head, head + 1))
        alone = sparse_attention(query[one], key[one], value[one], plan[one], layout)
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0])
def test_scales_are_honoured(scale: float) -> None:
    query, key, value = rand(LONG)
    plan = plan_of((0, 2), (1, 2))
    out = sparse_attention(query, key, value, plan, LONG, scale=scale)
    assert_matches_oracle(out, query, key, value, plan, LONG, scale=scale)


def test_values_may_have_another_width() -> None:
    query, key, value = rand(LONG)
    plan = plan_of((0, 2), (1, 2))
    whole = sparse_attention(query, key, value, plan, LONG)
    torch.testing.assert_close(sparse_attention(query, key, value[..., :5], plan, LONG), whole[..., :5])
