"""Attention that runs as plain Python in a module whose grid is proven: sparse as in a graph, restored afterwards."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
import svg_compile
from companion_rows import group_offload, sequential_offload
from companions import run
from lowering import kind, watch
from svg_compile.passes.grid_marker import Marker
from svg_compile.regional.plain_attention import why_not_alone
from svg_compile.runtime import dispatcher as schedule
from svg_compile.runtime.dispatcher import Forward
from test_regions import OPTIONS, Attention, Blocks
from toy import latents

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
ALWAYS: dict[str, Any] = {"dense_steps": 0, "dense_layers": 0}
SPARSE: dict[str, Any] = {"min_tokens": 0, "block": 8, "density": 0.4, "dense_steps": 2, "dense_layers": 1}


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return watch(monkeypatch, kind)


def outside(module: nn.Module) -> None:
    """What a hook of a cache or of offloading does: the module's forward runs under no compile."""
    module.forward = torch.compiler.disable(module.forward)  # type: ignore[assignment]


def compiled(model: Any, how: str, **options: Any) -> Any:
    options = {**SPARSE, **options}
    if how == "whole":
        model.compile(backend="svg", options=options, dynamic=False)
    else:
        model.compile_repeated_blocks(backend="svg", options=options, dynamic=False)
    return model


def runs(model: Any, inputs: dict[str, Any]) -> tuple[list[Tensor], list[Forward]]:
    seen: list[Forward] = []
    outputs = []
    with warnings.catch_warnings(), schedule.watch(seen.append), svg_compile.denoising(model, steps=4) as denoising:
        warnings.filterwarnings("error", message="svg")
        for output in run(model, inputs):
            outputs.append(output)
            denoising.advance()
    return outputs, seen


@pytest.mark.parametrize(
    "more",
    [{}, pytest.param({"profile_every": 2, "density": [(0.0, 0.6), (0.8, 0.3)]}, marks=pytest.mark.slow)],
    ids=["plain", "staged"],
)
@pytest.mark.parametrize("how", ["whole", "blocks"])
@pytest.mark.parametrize(
    ("name", "companion"),
    [
        ("wan", group_offload),
        pytest.param("wan", sequential_offload, marks=pytest.mark.slow),
        pytest.param("hunyuan_video", group_offload, marks=pytest.mark.slow),
    ],
    ids=["wan, group offload", "wan, sequential offload", "hunyuan_video, group offload"],
)
def test_it_equals_the_same_attention_in_a_graph(
    name: str, companion: Callable[[Any], None], how: str, more: dict[str, Any]
) -> None:
    case = models.case(name)
    inputs = case.inputs(1, case.grid)
    expected, in_graph = runs(compiled(case.build(), "whole", **more), inputs)
    torch._dynamo.reset()
    model = case.build()
    companion(model)
    got, alone = runs(compiled(model, how, **more), inputs)
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    # One forward of a graph for each attention, in place of one for all: the same layers, steps and plans.
    sparse = [forward for forward in alone if not forward.decision.dense]
    together = [forward for forward in in_graph if not forward.decision.dense]
    assert [layer for forward in sparse for layer in forward.layers] == [
        layer for forward in together for layer in forward.layers
    ]
    plans = [plan for forward in together for plan in forward.plans]
    assert all(map(torch.equal, (plan for forward in sparse for plan in forward.plans), plans))
    assert len(plans) == sum(len(forward.plans) for forward in sparse) > 0


def test_a_recording_names_the_layers() -> None:
    case = models.case("wan")
    model = case.build()
    group_offload(model)
    compiled(model, "blocks", dense_layers=0)
    with svg_compile.record(model) as recording, svg_compile.denoising(model, steps=4) as denoising:
        for _ in run(model, case.inputs(1, case.grid)):
            denoising.advance()
    names = {entry.layer for entry in recording.entries}
    assert names == {"blocks.0.attn1", "blocks.1.attn1"}


def toy(**options: Any) -> Any:
    model = Blocks()
    for block in model.blocks:
        outside(block.attn)
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, "density": 0.4, **ALWAYS, **options})
    return model


def sparse_forwards(model: Any, *grid: int) -> int:
    with schedule.observe() as seen, svg_compile.denoising(model, steps=1):
        model(latents(1, *grid) if grid else latents())
    return sum(not decision.dense for decision in seen)


def test_it_is_one_graph_for_all_layers(built: list[str]) -> None:
    assert sparse_forwards(toy()) == 3
    assert built.count("sparse") == 1


def test_the_option_leaves_it_dense() -> None:
    assert sparse_forwards(toy(eager_attention=False)) == 0


def test_a_second_grid_of_equal_length_is_told_apart() -> None:
    model = toy()
    for grid in ((5, 7, 3), (3, 7, 5)):
        with svg_compile.denoising(model, steps=1):
            got = model(latents(1, *grid))
        torch._dynamo.reset()
        options = {**OPTIONS, "density": 0.4, **ALWAYS}
        expected = torch.compile(Blocks(), backend="svg", dynamic=False, options=options)(latents(1, *grid))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_two_threads_at_once_have_their_own_grids() -> None:
    model, grids = toy(), ((5, 7, 3), (3, 7, 5))
    with svg_compile.denoising(model, steps=1):
        expected = {grid: model(latents(1, *grid)) for grid in grids}
    found: dict[tuple[int, ...], list[bool]] = {grid: [] for grid in grids}

    def forwards(grid: tuple[int, int, int]) -> None:
        with torch.no_grad(), svg_compile.denoising(copies[grid], steps=1):
            for _ in range(10):
                found[grid].append(torch.equal(copies[grid](latents(1, *grid)), expected[grid]))

    # A model that has compiled, and one of the class whose first calls come while the other runs.
    copies = {grids[0]: model, grids[1]: toy()}
    threads = [threading.Thread(target=forwards, args=(grid,)) for grid in grids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {grid: [True] * 10 for grid in grids}


class Elsewhere(Attention):
    """An attention that computes by itself, or by the function that the trace saw."""

    own = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.own or torch.compiler.is_dynamo_compiling():
            return super().forward(x)
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (3 * self.qkv(x)).chunk(3, dim=-1))
        return ((q @ k.mT / 4).softmax(-1) @ v).transpose(1, 2).flatten(2)


def test_attention_by_another_function_stays_dense_with_a_reason() -> None:
    model = Blocks()
    for block in model.blocks:
        block.attn = Elsewhere(block.attn.qkv)
        block.attn.own = True
        outside(block.attn)
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, **ALWAYS})
    with pytest.warns(
        UserWarning, match=r"blocks\.0\.attn and 2 more.*called scaled_dot_product_attention 0 times, and 1"
    ):
        assert sparse_forwards(model) == 0


def test_each_block_has_its_own_options() -> None:
    model = Blocks()
    for block, density in zip(model.blocks, (0.9, 0.6, 0.2), strict=True):
        outside(block.attn)
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, **ALWAYS, "density": density})
    seen: list[Forward] = []
    with schedule.watch(seen.append), svg_compile.denoising(model, steps=1):
        model(latents(1, 9, 7, 5))
    widths = [int(forward.plans[0][..., 1].max()) for forward in seen]
    assert widths[0] > widths[1] > widths[2]


def test_blocks_of_another_backend_are_left_alone() -> None:
    model = Blocks()
    for block in model.blocks:
        outside(block.attn)
        block.compile(backend=lambda graph, inputs, **options: graph.forward, options={"of": "another"})
    with pytest.warns(UserWarning, match="options of its compile are not known"):
        assert sparse_forwards(model) == 0


class Interrupting(Attention):
    """An attention whose forward raises `stop`, where that is set: KeyboardInterrupt is Ctrl-C."""

    stop: type[BaseException] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.stop is not None:
            raise self.stop
        return super().forward(x)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_forward_that_was_broken_off(error: type[BaseException], built: list[str]) -> None:
    model = Blocks()
    for block in model.blocks:
        block.attn = Interrupting(block.attn.qkv)
        outside(block.attn)
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, "density": 0.4, **ALWAYS})
    with svg_compile.denoising(model, steps=1):
        expected = model(latents())
    model.blocks[1].attn.stop = error
    with pytest.raises(error), svg_compile.denoising(model, steps=1):
        model(latents())
    q = torch.randn(1, 2, 105, 16)
    with schedule.observe() as seen:
        F.scaled_dot_product_attention(q, q, q)
    assert not seen
    assert torch.overrides._len_torch_function_stack() == 0
    built.clear()
    torch.compile(lambda x: x @ x.mT, backend="svg")(torch.ones(2, 2))
    assert built == ["dense"]
    model.blocks[1].attn.stop = None
    with svg_compile.denoising(model, steps=1):
        assert torch.equal(model(latents()), expected)


@pytest.mark.parametrize(
    ("text", "sizes", "why"),
    [
        ("grid", (5, 7, 3), ""),
        ("CROSS_ATTENTION;grid text last;grid text last", (5, 7, 3, 9, 5, 7, 3, 9), ""),
        ("grid;grid", (5, 7, 3, 7, 5, 3), "several grids"),
        ("grid;grid text last", (5, 7, 3, 5, 7, 3, 9), "several grids"),
    ],
)
def test_attentions_of_several_grids_are_not_told_apart(text: str, sizes: tuple[int, ...], why: str) -> None:
    found = why_not_alone(Marker(text, sizes))
    assert why in found
    assert bool(why) == bool(found)


def test_a_model_with_marks_pickles_and_copies() -> None:
    model = Blocks()
    for block in model.blocks:
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, **ALWAYS})
    assert sparse_forwards(model) == 3
    other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(other(latents()), Blocks()(latents()))


def test_layers_that_dynamo_compiles_no_more_run_sparse() -> None:
    """Past the recompile limit a block runs as plain Python: its attention is compiled by itself."""
    model = Blocks()
    for block in model.blocks:
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, **ALWAYS})
    with torch._dynamo.config.patch(recompile_limit=5), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for frames in range(3, 12):
            assert sparse_forwards(model, frames, 5, 4) == 3, frames
