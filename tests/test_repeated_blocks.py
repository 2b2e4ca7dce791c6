"""A trace of a few of the blocks that run alike gives the report of a trace of all, or all of them are traced."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deep_models import ALIKE, DEPTH, Block, Deep, WrittenAfter
from svg_compile._compat.modules import listed_blocks
from svg_compile.inspection import tracing
from svg_compile.inspection.shortened import KEPT
from svg_compile.regional.call_guards import arguments_of
from svg_compile.regional.known_calls import KnownCalls
from toy import latents
from unlike_blocks import SLOW, UNLIKE

OPTIONS = {"min_tokens": 0, "block": 8, "dense_layers": 0}


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks were left out of each trace that was believed."""
    found: list[int] = []
    expanded = tracing.expanded

    def noting(short: Any, sites: Any) -> Any:
        found.append(sum(len(each.left_out) for each in short))
        return expanded(short, sites)

    monkeypatch.setattr(tracing, "expanded", noting)
    return found


def both(model: nn.Module, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """(the trace as `explain` has it, that of every block)."""
    with torch.no_grad():
        given = (latents(1, 3, 4, 5),), {}, options or OPTIONS
        return tracing.trace(model, *given), tracing.trace(model, *given, every_block=True)


@pytest.mark.parametrize(("name", "dense_layers"), [*((name, 0) for name in ALIKE), ("plain", 2)])
def test_a_few_blocks_say_what_all_of_them_do(name: str, dense_layers: int, shortened: list[int]) -> None:
    short, full = both(ALIKE[name](), {**OPTIONS, "dense_layers": dense_layers})
    assert short == full
    assert full.report.rewritten == len(full.report.sites) - dense_layers
    # What stays: the first block, which is given what no other block gives, and the first ones of the run.
    assert shortened[0] >= DEPTH - 2 - KEPT - dense_layers
    assert shortened[2:] == [0, 0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in UNLIKE]
)
def test_blocks_that_differ_in_some_way_are_traced(name: str, shortened: list[int]) -> None:
    short, full = both(UNLIKE[name]())
    assert short == full
    assert len(full.report.sites) >= DEPTH
    refused = {site.reason for site in full.report.sites}
    # In most of them something is wrong with a few attentions alone, which a trace of the others would not show.
    assert len(refused) > 1 or name in ("a class", "a buffer", "autocast", "a closure with a number")
    # Blocks that are alike before the one that is not may be left out.
    assert shortened[0] <= 8 - KEPT


def test_results_of_two_blocks_are_two_tensors(shortened: list[int]) -> None:
    short, full = both(WrittenAfter())
    assert short == full
    assert full.report.rewritten == 0
    assert shortened[0] >= DEPTH - 2 - KEPT


def test_where_the_blocks_have_no_source_a_break_has_every_block_traced(shortened: list[int]) -> None:
    """A class made by `exec` has no source lines, so whether a break lies in its forward is unknown."""
    names: dict[str, Any] = {"Block": Block, "torch": torch}
    code = "class Made(Block):\n    def forward(self, x, mask=None):\n        return super(Made, self).forward(x)\n"
    exec(code, names)

    class Breaks(Deep):
        def tokens(self, latents: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return super().tokens(latents)

    short, full = both(Breaks(lambda number: names["Made"]()))
    assert short == full
    assert len(full.report.sites) == DEPTH
    assert set(shortened) == {0}


def test_few_blocks_are_traced_without_a_look(shortened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "repeated_runs", lambda *_: pytest.fail("looked"))
    short, full = both(Deep(depth=KEPT + 2))
    assert short == full


def test_a_deep_model_says_that_it_is_looked_at_and_its_second_call_costs_no_look(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody waits at the first call. By default Python shows warnings of loggers, and nothing below."""
    said_before: list[int] = []
    trace = tracing.trace

    def noting(*given: Any, **options: Any) -> Any:
        said_before.append(len(caplog.messages))
        return trace(*given, **options)

    monkeypatch.setattr(tracing, "trace", noting)
    caplog.set_level(logging.WARNING, logger="svg_compile")
    known, model = KnownCalls(lambda blocks, sparse: None), Deep(depth=16)
    blocks = dict(listed_blocks(model))

    def look(frames: int) -> Any:
        args = (latents(1, frames, 4, 5),)
        with torch.no_grad():
            return known.grids(model, blocks, arguments_of(model, args, {}), args, {})

    first = look(3)
    assert first is not None
    assert len(first.sparse) == 16
    assert caplog.messages == ["svg: tracing Deep once, for the token grids of its 16 compiled blocks"]
    assert said_before == [1]
    assert look(3) is first
    assert said_before == [1]
    assert look(2) is not first
    assert len(said_before) == len(caplog.messages) == 2
