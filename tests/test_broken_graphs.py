"""Models whose graphs break before their attention, compiled whole and by blocks: the whole model shows the grid.

At density 1 they equal the eager model, at 0.3 the same model with its layout given. Inductor is replaced by the traced
graph itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import models
import svg_compile
from broken_models import MODELS, Build, Disabled, RotaryOutside, between, rolled, toy
from lowering import kind, watch
from svg_compile.runtime import dispatcher as schedule

OPTIONS: dict[str, Any] = {"min_tokens": 0, "block": 8, "dense_steps": 0, "dense_layers": 0, "on_error": "raise"}
STEPS = 3


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield watch(monkeypatch, kind)
    torch._dynamo.reset()


def run(build: Build, how: str, **options: Any) -> tuple[list[Tensor], list[list[bool]]]:
    """The output of each step, and for each which of its attentions' forwards were dense."""
    torch._dynamo.reset()
    model, inputs = build()
    steps = svg_compile.denoising(model, steps=STEPS) if how != "eager" else None
    given = {**OPTIONS, **options}
    if how == "whole":
        model.compile(backend="svg", options=given, dynamic=False)
    elif how == "blocks":
        for block in getattr(model, "blocks", None) or model.transformer_blocks:
            block.compile(backend="svg", options=given, dynamic=False)
    outputs, dense = [], []
    for step in range(STEPS):
        with schedule.observe() as seen:
            if steps is not None and not step:
                steps.__enter__()
            outputs.append(models.output(model(**{**inputs, "hidden_states": inputs["hidden_states"] * 1.01**step})))
            dense.append([decision.dense for decision in seen])
        if steps is not None and step < STEPS - 1:
            steps.advance()
    if steps is not None:
        steps.__exit__(None, None, None)
    return outputs, dense


@pytest.mark.parametrize("how", ["whole", "blocks"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "_" in name else name for name in MODELS]
)
def test_attention_behind_a_break_is_sparse_and_right(name: str, how: str) -> None:
    build, layout = MODELS[name]
    expected, _ = run(build, "eager")
    outputs, dense = run(build, how, density=1.0)
    for got, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    # Compiled whole, the first forward finds out that the graph breaks.
    # Two attentions in two graphs, or in one.
    assert all(each in ([False, False], [False]) for each in dense[how == "whole" :])
    sparse, _ = run(build, how, density=0.3)
    given, _ = run(build, how, density=0.3, layout=layout)
    torch.testing.assert_close(sparse[-1], given[-1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(sparse[-1], expected[-1], rtol=1e-3, atol=1e-3)


def test_a_part_without_attention_says_what_the_next_forward_will_be() -> None:
    """It is compiled before the graph that holds the attention: that all of it stays dense would be wrong."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        _, dense = run(MODELS["rotary code that is not traced"][0], "whole")
    said = {str(each.message) for each in warned if str(each.message).startswith("svg: ")}
    assert dense == [[], [False, False], [False, False]]
    (only,) = said
    assert "this forward is dense; the next forward recompiles the model, which is sparse from then on" in only
    assert "all of it stays dense" not in only
    # Outside of a schedule nobody looks at the whole model.
    torch._dynamo.reset()
    model, inputs = RotaryOutside(), toy()
    model.compile(backend="svg", options=OPTIONS, dynamic=False)
    with pytest.warns(UserWarning, match="all of it stays dense"):
        model(**inputs)


def test_attention_between_graphs_has_a_row_and_is_served_by_blocks() -> None:
    model, inputs = between()
    report = svg_compile.explain(model, **inputs, options={"min_tokens": 0})
    assert [site.layer for site in report.sites] == ["blocks.0.attn", "blocks.1.attn"]
    assert {site.reason for site in report.sites} == {svg_compile.Reason.BETWEEN_GRAPHS}
    line = Disabled.attend.__wrapped__.__code__.co_firstlineno + 2  # type: ignore[attr-defined]
    assert all(site.source.endswith(f"broken_models.py:{line}") for site in report.sites)
    assert all(site.sequence == "[5*7*3]" and "disable" in site.detail for site in report.sites)
    assert "another attention backend" not in str(report)
    outputs, dense = run(between, "blocks", density=1.0)
    assert dense == [[False, False]] * STEPS
    for got, want in zip(outputs, run(between, "eager")[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_grid_that_is_carried_across_a_break_is_said_to_need_attach() -> None:
    report = svg_compile.explain(RotaryOutside(), **toy(), options={"min_tokens": 0, "dense_layers": 1})
    assert [site.layer for site in report.sites] == ["blocks.0.attn", "blocks.1.attn"]
    # Layers are counted through all graphs.
    assert [site.reason for site in report.sites] == [svg_compile.Reason.DENSE_LAYER, None]
    assert "svg_compile.attach(pipe)" in report.sites[1].detail


def test_tokens_that_are_rolled_between_the_graphs_stay_dense() -> None:
    for how in ("whole", "blocks"):
        _, dense = run(rolled, how)
        assert all(decision for each in dense for decision in each)
