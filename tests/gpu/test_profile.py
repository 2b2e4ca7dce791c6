"""The profile kernels on a GPU: the oracle's errors, exact labels where they are planted, and capture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svg_compile.kernels import ops, reference
from svg_compile.kernels.triton.profile import profile_heads
from svg_compile.layout import HeadKind, VideoLayout

VIDEO = VideoLayout(9, 24, 41, text_len=114)


def profile(query: Tensor, key: Tensor, value: Tensor, layout: VideoLayout, key_mask: Tensor | None = None) -> Tensor:
    options = ([0.3], 64, False, None, "triton", ops.ABI, None, None, None)
    return torch.ops.svg.profile(query, key, value, key_mask, layout.grid, *options)[0]


def planted(layout: VideoLayout, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v with a spatial head 0, a temporal head 1, and keys that are not finite in head 2."""
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"generator": generator, "device": "cuda"}
    token = torch.arange(layout.video, device="cuda")
    keys, values = (torch.randn(1, 3, layout.tokens, head_dim, **options) for _ in range(2))
    codes = 2 * torch.randn(2, layout.video, head_dim, **options)
    video = slice(layout.video_start, layout.video_start + layout.video)
    keys[0, 0, video] = codes[0, token // layout.area]
    keys[0, 1, video] = codes[1, token % layout.area]
    queries = keys.clone()
    keys[0, 2, layout.tokens // 2] = float("nan")
    return [queries.to(dtype), keys.to(dtype), values.to(dtype)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [64, 72, 96, 128])
@pytest.mark.parametrize("text_first", [False, True])
def test_planted_heads_are_told_apart(dtype: torch.dtype, head_dim: int, text_first: bool) -> None:
    layout = VideoLayout(9, 24, 41, 114, text_first)
    plan = profile(*planted(layout, head_dim, dtype), layout)
    expected = [(kind, layout.half_width_for(0.3, kind)) for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL)]
    assert plan[0].tolist() == [*map(list, expected), [HeadKind.DENSE, layout.full_half_width]]


@pytest.mark.parametrize("sampled_rows", [1, 64, 200])
@pytest.mark.parametrize("masked", [False, True])
def test_errors_match_the_oracle(sampled_rows: int, masked: bool) -> None:
    shape = (2, VIDEO.tokens, 3, 64)
    tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)]
    key_mask = torch.rand(2, VIDEO.tokens, device="cuda") < 0.9 if masked else None
    plan, errors, _ = profile_heads(*tensors, key_mask, VIDEO.grid, [0.3], sampled_rows, False, None)
    exact = reference.profile_errors(*tensors, VIDEO, density=0.3, sampled_rows=sampled_rows, key_mask=key_mask)
    torch.testing.assert_close(errors.double(), exact, rtol=0.02, atol=1e-6)
    assert torch.equal(plan, reference.plan_from_errors(errors.double(), VIDEO, 0.3))


def test_ties_are_spatial() -> None:
    tensors = [torch.randn(1, 2, VIDEO.tokens, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    plan, errors, _ = profile_heads(*tensors, None, VIDEO.grid, [1.0], 64, False, None)
    assert torch.equal(errors, torch.zeros_like(errors))
    assert plan[..., 0].eq(HeadKind.SPATIAL).all()


def test_captured_by_a_cuda_graph_without_waiting_or_random_numbers() -> None:
    tensors = planted(VIDEO, 64, torch.bfloat16)
    profile(*tensors, VIDEO)
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = profile(*tensors, VIDEO)
    graph.replay()
    first = plan.clone()
    for tensor in tensors:
        tensor.copy_(tensor.flip(1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph.replay()
        eager = profile(*tensors, VIDEO)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(plan, eager)
    assert torch.equal(plan, first.flip(1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(), states[1])


def test_one_captured_graph_serves_every_step() -> None:
    """Density and whether to profile are data: a replay follows what `when` and the previous plan then hold."""
    densities = (0.2, 0.3, 0.6)
    tensors = planted(VIDEO, 64, torch.bfloat16)
    when = torch.tensor([0, 1], dtype=torch.int32, device="cuda")
    previous = torch.full((1, 3, 2), 2, dtype=torch.int32, device="cuda")
    options = (densities, 64, False, None, "triton", ops.ABI, when, previous, None)
    torch.ops.svg.profile(*tensors, None, VIDEO.grid, *options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan, errors, _ = torch.ops.svg.profile(*tensors, None, VIDEO.grid, *options)
    for index, anew, kinds in ((1, 1, (0, 1, 2)), (2, 0, (1, 0, 1)), (0, 0, (2, 1, 0)), (0, 1, (0, 1, 2))):
        when.copy_(torch.tensor([index, anew], dtype=torch.int32))
        previous[0, :, 0] = torch.tensor((1, 0, 1) if index == 2 else (2, 1, 0), dtype=torch.int32, device="cuda")
        graph.replay()
        widths = [VIDEO.half_width_for(densities[index], kind) for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL)]
        widths.append(VIDEO.full_half_width)
        assert plan[0].tolist() == [[kind, widths[kind]] for kind in kinds]
        if anew:
            plain, plain_errors, _ = profile_heads(*tensors, None, VIDEO.grid, [densities[index]], 64, False, None)
            assert torch.equal(plan, plain)
            torch.testing.assert_close(errors, plain_errors, rtol=0, atol=0, equal_nan=True)
        else:
            assert errors.isnan().all()
