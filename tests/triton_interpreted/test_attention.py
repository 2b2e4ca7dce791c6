"""The attention kernel against the float64 oracle, and the properties of attention that need no oracle.

float16 and float32: the interpreter's bfloat16 dot is wrong. Its tiles are 16 x 16, so that small grids have whole
tiles, edges and ends of every sort.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from strategies import STRIDES, Problem
from svg_compile.errors import LayoutError
from svg_compile.kernels.triton import attention as triton_attention
from svg_compile.kernels.triton import prepare as triton_prepare
from svg_compile.kernels.triton.launch import launcher
from svg_compile.layout import HeadKind, VideoLayout
from tolerances import assert_matches_oracle

DTYPES = (torch.float32, torch.float16)
PLAIN = ("contiguous",) * 3
# Several whole tiles a run, a ragged end of each, and bands narrower than the body.
MEDIUM = VideoLayout(4, 3, 6, text_len=18, block=8)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor,
    layout: VideoLayout,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    return triton_attention.sparse_attention(query, key, value, plan, key_mask, layout.grid, scale)


def check(problem: Problem, dtype: torch.dtype, scale: float | None = None) -> None:
    query, key, value = problem.tensors(dtype)
    plan, key_mask = problem.plan(), problem.mask()
    out = attend(query, key, value, plan, problem.layout, key_mask, scale)
    assert_matches_oracle(out, query, key, value, plan, problem.layout, key_mask, scale)


def rand(layout: VideoLayout, heads: int = 2, head_dim: int = 16, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v [1, H, N, D], the same at each call."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, layout.tokens, head_dim, generator=generator).to(dtype) for _ in range(3)]


def plan_of(*heads: tuple[int, int]) -> Tensor:
    return torch.tensor([heads], dtype=torch.int32)


@st.composite
def tiny_problems(draw: st.DrawFn) -> Problem:
    names = st.sampled_from(STRIDES)
    grid = (draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 4)))
    text_len, block = draw(st.sampled_from((0, 1, 7, 17, 33))), draw(st.sampled_from((1, 4, 16, 32)))
    return Problem(
        layout=VideoLayout(*grid, text_len, draw(st.booleans()), block),
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 2)),
        head_dim=draw(st.sampled_from((16, 17, 24, 40, 72, 96))),
        strides=(draw(names), draw(names), draw(names)),
        key_mask=draw(st.sampled_from(("none", "none", "text", "some", "most"))),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


@settings(max_examples=14)
@given(problem=tiny_problems(), dtype=st.sampled_from(DTYPES))
@example(problem=Problem(VideoLayout(6, 5, 4, block=4), 1, 2, 16, PLAIN, "none", 3), dtype=torch.float32)
@example(problem=Problem(VideoLayout(6, 4, 4, 33, True, 16), 2, 2, 16, PLAIN, "text", 0), dtype=torch.float32)
@example(problem=Problem(VideoLayout(6, 4, 4, 33, False, 16), 2, 2, 16, PLAIN, "text", 1), dtype=torch.float16)
def test_matches_the_oracle(problem: Problem, dtype: torch.dtype) -> None:
    check(problem, dtype)


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 31, 37])
@pytest.mark.parametrize("text_first", [False, True])
def test_lengths_round_a_tile(tokens: int, text_first: bool) -> None:
    """Each of text, frame 0 and body has lengths of one token, a tile, one less, one more, and primes."""
    seed = tokens
    check(Problem(VideoLayout(2, 1, tokens, 0, text_first, 4), 1, 1, 16, PLAIN, "none", seed), torch.float32)
    check(Problem(VideoLayout(1, 1, tokens, tokens, text_first, 4), 1, 1, 16, PLAIN, "some", seed), torch.float32)
    check(Problem(VideoLayout(1, 1, 1, tokens - 1, text_first, 4), 1, 1, 16, PLAIN, "none", seed), torch.float16)


@pytest.mark.parametrize("kind", [HeadKind.SPATIAL, HeadKind.TEMPORAL])
@pytest.mark.parametrize("block", [1, 16, 128])
@pytest.mark.parametrize("text_first", [False, True])
def test_every_half_width(kind: HeadKind, block: int, text_first: bool) -> None:
    layout = VideoLayout(5, 2, 5, 3, text_first, block)
    query, key, value = rand(layout, 3)
    full = layout.full_half_width
    plan = plan_of((kind, 0), (kind, full // 2), (kind, 2**31 - 1))
    assert_matches_oracle(attend(query, key, value, plan, layout), query, key, value, plan, layout)


def test_strides_are_read_one_tensor_at_a_time() -> None:
    layout = VideoLayout(3, 2, 3, 4, block=4)
    for index, name in enumerate(STRIDES):
        strides = (name, STRIDES[index - 1], STRIDES[index - 2])
        check(Problem(layout, 2, 2, 16, strides, "none", index), torch.float32)


def test_key_and_value_may_have_other_head_dims() -> None:
    query, key, _ = rand(MEDIUM, 2, 24)
    value = rand(MEDIUM, 2, 40)[2]
    plan = plan_of((0, 1), (1, 1))
    out = attend(query, key, value, plan, MEDIUM)
    assert out.shape == (1, 2, MEDIUM.tokens, 40)
    assert_matches_oracle(out, query, key, value, plan, MEDIUM)


@pytest.mark.parametrize("scale", [None, 0.0, -0.3, 0.05, 2.0])
def test_scales(scale: float | None) -> None:
    check(Problem(VideoLayout(3, 2, 3, 4, block=4), 1, 2, 16, PLAIN, "some", 1), torch.float32, scale)


def test_nan_in_keys_that_a_query_never_needs_does_nothing() -> None:
    """Width 0 with blocks of a tile: whole tiles are skipped, and what is in them never shows."""
    layout = VideoLayout(4, 4, 8, block=16)
    query, key, value = rand(layout)
    plan = plan_of((0, 0), (1, 0))
    clean = attend(query, key, value, plan, layout)
    last_place = torch.arange(1, 4) * 32 + 31
    for head, hidden in enumerate((slice(96, None), last_place)):
        key[:, head, hidden] = float("nan")
        value[:, head, hidden] = float("inf")
    out = attend(query, key, value, plan, layout)
    assert torch.equal(out[:, 0, 32:80], clean[:, 0, 32:80])
    early = torch.cat([torch.arange(f * 32, f * 32 + 20) for f in range(1, 4)])
    assert torch.equal(out[:, 1, early], clean[:, 1, early])


@pytest.mark.parametrize("hidden", ["text", "first and last", "body"])
def test_hidden_keys_are_never_read(hidden: str) -> None:
    query, key, value = rand(MEDIUM)
    seen = torch.ones(1, MEDIUM.tokens, dtype=torch.bool)
    where = {"text": slice(MEDIUM.video + 5, None), "first and last": [0, MEDIUM.tokens - 1], "body": slice(20, 60, 7)}
    seen[:, where[hidden]] = False
    plan = plan_of((0, 2), (1, 1))
    clean = attend(query, key, value, plan, MEDIUM, seen)
    assert_matches_oracle(clean, query, key, value, plan, MEDIUM, seen)
    key[:, :, ~seen[0]] = float("nan")
    value[:, :, ~seen[0]] = float("nan")
    assert torch.equal(attend(query, key, value, plan, MEDIUM, seen), clean)


def test_batches_have_their_own_key_masks() -> None:
    query, key, value = (tensor.expand(2, -1, -1, -1) for tensor in rand(MEDIUM))
    seen = torch.ones(2, MEDIUM.tokens, dtype=torch.bool)
    seen[1, MEDIUM.video + 2 :] = False
    plan = plan_of((0, 1), (2, 0)).expand(2, -1, -1)
    assert_matches_oracle(attend(query, key, value, plan, MEDIUM, seen), query, key, value, plan, MEDIUM, seen)


def test_rows_that_see_no_key_are_zero() -> None:
    query, key, value = rand(MEDIUM)
    seen = torch.zeros(1, MEDIUM.tokens, dtype=torch.bool)
    out = attend(query, key, value, plan_of((1, 1), (2, 0)), MEDIUM, seen)
    assert torch.equal(out, torch.zeros_like(out))


def test_one_visible_key_gives_its_value() -> None:
    query, key, value = rand(MEDIUM)
    seen = torch.zeros(1, MEDIUM.tokens, dtype=torch.bool)
    seen[0, 7] = True
    out = attend(query, key, value, plan_of((0, 0), (1, 0)), MEDIUM, seen)
    torch.testing.assert_close(out, value[:, :, 7:8].expand_as(out))


def test_values_of_one_give_one_and_zero_queries_the_mean() -> None:
    query, key, value = rand(MEDIUM)
    out = attend(query, key, torch.ones_like(value), plan_of((0, 1), (1, 1)), MEDIUM)
    torch.testing.assert_close(out, torch.ones_like(out))
    out = attend(torch.zeros_like(query), key, value, plan_of((2, 0), (2, 0)), MEDIUM)
    torch.testing.assert_close(out, value.mean(2, keepdim=True).expand_as(out))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_ten_thousand(dtype: torch.dtype) -> None:
    query, key, value = rand(MEDIUM, dtype=dtype)
    query, key = query * 50, key * 50
    assert float((query.float() @ key.float().mT).abs().max() / 4) > 1e4
    plan = plan_of((0, 1), (1, 1))
    assert_matches_oracle(attend(query, key, value, plan, MEDIUM), query, key, value, plan, MEDIUM)


def test_nothing_round_the_output_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = rand(MEDIUM, 2, 24)
    buffer = torch.full((1, MEDIUM.tokens + 2, 4, 40), 7.0)
    inner = (slice(None), slice(1, -1), slice(1, 3), slice(8, 32))
    monkeypatch.setattr(triton_attention, "empty_output", lambda query, value: buffer[inner].transpose(1, 2))
    plan = plan_of((0, 1), (1, 0))
    inputs = [tensor.clone() for tensor in (query, key, value, plan)]
    out = attend(query, key, value, plan, MEDIUM)
    assert_matches_oracle(out, query, key, value, plan, MEDIUM)
    outside = torch.ones_like(buffer, dtype=torch.bool)
    outside[inner] = False
    assert bool((buffer[outside] == 7.0).all())
    assert all(torch.equal(*pair) for pair in zip(inputs, (query, key, value, plan), strict=True))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_offsets_past_two_to_the_31(which: int) -> None:
    """Token strides of 2**26 elements: tokens from 32 on lie past 2**31. Untouched pages cost no memory."""
    layout = VideoLayout(5, 2, 5, block=4)
    tensors = rand(layout, 2, 16, torch.float16)
    storage = torch.empty(2**26 * layout.tokens, dtype=torch.float16)
    far = storage.as_strided(tensors[which].shape, (32, 16, 2**26, 1))
    tensors[which] = far.copy_(tensors[which])
    plan = plan_of((2, 0), (1, 3))
    assert_matches_oracle(attend(*tensors, plan, layout), *tensors, plan, layout)


def test_heads_come_longest_first() -> None:
    plan = torch.tensor([[0, 3], [1, 9], [2, 0], [0, 9], [2, 5], [1, 0]], dtype=torch.int32).repeat(20, 1)
    order = torch.empty(len(plan) + 1, dtype=torch.int32)
    launcher(triton_prepare.head_order_fwd_kernel)[(2,)](plan, order, 2, 1, len(plan), BLOCK=64)
    cost = torch.where(plan[:, 0] == 2, 1 << 30, plan[:, 1])
    expected = torch.argsort(cost, descending=True, stable=True)
    assert order.tolist() == [*expected.tolist(), 0]


def test_what_is_refused() -> None:
    query, key, value = rand(MEDIUM)
    plan = plan_of((0, 1), (1, 1))
    with pytest.raises(LayoutError, match="float64"):
        attend(query.double(), key.double(), value.double(), plan, MEDIUM)
    with pytest.raises(LayoutError, match="one dtype"):
        attend(query, key, value.half(), plan, MEDIUM)
    with pytest.raises(LayoutError, match="at most 46000 frames"):
        attend(query, key, value, plan, VideoLayout(46_001, 1, 1))
    with pytest.raises(LayoutError, match="head dims 16 to 256"):
        attend(query[..., :8], key[..., :8], value[..., :8], plan, MEDIUM)
