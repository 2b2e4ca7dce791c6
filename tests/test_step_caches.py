"""Step caches of other libraries, and forwards patched into a model, with `backend="svg"`.

Sparse where the blocks run, or dense with a reason that names the wrapper; with density 1 the same as on the eager
model, so that no cache is misled.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
from torch import Tensor

import models
from companion_rows import cache_dit
from companions import STEPS, beside, run
from lowering import kind, watch

HOW = pytest.mark.parametrize("how", ["whole", "blocks"])


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, fresh_dynamo: None) -> None:
    watch(monkeypatch, kind)


def built(companion: Callable[[Any], None], name: str = "wan") -> Any:
    model = models.case(name).build()
    companion(model)
    return model


@HOW
def test_cache_dit_at_a_second_grid(how: str) -> None:
    case = models.case("wan")
    f, h, w = case.grid
    model = built(cache_dit)
    for grid in ((f, h, w), (w, h, f)):
        inputs = case.inputs(1, grid)
        library = pytest.importorskip("cache_dit")
        library.refresh_context(model, num_inference_steps=STEPS)
        found = beside(model, how, inputs, density=0.3)
        told = beside(built(cache_dit), "blocks", inputs, density=0.3, layout=grid)
        assert found.sparse
        assert found.same(told.outputs)


class Distance:
    """What TeaCache keeps: how far the modulated input has moved since the blocks last ran, and what they added."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.moved = 0.0
        self.before: Tensor | None = None
        self.added: Tensor | None = None
        self.runs = 0

    def skip(self, modulated: Tensor) -> bool:
        """True if the blocks are skipped at this step."""
        if self.before is not None:
            self.moved += float((modulated - self.before).abs().mean() / self.before.abs().mean())
        self.before = modulated
        if self.added is None or self.moved >= self.threshold:
            self.moved = 0.0
            self.runs += 1
            return False
        return True


def patched(self: Any, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Any:
    """Wan's forward, with its blocks left out where the modulated input has hardly moved, as people patch it."""
    batch, _, frames, height, width = hidden_states.shape
    p_t, p_h, p_w = self.config.patch_size
    rotary = self.rope(hidden_states)
    x = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
    temb, projected, text, _ = self.condition_embedder(timestep, encoder_hidden_states, None, timestep_seq_len=None)
    projected = projected.unflatten(1, (6, -1))
    if self.distance.skip(projected):
        x = x + self.distance.added
    else:
        before = x
        for block in self.blocks:
            x = block(x, text, projected, rotary)
        self.distance.added = x - before
    shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
    x = self.proj_out(self.norm_out(x.float()) * (1 + scale) + shift)
    x = x.reshape(batch, frames // p_t, height // p_h, width // p_w, p_t, p_h, p_w, -1)
    return (x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3),)


def teacache(model: Any) -> None:
    model.distance = Distance(threshold=0.5)
    model.forward = MethodType(patched, model)


@HOW
def test_a_patched_forward_that_skips_blocks_is_not_traced_and_says_so(how: str) -> None:
    case = models.case("wan")
    inputs = case.inputs(1, case.grid)
    alone = built(teacache)
    expected = list(run(alone, inputs))
    assert 0 < alone.distance.runs < STEPS
    model = built(teacache)
    assert beside(model, how, inputs).same(expected)
    assert model.distance.runs == alone.distance.runs
    found = beside(built(teacache), how, inputs, density=0.3)
    # Compiled whole the first forward reads nothing, and is one graph: it proves its own grid.
    assert found.sparse == (case.video_sites if how == "whole" else 0)
    assert any(re.search(r"was replaced by \S*test_step_caches\.patched", said) for said in found.said)


@HOW
def test_a_patched_forward_is_sparse_with_the_layout_given(how: str) -> None:
    """The remedy in the reason."""
    case = models.case("wan")
    inputs = case.inputs(1, case.grid)
    alone, model = built(teacache), built(teacache)
    expected = list(run(alone, inputs))
    assert beside(model, how, inputs, layout=case.grid).same(expected)
    sparse = beside(built(teacache), how, inputs, density=0.3, layout=case.grid)
    assert sparse.sparse == alone.distance.runs * case.video_sites
    assert not sparse.same(expected)


@HOW
def test_a_forward_patched_into_the_class_is_sparse_or_the_line_that_reads_is_named(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TeaCache is often applied: `pipe.transformer.__class__.forward = ...`. What it skips depends on values."""

    def built_so() -> Any:
        model = models.case("wan").build()
        model.distance = Distance(threshold=0.5)
        return model

    case = models.case("wan")
    inputs = case.inputs(1, case.grid)
    monkeypatch.setattr(type(case.build()), "forward", patched)
    alone, model = built_so(), built_so()
    expected = list(run(alone, inputs))
    found = beside(model, how, inputs)
    assert found.same(expected)
    assert 0 < model.distance.runs == alone.distance.runs < STEPS
    if how == "blocks":
        # Sparse wherever the blocks run.
        assert (found.sparse, found.dense, found.said) == (alone.distance.runs * case.video_sites, 0, [])
        return
    # The first forward reads nothing; later ones do, and are parted there.
    assert found.sparse == case.video_sites
    assert any(
        re.search(r"could not be traced .*test_step_caches\.py:\d+ .*self\.moved \+=", said) for said in found.said
    )
