"""Features combined with `backend="svg"`: the rows of docs/companions.md, each on each model.

With density 1 the sparse path equals dense attention, so a companion that is misled by the compile, or misleads it,
shows as a difference from the same companion on the eager model. Inductor is replaced by the traced graph itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import models
import svg_compile
from companion_rows import COMPANIONS, MODELS, block_offload, check, companion, layerwise_casting, lora
from companions import OPTIONS, compiled, run
from lowering import kind, watch
from svg_compile.runtime import dispatcher as schedule

HOW = pytest.mark.parametrize("how", ["whole", "blocks"])


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, fresh_dynamo: None) -> None:
    watch(monkeypatch, kind)


# Compiled whole, the others are among the slow tests.
QUICK_WHOLE = ("FirstBlockCache", "LoRA", "group offload, block level", "layerwise casting")
# By blocks, those that are served as another one is are, too.
SLOW_BLOCKS = ("sequential CPU offload", "layer skip, feed-forward alone")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(
            each.name,
            how,
            marks=[pytest.mark.slow] * (each.name in SLOW_BLOCKS if how == "blocks" else each.name not in QUICK_WHOLE),
        )
        for each in COMPANIONS
        for how in ("whole", "blocks")
    ],
)
def test_it_is_sparse_and_equals_the_companion_on_the_eager_model(name: str, how: str) -> None:
    check(companion(name), "Wan", how, thorough=False)


@pytest.mark.slow
@HOW
@pytest.mark.parametrize(
    ("name", "model"), [(each.name, model) for model in MODELS for each in COMPANIONS if model not in each.without]
)
def test_beside_each_model_it_equals_the_same_with_the_grid_given(name: str, model: str, how: str) -> None:
    check(companion(name), model, how, thorough=True)


@HOW
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


@pytest.mark.parametrize("put", [block_offload, layerwise_casting])
def test_explain_says_whose_hooks_it_leaves_off(put: Callable[[Any], None]) -> None:
    case = models.case("wan")
    model, inputs = case.build(), case.inputs(1, case.grid)
    before = svg_compile.explain(model, **inputs, options=OPTIONS)
    put(model)
    report = svg_compile.explain(model, **inputs, options=OPTIONS)
    assert report.sites == before.sites
    assert before.notes == ()
    (note,) = report.notes
    assert "runs as plain Python" in note
    assert "forward of " in note
    assert "is compiled by itself" in note
    assert "options={'eager_attention': False} leaves it dense" in note
    (note,) = svg_compile.explain(model, **inputs, options={**OPTIONS, "eager_attention": False}).notes
    assert "stays dense, as options={'eager_attention': False} asks" in note
