"""Companions together on one model, and LoRA as people change it: several adapters, fused, swapped in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import models
import svg_compile
from companion_rows import MODELS, block_offload, cache, layout, lora
from companions import STEPS, alone, beside, compiled, eager, run
from example import example
from lowering import kind, watch
from model_inputs import inputs_of
from svg_compile.runtime import dispatcher as schedule

HOW = pytest.mark.parametrize("how", ["whole", "blocks"])
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch, fresh_dynamo: None) -> list[str]:
    return watch(monkeypatch, kind)


# The trained one of this repository, and another.
COMPOSED = {
    "repository": models.Case(
        "repository",
        example("video_model").load_model,
        partial(inputs_of, channels=7, patch=4, text_dim=64),
        (5, 7, 3),
        text_len=0,
        text_first=False,
        video_sites=6,
        other_sites={"cross": 6},
    ),
    "Wan": MODELS["Wan"],
    "HunyuanVideo": MODELS["HunyuanVideo"],
}


@pytest.mark.slow
@HOW
@pytest.mark.parametrize("name", list(COMPOSED))
def test_cache_offload_adapter_and_dense_steps_on_one_model(name: str, how: str) -> None:
    case = COMPOSED[name]
    inputs = case.inputs(1, case.grid)

    def together() -> Any:
        model: Any = case.build()
        lora(model)
        cache("FirstBlockCacheConfig", threshold=0.4)(model)
        block_offload(model)
        return model

    expected = eager(together(), inputs, case)
    assert not all(map(torch.equal, expected.outputs, eager(case.build(), inputs, case).outputs))
    # The cache leaves out blocks.
    assert 0 < expected.attentions < STEPS * case.video_sites
    full = beside(together(), how, inputs)
    assert full.same(expected.outputs)
    assert (full.sparse, full.dense, full.said) == (expected.attentions, 0, [])
    assert full.graphs <= alone(together(), how, inputs)
    found = beside(together(), how, inputs, density=0.3, dense_steps=2)
    told = beside(together(), how, inputs, density=0.3, dense_steps=2, layout=layout(case))
    assert found.same(told.outputs)
    assert found.said == []
    # The dense steps are the eager ones; the others are not.
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(found.outputs[:2], expected.outputs[:2]))
    assert not found.same(expected.outputs)
    steps = [(forward.decision.dense, forward.decision.position.step) for forward in found.forwards]
    assert all(dense == (step < 2) for dense, step in steps)
    assert {dense for dense, _ in steps} == {True, False}


def adapter(model: Any, name: str, seed: int, rank: int = 4) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=TARGETS)
    model.add_adapter(config, adapter_name=name)


def two_adapters(model: Any) -> None:
    adapter(model, "one", 0)
    adapter(model, "two", 1)
    model.set_adapters(["one", "two"], [0.7, 0.4])


def fused(model: Any) -> None:
    two_adapters(model)
    model.fuse_lora(adapter_names=["one", "two"])


@HOW
@pytest.mark.parametrize("companion", [two_adapters, fused])
def test_several_adapters(companion: Callable[[Any], None], how: str) -> None:
    case = models.case("wan")
    inputs = case.inputs(1, case.grid)

    def build() -> Any:
        model = case.build()
        companion(model)
        return model

    expected = list(run(build(), inputs))
    assert not torch.allclose(expected[0], next(run(case.build(), inputs)), atol=1e-3)
    found = beside(build(), how, inputs)
    assert found.same(expected)
    assert (found.dense, found.said) == (0, [])
    assert found.sparse == STEPS * case.video_sites


def saved(folder: Path, seed: int, rank: int) -> Path:
    """A file of adapter weights."""
    model = models.case("wan").build()
    adapter(model, "default", seed, rank)
    model.save_lora_adapter(folder / str(seed), adapter_name="default")
    return folder / str(seed)


@HOW
def test_adapters_swapped_in_place_compile_nothing(how: str, tmp_path: Path, built: list[str]) -> None:
    case = models.case("wan")
    inputs = case.inputs(1, case.grid)
    files = [saved(tmp_path, seed=0, rank=4), saved(tmp_path, seed=1, rank=2)]

    def loaded(model: Any, file: Path, **more: Any) -> Any:
        name = "pytorch_lora_weights.safetensors"
        model.load_lora_adapter(str(file), adapter_name="mine", prefix=None, weight_name=name, **more)
        return model

    def forward(model: Any) -> Tensor:
        with svg_compile.denoising(model, steps=1), schedule.observe() as seen:
            output = next(run(model, inputs))
        assert [decision.dense for decision in seen] == [False] * (case.video_sites if how == "blocks" else 1)
        return output

    expected = [next(run(loaded(case.build(), file), inputs)) for file in files]
    assert not torch.allclose(*expected, atol=1e-3)
    model = case.build()
    model.enable_lora_hotswap(target_rank=4)
    compiled(loaded(model, files[0]), how)
    torch.testing.assert_close(forward(model), expected[0], rtol=1e-4, atol=1e-4)
    graphs = len(built)
    for file, want in ((files[1], expected[1]), (files[0], expected[0])):
        loaded(model, file, hotswap=True)
        torch.testing.assert_close(forward(model), want, rtol=1e-4, atol=1e-4)
    assert len(built) == graphs > 0
