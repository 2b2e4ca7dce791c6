"""Models compiled block by block: the whole model tells each block its grid, its step and its layer.

Unless a test says otherwise Inductor is replaced by the traced graph itself, so that a compile costs a trace.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
import pipelines
import svg_compile
from lowering import kind, watch
from svg_compile.regional.blocks import compiled_blocks
from svg_compile.runtime import dispatcher as schedule
from toy import ToyVideoDiT, latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "block": 8, "on_error": "raise", "dense_steps": 1}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    before = schedule.registered()
    with torch.no_grad():
        yield
    torch._dynamo.reset()
    gc.collect()
    assert schedule.registered() == before, "a test left a schedule registered"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return watch(monkeypatch, kind)


def run(model: nn.Module, inputs: dict[str, Any], steps: int = 2) -> tuple[list[Tensor], list[list[bool]]]:
    """The output of each step, and for each step whether its forwards, one a block, were dense."""
    outputs, dense = [], []
    with svg_compile.denoising(model, steps=steps) as denoising:
        for _ in range(steps):
            with schedule.observe() as seen:
                outputs.append(models.output(model(**inputs)))
            dense.append([decision.dense for decision in seen])
            denoising.advance()
    return outputs, dense


class Blocks(nn.Module):
    """The toy model as diffusers builds one: a list of blocks, each with its attention as a module of its own."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        whole = ToyVideoDiT(layers)
        self.patch = whole.patch
        self.blocks = nn.ModuleList(Block(qkv) for qkv in whole.qkv)
        self.eval()

    def forward(self, latents: Tensor, timestep: Tensor | None = None) -> Tensor:
        x = self.patch(latents).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    def __init__(self, qkv: nn.Module) -> None:
        super().__init__()
        self.attn = Attention(qkv)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x)


class Attention(nn.Module):
    def __init__(self, qkv: nn.Module) -> None:
        super().__init__()
        self.qkv = qkv

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (3 * self.qkv(x)).chunk(3, dim=-1))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def compile_blocks(model: Any, **options: Any) -> Any:
    for block in model.blocks:
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, **options})
    return model


@pytest.mark.parametrize(("name", "kinds"), [("wan", 1), ("hunyuan_video", 2), ("ltx_video", 1)])
def test_regional_equals_whole_with_one_compile_for_a_class_of_blocks(name: str, kinds: int, built: list[str]) -> None:
    case = models.case(name)
    inputs = case.inputs(1, case.grid)
    whole = torch.compile(case.build(), backend="svg", dynamic=False, options=OPTIONS)
    with svg_compile.denoising(whole, steps=2) as denoising:
        expected = []
        for _ in range(2):
            expected.append(models.output(whole(**inputs)))
            denoising.advance()
    built.clear()
    torch._dynamo.reset()
    model = case.build()
    model.compile_repeated_blocks(backend="svg", dynamic=False, options=OPTIONS)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        outputs, dense = run(model, inputs)
    assert built.count("sparse") == kinds
    # The first layer stays dense, at the second step as well.
    assert dense == [[True] * case.video_sites, [True] + [False] * (case.video_sites - 1)]
    for output, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, want, rtol=1e-5, atol=1e-5)
    before = len(built)
    _, again = run(model, inputs)
    assert again == dense
    assert len(built) == before


def test_another_grid_of_equal_length_recompiles_and_the_first_is_found_again(built: list[str]) -> None:
    model = compile_blocks(Blocks(), dense_layers=0, dense_steps=0, density=0.5)
    results = {}
    for grid, compiles in (((5, 7, 3), 1), ((7, 5, 3), 2), ((5, 7, 3), 2), ((3, 7, 5), 3)):
        (output,), _ = run(model, {"latents": latents(1, *grid)}, steps=1)
        assert len(built) == compiles, grid
        results[grid] = output
    whole = ToyVideoDiT(3)
    for grid, output in results.items():
        torch._dynamo.reset()
        options = {**OPTIONS, "dense_layers": 0, "dense_steps": 0, "density": 0.5}
        want = torch.compile(whole, backend="svg", dynamic=False, options=options)(latents(1, *grid))
        torch.testing.assert_close(output, want, rtol=1e-5, atol=1e-5)


def test_without_attach_a_block_is_refused_and_the_reason_names_the_remedy(built: list[str]) -> None:
    model = compile_blocks(Blocks())
    with pytest.warns(UserWarning, match=r"compiled block by block, call svg_compile\.attach"):
        output = model(latents())
    assert built == ["dense"]
    torch.testing.assert_close(output, ToyVideoDiT(3)(latents()))


def test_a_block_that_ran_before_is_compiled_anew_once_it_is_told(built: list[str]) -> None:
    model = compile_blocks(Blocks())
    with pytest.warns(UserWarning, match="attach"):
        model(latents())
    _, dense = run(model, {"latents": latents()})
    assert dense == [[True] * 3, [True, False, False]]
    # Outside of the block no grid is known any more: dense again, not the earlier grid.
    with pytest.warns(UserWarning, match="attach"):
        output = model(latents())
    torch.testing.assert_close(output, ToyVideoDiT(3)(latents()))


@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_single_blocks_may_be_compiled(how: str, built: list[str]) -> None:
    model = Blocks()
    for place in (1, 2):
        block = model.blocks[place]
        if how == "in place":
            block.compile(backend="svg", dynamic=False, options=OPTIONS)
        else:
            model.blocks[place] = torch.compile(block, backend="svg", dynamic=False, options=OPTIONS)
    assert [path for path, _ in compiled_blocks(model)] == ["blocks.1", "blocks.2"]
    outputs, dense = run(model, {"latents": latents()})
    # The first layer of the model is not compiled: the two others are its second and third.
    assert dense == [[True, True], [False, False]]
    torch.testing.assert_close(outputs[0], ToyVideoDiT(3)(latents()))


def test_a_whole_pipeline_tells_its_blocks_the_step(built: list[str]) -> None:
    spec = pipelines.spec("wan")
    pipe = spec.build()
    pipe.transformer.compile_repeated_blocks(backend="svg", dynamic=False, options={**OPTIONS, "dense_steps": 0.5})
    with svg_compile.attach(pipe):
        for _ in range(2):
            with schedule.observe() as seen:
                spec.call(pipe, 4)
            blocks = len(pipe.transformer.blocks)
            assert len(seen) == 4 * spec.forwards * blocks
            for index, decision in enumerate(seen):
                step, layer = index // (spec.forwards * blocks), index % blocks
                assert (decision.position.step, decision.dense) == (step, step < 2 or layer == 0)
        assert built == ["dense", "sparse"]
    with pytest.warns(UserWarning, match="attach"), schedule.observe() as seen:
        spec.call(pipe, 1)
    assert seen == []


def test_the_models_timestep_serves_its_blocks_where_the_scheduler_keeps_no_step(built: list[str]) -> None:
    spec = pipelines.spec("cogvideox")
    pipe = spec.build()
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, "dense_layers": 0, "dense_steps": 0.5})
    with svg_compile.attach(pipe), schedule.observe() as seen:
        spec.call(pipe, 4)
    blocks = len(pipe.transformer.transformer_blocks)
    assert [d.dense for d in seen] == [step < 2 for step in range(4) for _ in range(spec.forwards * blocks)]


def test_a_changed_guidance_or_size_is_traced_anew_and_an_error_leaves_nothing_on(built: list[str]) -> None:
    model = compile_blocks(Blocks())
    warned, failed = pytest.warns(UserWarning, match="could not be traced"), pytest.raises(RuntimeError)
    with svg_compile.denoising(model, steps=2), warned, failed:
        model(torch.zeros(1, 5, 5, 7, 3))
    assert not any(module._forward_pre_hooks for module in model.modules())
    _, dense = run(model, {"latents": latents(2)})
    assert dense == [[True] * 3, [True, False, False]]
    _, dense = run(model, {"latents": latents(1, 3, 5, 7)})
    assert dense == [[True] * 3, [True, False, False]]


def test_another_attention_processor_is_traced_anew(built: list[str]) -> None:
    class Backwards(nn.Module):
        """Attention over tokens in another order, the same length and the same calls."""

        def __init__(self, attn: nn.Module) -> None:
            super().__init__()
            self.attn = attn

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x.flip(1)).flip(1)

    model = compile_blocks(Blocks(2), dense_layers=0, dense_steps=0)
    _, dense = run(model, {"latents": latents()}, steps=1)
    assert dense == [[False, False]]
    model.blocks[1].attn = Backwards(model.blocks[1].attn)
    _, dense = run(model, {"latents": latents()}, steps=1)
    assert dense == [[False]]


def test_a_whole_compile_after_a_regional_one_has_its_own_layers(built: list[str]) -> None:
    model = compile_blocks(Blocks())
    run(model, {"latents": latents()})
    for block in model.blocks:
        block._compiled_call_impl = None
    model.compile(backend="svg", dynamic=False, options={**OPTIONS, "dense_steps": 1})
    _, dense = run(model, {"latents": latents()})
    assert dense == [[True], [False]]


def test_a_model_that_is_told_of_can_be_deleted(built: list[str]) -> None:
    model = compile_blocks(Blocks())
    run(model, {"latents": latents()})
    gone = weakref.ref(model)
    del model
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None


def test_other_backends_are_not_disturbed_by_marks() -> None:
    model = Blocks()
    for block in model.blocks:
        block.compile(backend="aot_eager", dynamic=False)
    with svg_compile.denoising(model, steps=1):
        torch.testing.assert_close(model(latents()), ToyVideoDiT(3)(latents()))


def test_with_inductor_the_dense_steps_are_inductors_bit_for_bit() -> None:
    case = models.case("wan")
    inputs = case.inputs(1, case.grid)
    model = case.build()
    model.compile_repeated_blocks(backend="inductor", dynamic=False)
    want = models.output(model(**inputs))
    torch._dynamo.reset()
    model = case.build()
    model.compile_repeated_blocks(backend="svg", dynamic=False, options=OPTIONS)
    (first, second), dense = run(model, inputs)
    assert dense == [[True, True], [True, False]]
    assert torch.equal(first, want)
    assert not torch.equal(second, want)
