"""Models compiled block by block: which calls are traced anew, so that no grid outlives what it was read from."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import models
import svg_compile
from lowering import grids_of, watch
from svg_compile.errors import NothingRewritten
from svg_compile.inspection import tracing
from svg_compile.regional import forward
from svg_compile.runtime import dispatcher as schedule
from test_regions import OPTIONS, Block, Blocks, compile_blocks
from toy import ToyVideoDiT, latents

SPARSE: dict[str, Any] = {"dense_layers": 0, "dense_steps": 0, "density": 0.5}
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return watch(monkeypatch, grids_of)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Has one entry for each trace of a whole model."""
    seen: list[None] = []
    trace = tracing.trace

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(None)
        return trace(*args, **kwargs)

    monkeypatch.setattr(tracing, "trace", counted)
    return seen


class Packed(nn.Module):
    """Takes [B, N, C]; its positions come from an attribute, or from a tensor's values."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(qkv) for qkv in ToyVideoDiT(2).qkv)
        self.grid = (5, 7, 3)
        self.calls = 0
        self.eval()

    def forward(self, x: Tensor, timestep: Any = None, grid: tuple[Tensor, ...] | None = None) -> Tensor:
        self.calls += 1
        sizes = self.grid
        if grid is not None:
            frames, height, width = grid[0].item(), grid[1].item(), grid[2].item()
            sizes = (frames, height, width)
        places = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
        x = x * torch.stack([place.flatten() for place in places], -1).float().sum(-1)[None, :, None].cos()
        for block in self.blocks:
            x = block(x)
        return x


def packed() -> Tensor:
    return torch.randn(1, 105, 32, generator=torch.Generator().manual_seed(0))


def test_a_grid_in_an_attribute_is_read_again_when_it_changes(grids: list[str]) -> None:
    model = compile_blocks(Packed(), **SPARSE)
    outputs = []
    with svg_compile.denoising(model, steps=3):
        for model.grid in ((5, 7, 3), (7, 5, 3), (5, 7, 3)):
            outputs.append(model(packed()))
    assert grids == ["5x7x3", "7x5x3"]
    assert torch.equal(outputs[0], outputs[2])


def test_a_grid_in_a_tensors_values_is_read_again_when_they_change(grids: list[str]) -> None:
    model = compile_blocks(Packed(), **SPARSE)
    with svg_compile.denoising(model, steps=3):
        for sizes in ((5, 7, 3), (7, 5, 3), (5, 7, 3)):
            model(packed(), grid=tuple(torch.tensor(size) for size in sizes))
    assert grids == ["5x7x3", "7x5x3"]


def test_neither_a_number_as_timestep_nor_a_counter_costs_a_trace_a_step(grids: list[str], traces: list[None]) -> None:
    model = compile_blocks(Packed(), **SPARSE)
    with svg_compile.denoising(model, steps=12) as run:
        for step in range(12):
            model(packed(), 1000.0 - step)
            run.advance()
        # The counter is found out after a few traces, the grid never.
        assert len(traces) <= 6
        traces.clear()
    with svg_compile.denoising(model, steps=1):
        model.grid = (3, 5, 7)
        model(packed(), 10.0)
    assert len(traces) == 1
    assert grids == ["5x7x3", "3x5x7"]


@pytest.mark.parametrize(("layers", "waits"), [(16, True), (3, False)])
def test_the_trace_of_a_deep_model_is_told_before_it_and_the_next_call_has_none(
    layers: int, waits: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody waits seconds for it: with Python's own settings of logging, which print warnings, a line says why."""
    told_before: list[list[str]] = []
    trace = tracing.trace

    def told() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]

    def noted(*args: Any, **kwargs: Any) -> Any:
        told_before.append(told())
        return trace(*args, **kwargs)

    monkeypatch.setattr(tracing, "trace", noted)
    watch(monkeypatch, grids_of)
    model = compile_blocks(Blocks(layers), **SPARSE)
    with svg_compile.denoising(model, steps=2) as run:
        for _ in range(2):
            model(latents())
            run.advance()
    line = f"svg: tracing Blocks once, for the token grids of its {layers} compiled blocks"
    # One trace, and nothing said after it.
    assert told_before == [[line] * waits]
    assert told() == [line] * waits


def test_what_was_learned_of_attributes_is_forgotten_with_the_modules(grids: list[str], traces: list[None]) -> None:
    model = compile_blocks(Packed(), **SPARSE)
    with svg_compile.denoising(model, steps=3):
        for _ in range(5):
            model(packed())
        # Places of attributes shift with the modules before them: the counter's may be the grid's now.
        model.first = nn.Identity()
        traces.clear()
        for model.grid in ((5, 7, 3), (7, 5, 3)):
            model(packed())
    assert len(traces) == 2
    assert grids == ["5x7x3", "7x5x3"]


def test_a_block_that_attends_by_itself_is_told_like_any(grids: list[str]) -> None:
    class Alone(nn.Module):
        def __init__(self, qkv: nn.Module) -> None:
            super().__init__()
            self.qkv = qkv

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (3 * self.qkv(x)).chunk(3, dim=-1))
            return x + scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    for how in ("in place", "wrapped"):
        torch._dynamo.reset()
        model = Blocks()
        model.blocks = nn.ModuleList(Alone(qkv) for qkv in ToyVideoDiT(3).qkv)
        if how == "in place":
            compile_blocks(model, **SPARSE)
        else:
            options = {**OPTIONS, **SPARSE}
            for place, block in enumerate(model.blocks):
                model.blocks[place] = torch.compile(block, backend="svg", dynamic=False, options=options)
        with svg_compile.denoising(model, steps=1), schedule.observe() as seen:
            model(latents())
        assert len(seen) == 3
        assert grids == ["5x7x3"]
        grids.clear()


def test_blocks_whose_grid_the_whole_model_does_not_show_say_so_or_take_a_given_one(
    grids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where more is read than one small argument.
    monkeypatch.setattr("svg_compile.regional.traced_grids.might_be_read", lambda arguments: [])
    case = models.case("hunyuan_video_1_5")
    arguments = case.inputs(1, case.grid)

    def run(**options: Any) -> list[tuple[int, bool]]:
        torch._dynamo.reset()
        model = case.build()
        model.compile_repeated_blocks(backend="svg", options={**OPTIONS, **SPARSE, "dense_steps": 1, **options})
        with svg_compile.denoising(model, steps=2) as denoising, schedule.observe() as seen:
            for _ in range(2):
                model(**arguments)
                denoising.advance()
        return [(decision.position.step, decision.dense) for decision in seen if decision.position is not None]

    # Whether it draws from text or from an image is read from an image's values.
    named = r"could not be traced.*transformer_hunyuan_video15\.py:\d+ .*reads a value.*'layout'.*'dense_layers': 0"
    with pytest.warns(UserWarning, match=named):
        assert run() == []
    with pytest.warns(UserWarning, match=named):
        assert run(layout=case.grid, dense_layers=1) == []
    assert run(layout=case.grid) == [(0, True), (0, True), (1, False), (1, False)]
    # One sparse graph, which both blocks share.
    assert grids.count("5x7x3") == 1


@torch._dynamo.config.patch(skip_nnmodule_hook_guards=True)
def test_another_model_of_its_class_without_marks_does_not_make_it_dense(grids: list[str]) -> None:
    told, other = compile_blocks(Blocks(), **SPARSE), compile_blocks(Blocks(), **SPARSE)
    for _ in range(2):
        with svg_compile.denoising(told, steps=1), schedule.observe() as seen:
            told(latents())
        assert len(seen) == 3
        if len(grids) == 1:
            with pytest.warns(UserWarning, match="attach"):
                other(latents())
    assert grids == ["5x7x3", "dense"]


def wrap(model: nn.Module) -> None:
    """What a library of unknown intentions does to a model."""
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)


def test_strict_holds_for_blocks_whose_model_cannot_be_traced() -> None:
    model = compile_blocks(Blocks(), strict=True)
    wrap(model)
    warned = pytest.warns(UserWarning, match=r"the forward of the model \(Blocks\) was replaced by .*test_region_calls")
    failed = pytest.raises(torch._dynamo.exc.BackendCompilerFailed)
    with svg_compile.denoising(model, steps=1), warned, failed as raised:
        model(latents())
    assert isinstance(raised.value.inner_exception, NothingRewritten)


def test_a_wrapper_that_is_taken_off_is_noticed(grids: list[str]) -> None:
    model = compile_blocks(Blocks(), **SPARSE)
    wrap(model)
    with svg_compile.denoising(model, steps=2):
        with pytest.warns(UserWarning, match="was replaced by"):
            model(latents())
        del model.forward
        model(latents())
    assert grids == ["dense", "5x7x3"]


def test_a_forward_that_was_interrupted_is_over_when_its_run_is(grids: list[str]) -> None:
    class Interrupted(Blocks):
        def forward(self, latents: Tensor, timestep: Tensor | None = None) -> Tensor:
            super().forward(latents)
            if not torch.compiler.is_compiling():
                raise KeyboardInterrupt
            return latents

    model = compile_blocks(Interrupted(), **SPARSE)
    with pytest.raises(KeyboardInterrupt), svg_compile.denoising(model, steps=1):
        model(latents())
    assert forward.under_way() is None
