"""What diffusers puts around a transformer, beside `backend="svg"`: each row of the table in docs/companions.md.

With density 1 the sparse path equals dense attention, so a companion that is misled by the compile, or misleads it,
shows as a difference from the same companion on the eager model. Inductor is replaced by the traced graph itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import models
import svg_compile
from companions import OPTIONS, STEPS, compiled, run
from lowering import kind, watch
from svg_compile.runtime import dispatcher as schedule


def cache(name: str, **options: Any) -> Callable[[Any], None]:
    def enable(model: Any) -> None:
        from diffusers import hooks

        model.enable_cache(getattr(hooks, name)(**options))

    return enable


def lora(model: Any) -> None:
    peft = pytest.importorskip("peft")
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    torch.manual_seed(0)
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=targets))


def layerwise_casting(model: Any) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def group_offload(model: Any) -> None:
    cpu = torch.device("cpu")
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def block_offload(model: Any) -> None:
    cpu = torch.device("cpu")
    model.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )


def model_offload(model: Any) -> None:
    pytest.importorskip("accelerate").cpu_offload_with_hook(model, execution_device=torch.device("cpu"))


def sequential_offload(model: Any) -> None:
    pytest.importorskip("accelerate").cpu_offload(model, execution_device=torch.device("cpu"))


PAB = dict(
    spatial_attention_block_skip_range=2,
    spatial_attention_timestep_skip_range=(100, 800),
    current_timestep_callback=lambda: 500,
)
# The row of the docs, what is done to the model, and whether attention is sparse: whole model, block by block.
ROWS: tuple[tuple[str, Callable[[Any], None], bool, bool], ...] = (
    ("LoRA", lora, True, True),
    ("TaylorSeer", cache("TaylorSeerCacheConfig"), True, True),
    ("Pyramid Attention Broadcast", cache("PyramidAttentionBroadcastConfig", **PAB), True, True),
    ("FirstBlockCache", cache("FirstBlockCacheConfig", threshold=0.2), True, True),
    ("MagCache", cache("MagCacheConfig", num_inference_steps=STEPS, mag_ratios=torch.ones(STEPS)), True, True),
    ("layerwise casting", layerwise_casting, True, True),
    ("group offload, block level", block_offload, True, True),
    ("group offload, leaf level", group_offload, True, True),
    ("model CPU offload", model_offload, True, True),
    ("sequential CPU offload", sequential_offload, True, True),
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    watch(monkeypatch, kind)
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["whole", "blocks"])
@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_works_or_stays_dense_with_a_reason(row: tuple[str, Callable[[Any], None], bool, bool], how: str) -> None:
    _, companion, *sparse = row
    case = models.case("wan")
    inputs = case.inputs(1, case.grid)
    plain = case.build()
    companion(plain)
    expected = list(run(plain, inputs))
    torch._dynamo.reset()
    model = case.build()
    companion(model)
    compiled(model, how)
    outputs = []
    with warnings.catch_warnings(record=True) as warned, schedule.observe() as seen:
        warnings.simplefilter("always")
        with svg_compile.denoising(model, steps=STEPS) as denoising:
            for output in run(model, inputs):
                outputs.append(output)
                denoising.advance()
    for got, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert any(not decision.dense for decision in seen) == sparse[how == "blocks"]
    if not sparse[how == "blocks"]:
        assert any(str(warning.message).startswith("svg: ") for warning in warned)


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_lora_loaded_after_the_compile_is_seen(how: str) -> None:
    case = models.case("wan")
    inputs = case.inputs(1, case.grid)
    plain = case.build()
    without = next(run(plain, inputs))
    lora(plain)
    expected = next(run(plain, inputs))
    assert not torch.equal(without, expected)
    model = compiled(case.build(), how)
    with svg_compile.denoising(model, steps=1):
        torch.testing.assert_close(next(run(model, inputs)), without, rtol=1e-4, atol=1e-4)
    lora(model)
    with svg_compile.denoising(model, steps=1), schedule.observe() as seen:
        torch.testing.assert_close(next(run(model, inputs)), expected, rtol=1e-4, atol=1e-4)
    assert seen
    assert not any(decision.dense for decision in seen)


@pytest.mark.parametrize("companion", [block_offload, layerwise_casting])
def test_explain_says_whose_hooks_it_leaves_off(companion: Callable[[Any], None]) -> None:
    case = models.case("wan")
    model, inputs = case.build(), case.inputs(1, case.grid)
    before = svg_compile.explain(model, **inputs, options=OPTIONS)
    companion(model)
    report = svg_compile.explain(model, **inputs, options=OPTIONS)
    assert report.sites == before.sites
    assert before.notes == ()
    (note,) = report.notes
    assert "runs as plain Python" in note
    assert "forward of " in note
