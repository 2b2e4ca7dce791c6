"""The ops as torch.compile sees them on a GPU, traced without one: the kernels in the graph, and nothing round them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._inductor import compile_fx as inductor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton.backends.compiler import GPUTarget

from absent_gpu import device_guard
from svg_compile.kernels import ops
from svg_compile.kernels.triton import configs as triton_configs
from svg_compile.kernels.triton import launch as triton_launch

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
    # They would make tensors on the device, for patterns of their own and to fold constants.
    monkeypatch.setattr(inductor, "_recursive_joint_graph_passes", lambda graph, *rest, **options: graph)
    torch._dynamo.reset()
    with device_guard():
        yield
    torch._dynamo.reset()


def attend(
    tokens: Tensor, key_mask: Tensor | None, when: Tensor | None, previous: Tensor | None, share: Tensor | None
) -> Tensor:
    """tokens [3, B, F, H, W, heads, D]: query, key and value of a video, each dense."""
    _, batch, frames, height, width, heads, dim = tokens.shape
    rows = frames * height * width
    query, key, value = (part.reshape(batch, rows, heads, dim).transpose(1, 2) for part in tokens.unbind(0))
    grid = [frames, height, width, 0, 0, 128]
    plan, *_ = torch.ops.svg.profile(
        query, key, value, key_mask, grid, [0.3, 0.5], 64, True, None, "auto", ops.ABI, when, previous, share
    )
    return torch.ops.svg.attention(query, key, value, plan, key_mask, grid, None, "auto", ops.ABI)


def traced(*, dynamic: bool, masked: bool, staged: bool = False, patches: dict[str, Any] | None = None) -> GraphModule:
    """The graph that Inductor is handed to compile, under config patches as the options of torch.compile set them."""
    graphs = []

    def capture(graph: GraphModule, inputs: list[Any], **options: Any) -> None:
        graphs.append(graph)
        raise Captured

    def backend(graph: GraphModule, inputs: list[Any]) -> Any:
        return inductor.compile_fx(graph, inputs, inner_compile=capture, config_patches=patches)

    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=not dynamic)
    with mode:
        tokens = torch.empty(3, 2, 5, 6, 7, 3, 72, device="cuda", dtype=torch.bfloat16)
        key_mask = torch.empty(2, 210, device="cuda", dtype=torch.bool) if masked else None
        when = torch.empty(2, device="cuda", dtype=torch.int32) if staged else None
        previous = torch.empty(2, 3, 2, device="cuda", dtype=torch.int32) if staged else None
        share = torch.empty(2, device="cuda") if staged else None
    if dynamic:
        for axis in (2, 3, 4):
            torch._dynamo.mark_dynamic(tokens, axis)
    function = torch.compile(attend, backend=backend, fullgraph=True)
    with mode, torch.no_grad(), pytest.raises(Exception, match="Captured"):
        function(tokens, key_mask, when, previous, share)
    return graphs[0]


@pytest.mark.usefixtures("_a_gpu_that_is_not_there")
@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize(("dynamic", "masked"), [(False, False), (False, True), (True, False)])
def test_the_kernels_stand_in_the_graph(dynamic: bool, masked: bool, staged: bool) -> None:
    graph = traced(dynamic=dynamic, masked=masked, staged=staged)
    launches = [node for node in graph.graph.nodes if node.target is KERNEL]
    # The profile's two, the three of half-widths by need, the order of the heads, the range of hidden keys if there may
    # be any, and attention.
    assert len(launches) == (8 if masked else 7)
    written = [set(node.kwargs["tensors_to_clone"]) for node in launches]
    profile = [{"partial", "sums"}, {"plan", "errors"}, {"missing"}, {"mean"}, {"plan"}]
    assert written == [*profile, {"order"}, *([{"hidden"}] if masked else []), {"out"}]
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
    for table in ("half_widths", "ladders"):
        assert any(table in str(node.target) for node in graph.graph.nodes)


def choices_in(graph: GraphModule) -> dict[str, tuple[Any, list[tuple[Any, ...]]]]:
    """By kernel: its grids, and the tiles among which it may choose as (block_m, block_n, warps, stages)."""
    found = {}
    for node in graph.graph.nodes:
        if node.target is KERNEL:
            launched = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            # Sizes that all tiles share are arguments of the launch.
            fixed = node.kwargs["kwargs"]
            configs = [(config, {**fixed, **config.kwargs}) for config in getattr(launched, "configs", ())]
            found[getattr(launched, "fn", launched).__name__] = (
                node.kwargs["grid"],
                [(sizes.get("BLOCK_M"), sizes.get("BLOCK_N"), c.num_warps, c.num_stages) for c, sizes in configs],
            )
    return found


TILED = {
    "sparse_attention_fwd_kernel": (triton_configs.ATTENTION, triton_configs.ATTENTION_CHOICES),
    "profile_rows_fwd_kernel": (triton_configs.PROFILE, triton_configs.PROFILE_CHOICES),
}


@pytest.mark.usefixtures("_a_gpu_that_is_not_there")
@pytest.mark.parametrize(
    ("patches", "several"),
    [
        (None, False),
        (torch._inductor.list_mode_options("max-autotune"), True),
        ({"max_autotune": True, "deterministic": True}, False),
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_max_autotune_gives_a_choice_of_tiles(patches: dict[str, Any] | None, several: bool, dynamic: bool) -> None:
    found = choices_in(traced(dynamic=dynamic, masked=False, patches=patches))
    for kernel, (table, choices) in TILED.items():
        tiles = triton_configs.tiles_for(table, choices if several else {}, "sm_90", torch.bfloat16, 72)
        assert (len(tiles) > 1) == several
        grids, chosen = found[kernel]
        assert chosen == [astuple(tile) for tile in tiles]
        assert len(grids) == len(tiles)
    if not dynamic:
        # Text, frame 0 and the body of 6 heads, in tiles of each height.
        grids, chosen = found["sparse_attention_fwd_kernel"]
        assert [grid[0] for grid in grids] == [6 * (-(-42 // rows) - (-168 // rows)) for rows, *_ in chosen]
    del found["sparse_attention_fwd_kernel"], found["profile_rows_fwd_kernel"]
    assert all(len(grids) == 1 and len(chosen) <= 1 for grids, chosen in found.values())


@pytest.mark.parametrize("strict", [False, True])
def test_only_traced_launches_that_need_not_be_deterministic_are_timed(strict: bool) -> None:
    traced_tensor = FakeTensorMode().from_tensor(torch.empty(2))
    previous = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(strict)
    try:
        with torch._inductor.config.patch(max_autotune=True):
            assert triton_launch.autotunes(traced_tensor) != strict
            assert not triton_launch.autotunes(torch.empty(2))
        assert not triton_launch.autotunes(traced_tensor)
    finally:
        torch.use_deterministic_algorithms(previous)
