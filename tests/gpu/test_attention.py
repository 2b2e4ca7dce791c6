"""The attention kernel on a GPU: the oracle in bfloat16, and what only a GPU can show."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from on_gpu import masked_sdpa, plan_of, rand
from strategies import STRIDES, Problem, problems, strided
from svg_compile.kernels import ops, reference
from svg_compile.layout import HeadKind, VideoLayout
from tolerances import assert_close, assert_matches_oracle

HALF = (torch.bfloat16, torch.float16)
# 8,970 tokens, ragged in blocks and frames, text behind.
VIDEO = VideoLayout(9, 24, 41, text_len=114)


def attend(
    query: Tensor, key: Tensor, value: Tensor, plan: Tensor, layout: VideoLayout, key_mask: Tensor | None = None
) -> Tensor:
    return torch.ops.svg.attention(query, key, value, plan, key_mask, layout.grid, None, "triton", ops.ABI)


@settings(max_examples=80)
@given(
    problem=problems(),
    dtype=st.sampled_from((*HALF, torch.float32)),
    head_dim=st.sampled_from((16, 32, 64, 72, 80, 96, 128, 256)),
)
def test_matches_the_oracle(problem: Problem, dtype: torch.dtype, head_dim: int) -> None:
    problem = replace(problem, head_dim=head_dim)
    tensors = problem.tensors(dtype)
    plan, key_mask = problem.plan(), problem.mask()
    on_gpu = [strided(tensor.cuda(), name) for tensor, name in zip(tensors, problem.strides, strict=True)]
    mask_on_gpu = None if key_mask is None else key_mask.cuda()
    out = attend(*on_gpu, plan.cuda(), problem.layout, mask_on_gpu)
    assert_matches_oracle(out.cpu(), *tensors, plan, problem.layout, key_mask)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("head_dim", [64, 72, 96, 128])
@pytest.mark.parametrize("text_first", [False, True])
def test_long_sequences(dtype: torch.dtype, head_dim: int, text_first: bool) -> None:
    layout = replace(VIDEO, text_first=text_first)
    widths = [layout.half_width_for(0.3, kind) for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL)]
    plan = plan_of((0, widths[0]), (1, widths[1]), (2, 0))
    query, key, value = rand(layout, 3, head_dim, dtype)
    exact = reference.sparse_attention(query, key, value, plan, layout)
    assert_close(attend(query, key, value, plan, layout), exact, masked_sdpa(query, key, value, plan, layout))


@pytest.mark.parametrize("hidden", ["padding", "scattered"])
def test_key_masks_on_long_sequences(hidden: str) -> None:
    query, key, value = rand(VIDEO)
    seen = torch.ones(1, VIDEO.tokens, dtype=torch.bool, device="cuda")
    seen[:, -90:] = False
    if hidden == "scattered":
        seen &= torch.rand(seen.shape, device="cuda") < 0.9
    plan = plan_of((0, 8), (1, 8))
    out = attend(query, key, value, plan, VIDEO, seen)
    exact = reference.sparse_attention(query, key, value, plan, VIDEO, key_mask=seen)
    assert float((out.double() - exact).abs().max()) < 0.02
    key[:, :, ~seen[0]] = float("nan")
    value[:, :, ~seen[0]] = float("nan")
    assert torch.equal(attend(query, key, value, plan, VIDEO, seen), out)


def test_a_hundred_runs_are_bit_equal() -> None:
    query, key, value = rand(VIDEO, 4, 128)
    plan = plan_of((0, 9), (1, 9), (1, 3), (2, 0))
    first = attend(query, key, value, plan, VIDEO)
    for _ in range(100):
        assert torch.equal(attend(query, key, value, plan, VIDEO), first)


def test_captured_by_a_cuda_graph_and_replayed_with_new_data() -> None:
    tensors, plan = rand(VIDEO, 3), plan_of((0, 9), (1, 9), (2, 0))
    attend(*tensors, plan, VIDEO)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(*tensors, plan, VIDEO)
    for tensor in tensors:
        tensor.normal_()
    # Kinds and widths are data as well.
    plan.copy_(plan_of((1, 4), (2, 0), (0, 30)))
    graph.replay()
    assert torch.equal(out, attend(*tensors, plan, VIDEO))


def test_nothing_waits_for_the_gpu() -> None:
    tensors, plan = rand(VIDEO), plan_of((0, 9), (1, 9))
    seen = torch.ones(1, VIDEO.tokens, dtype=torch.bool, device="cuda")
    attend(*tensors, plan, VIDEO, seen)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(*tensors, plan, VIDEO, seen)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_offsets_past_two_to_the_31(which: int) -> None:
    layout = VideoLayout(5, 16, 20, text_len=8)
    tensors, plan = rand(layout, 2), plan_of((0, 2), (1, 2))
    expected = attend(*tensors, plan, layout)
    stride = 2**31 // layout.tokens + 4096
    if torch.cuda.mem_get_info()[0] < 2.5 * stride * layout.tokens:
        pytest.skip("needs 6 GB of free GPU memory")
    storage = torch.empty(stride * layout.tokens, dtype=torch.bfloat16, device="cuda")
    far = storage.as_strided(tensors[which].shape, (128, 64, stride, 1))
    tensors[which] = far.copy_(tensors[which])
    assert torch.equal(attend(*tensors, plan, layout), expected)


def test_strides_do_not_change_a_bit() -> None:
    layout = VideoLayout(5, 16, 20, text_len=8)
    tensors, plan = rand(layout, 2), plan_of((0, 2), (1, 2))
    expected = attend(*tensors, plan, layout)
    for name in set(STRIDES) - {"expanded_heads"}:
        assert torch.equal(attend(*(strided(tensor, name) for tensor in tensors), plan, layout), expected)


def test_opcheck() -> None:
    layout = VideoLayout(3, 4, 5, text_len=3, block=16)
    tensors, plan = rand(layout, 2), plan_of((0, 1), (1, 1))
    grid = layout.grid
    for key_mask in (None, torch.rand(1, layout.tokens, device="cuda") < 0.8):
        torch.library.opcheck(
            torch.ops.svg.attention.default, (*tensors, plan, key_mask, grid, None, "triton", ops.ABI)
        )
        profile = (*tensors, key_mask, grid, [0.5, 0.7], 8, True, None, "triton", ops.ABI)
        anew = torch.tensor([1, 1], dtype=torch.int32, device="cuda")
        for when, previous in ((None, None), (anew, None), (anew, plan)):
            torch.library.opcheck(torch.ops.svg.profile.default, (*profile, when, previous, None))


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    script = Path(__file__).parent / "sanitize.py"
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, str(script)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
