"""The Hopper kernel on a GPU of compute capability 9.0: the oracle, and what no emulation shows.

pytest tests/gpu/test_hopper.py -x, in this order: small layouts first, where a hang or a wrong layout shows at once.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from on_gpu import masked_sdpa, plan_of, rand
from strategies import Problem, problems, strided
from svg_compile.errors import LayoutError
from svg_compile.kernels import reference
from svg_compile.kernels.triton.attention import sparse_attention
from svg_compile.layout import HeadKind, VideoLayout
from tolerances import assert_close, assert_matches_oracle

REASON = "this Triton has no Gluon for Hopper"
hopper_attention = pytest.importorskip("svg_compile.kernels.hopper.attention", reason=REASON, exc_type=ImportError)

IS_HOPPER = torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() == (9, 0)
pytestmark = pytest.mark.skipif(not IS_HOPPER, reason="needs a GPU of compute capability 9.0 (H100, H200)")
HALF = (torch.bfloat16, torch.float16)
KEY_STRIDES = ("contiguous", "bshd", "fused_qkv")
# 8,970 tokens, ragged in blocks and frames, text behind; 8 frames in a box.
VIDEO = VideoLayout(9, 24, 41, text_len=114)


def attend(
    query: Tensor, key: Tensor, value: Tensor, plan: Tensor, layout: VideoLayout, scale: float | None = None
) -> Tensor:
    return hopper_attention.hopper_attention(query, key, value, plan, None, layout.grid, scale)


def sparse_plan(layout: VideoLayout, density: float = 0.3) -> Tensor:
    """A spatial head, a temporal one, and a dense one."""
    spatial, temporal = (layout.half_width_for(density, kind) for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL))
    return plan_of((0, spatial), (1, temporal), (2, 0))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kind", list(HeadKind))
def test_one_tile(kind: HeadKind, head_dim: int) -> None:
    layout = VideoLayout(2, 4, 8)
    tensors, plan = rand(layout, 1, head_dim), plan_of((int(kind), 0))
    out = attend(*tensors, plan, layout)
    assert_matches_oracle(out.cpu(), *(tensor.cpu() for tensor in tensors), plan.cpu(), layout)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 9, 17, 33, 65, 129])
def test_every_shape_of_box(frames: int, head_dim: int) -> None:
    layout = VideoLayout(frames, 5, 13, 20)
    tensors, plan = rand(layout, 3, head_dim), sparse_plan(layout, 0.6)
    out = attend(*tensors, plan, layout)
    exact = reference.sparse_attention(*tensors, plan, layout)
    assert_close(out, exact, masked_sdpa(*tensors, plan, layout))


@settings(max_examples=80)
@given(
    problem=problems(key_masks=("none",)),
    dtype=st.sampled_from(HALF),
    head_dim=st.sampled_from((64, 128)),
    query_strides=st.sampled_from((*KEY_STRIDES, "spread", "offset", "expanded_heads")),
    strides=st.tuples(st.sampled_from(KEY_STRIDES), st.sampled_from(KEY_STRIDES)),
    scale=st.sampled_from((None, 0.3, -0.2, 0.0)),
)
def test_matches_the_oracle(
    problem: Problem,
    dtype: torch.dtype,
    head_dim: int,
    query_strides: str,
    strides: tuple[str, str],
    scale: float | None,
) -> None:
    names = (query_strides, *strides)
    problem = replace(problem, head_dim=head_dim, strides=names)
    tensors, plan = problem.tensors(dtype), problem.plan()
    on_gpu = [strided(tensor.cuda(), name) for tensor, name in zip(tensors, names, strict=True)]
    out = attend(*on_gpu, plan.cuda(), problem.layout, scale)
    assert_matches_oracle(out.cpu(), *tensors, plan, problem.layout, scale=scale)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("text_first", [False, True])
def test_long_sequences(dtype: torch.dtype, head_dim: int, block: int, text_first: bool) -> None:
    layout = replace(VIDEO, text_first=text_first, block=block)
    tensors, plan = rand(layout, 3, head_dim, dtype), sparse_plan(layout)
    exact = reference.sparse_attention(*tensors, plan, layout)
    assert_close(attend(*tensors, plan, layout), exact, masked_sdpa(*tensors, plan, layout))


@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_hundred_runs_are_bit_equal(head_dim: int) -> None:
    tensors, plan = rand(VIDEO, 3, head_dim), sparse_plan(VIDEO)
    first = attend(*tensors, plan, VIDEO)
    for _ in range(100):
        assert torch.equal(attend(*tensors, plan, VIDEO), first)


@pytest.mark.parametrize(
    ("layout", "head_dim"),
    [
        (VideoLayout(33, 45, 80, 256), 128),
        (VideoLayout(21, 45, 80), 128),
        (VideoLayout(11, 48, 85, 226, True), 64),
    ],
    ids=["HunyuanVideo", "Wan", "CogVideoX1.5"],
)
def test_model_sizes_agree_with_the_portable_kernel(layout: VideoLayout, head_dim: int) -> None:
    """Hundreds of tiles a program, thousands of programs; both errors are roundings of bfloat16."""
    tensors, plan = rand(layout, 3, head_dim), sparse_plan(layout)
    out = attend(*tensors, plan, layout).float()
    portable = sparse_attention(*tensors, plan, None, layout.grid, None).float()
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, portable, atol=2e-3, rtol=2e-2)


def test_what_is_skipped_or_beyond_has_no_effect() -> None:
    """Keys of skipped tiles, and what lies between and behind the tensors' rows, may be NaN."""
    layout = VideoLayout(9, 16, 32, 114)
    tensors, plan = rand(layout, 2, 64), plan_of((0, 0), (0, 1))
    expected = attend(*tensors, plan, layout)
    # What no body query of frame 1 sees.
    for tensor in tensors[1:]:
        tensor[:, :, 6 * layout.area : 9 * layout.area] = float("nan")
    got = attend(*(strided(tensor, "fused_qkv") for tensor in tensors), plan, layout)
    frame = slice(layout.area, 2 * layout.area)
    assert torch.equal(got[:, :, frame], expected[:, :, frame])
    assert got[:, :, layout.video :].isnan().all()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_offsets_past_two_to_the_31(which: int) -> None:
    layout = VideoLayout(5, 16, 20, text_len=8)
    tensors, plan = rand(layout, 2, 64), plan_of((0, 2), (1, 2))
    expected = attend(*tensors, plan, layout)
    stride = 2**31 // layout.tokens // 8 * 8 + 4096
    if torch.cuda.mem_get_info()[0] < 2.5 * stride * layout.tokens:
        pytest.skip("needs 6 GB of free GPU memory")
    storage = torch.empty(stride * layout.tokens, dtype=torch.bfloat16, device="cuda")
    far = storage.as_strided(tensors[which].shape, (128, 64, stride, 1))
    tensors[which] = far.copy_(tensors[which])
    assert torch.equal(attend(*tensors, plan, layout), expected)


def test_captured_by_a_cuda_graph_without_waiting() -> None:
    tensors, plan = rand(VIDEO, 3, 128), sparse_plan(VIDEO)
    attend(*tensors, plan, VIDEO)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(*tensors, plan, VIDEO)
    for tensor in tensors:
        tensor.copy_(torch.randn_like(tensor))
    plan.copy_(plan_of((1, 4), (2, 0), (0, 30)))
    graph.replay()
    torch.cuda.set_sync_debug_mode("error")
    try:
        eager = attend(*tensors, plan, VIDEO)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out, eager)


def test_what_is_not_supported_is_said() -> None:
    query, key, value = rand(VIDEO, 1, 64)
    seen = torch.ones(1, VIDEO.tokens, dtype=torch.bool, device="cuda")
    with pytest.raises(LayoutError, match="no key mask"):
        hopper_attention.hopper_attention(query, key, value, plan_of((2, 0)), seen, VIDEO.grid, None)
    with pytest.raises(LayoutError, match="key has strides"):
        attend(query, strided(key, "spread"), value, plan_of((2, 0)), VIDEO)
