"""The ops as torch.compile sees them on a GPU, traced without one: the kernels in the graph, and nothing round them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton.backends.compiler import GPUTarget

from svg_compile.kernels import ops, triton_configs

KERNEL = torch.ops.higher_order.triton_kernel_wrapper_functional


class Captured(Exception):
    """Raised in place of compiling: there is no GPU to compile for."""


class FakeDriver:
    """Just enough of a Triton driver for PyTorch to analyse a kernel: which of its arguments it writes."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def _a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(triton_configs, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(triton.runtime.driver, "_active", FakeDriver())
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def attend(tokens: Tensor, key_mask: Tensor | None, when: Tensor | None, previous: Tensor | None) -> Tensor:
    """tokens [3, B, F, H, W, heads, D]: query, key and value of a video, each dense."""
    _, batch, frames, height, width, heads, dim = tokens.shape
    rows = frames * height * width
    query, key, value = (part.reshape(batch, rows, heads, dim).transpose(1, 2) for part in tokens.unbind(0))
    grid = (frames, height, width, 0, False, 128)
    plan, _ = torch.ops.svg.profile(
        query, key, value, key_mask, *grid, [0.3, 0.5], 64, None, "auto", ops.ABI, when, previous
    )
    return torch.ops.svg.attention(query, key, value, plan, key_mask, *grid, None, "auto", ops.ABI)


def traced(*, dynamic: bool, masked: bool, staged: bool = False) -> GraphModule:
    """The graph that AOTAutograd would hand to Inductor."""
    graphs = []

    def capture(graph: GraphModule, inputs: list[Any]) -> None:
        graphs.append(graph)
        raise Captured

    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=not dynamic)
    with mode:
        tokens = torch.empty(3, 2, 5, 6, 7, 3, 72, device="cuda", dtype=torch.bfloat16)
        key_mask = torch.empty(2, 210, device="cuda", dtype=torch.bool) if masked else None
        when = torch.empty(2, device="cuda", dtype=torch.int32) if staged else None
        previous = torch.empty(2, 3, 2, device="cuda", dtype=torch.int32) if staged else None
    if dynamic:
        for axis in (2, 3, 4):
            torch._dynamo.mark_dynamic(tokens, axis)
    function = torch.compile(attend, backend=aot_autograd(fw_compiler=capture), fullgraph=True)
    with mode, torch.no_grad(), pytest.raises(Exception, match="Captured"):
        function(tokens, key_mask, when, previous)
    return graphs[0]


@pytest.mark.usefixtures("_a_gpu_that_is_not_there")
@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize(("dynamic", "masked"), [(False, False), (False, True), (True, False)])
def test_the_kernels_stand_in_the_graph(dynamic: bool, masked: bool, staged: bool) -> None:
    graph = traced(dynamic=dynamic, masked=masked, staged=staged)
    launches = [node for node in graph.graph.nodes if node.target is KERNEL]
    # The profile's two, the order of the heads, the range of hidden keys if there may be any, and attention.
    assert len(launches) == (5 if masked else 4)
    written = [set(node.kwargs["tensors_to_clone"]) for node in launches]
    assert written == [{"partial", "sums"}, {"plan", "errors"}, {"order"}, *([{"hidden"}] if masked else []), {"out"}]
    targets = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    moved = [
        target for target in targets if any(name in str(target) for name in ("clone", "copy", "_to_copy", "index"))
    ]
    assert not moved


@pytest.mark.usefixtures("_a_gpu_that_is_not_there")
def test_symbolic_sizes_stay_symbolic() -> None:
    graph = traced(dynamic=True, masked=False)
    sizes = [
        node for node in graph.graph.nodes if node.op == "placeholder" and "Sym" in str(node.meta["val"].__class__)
    ]
    assert len(sizes) == 3
    attention = [node for node in graph.graph.nodes if node.target is KERNEL][-1]
    assert all(isinstance(attention.kwargs["kwargs"][name], torch.fx.Node) for name in ("frames", "area"))
    assert isinstance(attention.kwargs["grid"][0][0], torch.fx.Node)
    assert any("half_widths" in str(node.target) for node in graph.graph.nodes)
