"""What a recording knows of the grid: from the graph, or from a layout that must not contradict it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import svg_compile
from lowering import kind, watch
from pipelines import TimedDiT
from svg_compile import SvgError, VideoLayout
from test_record import GRID, OPTIONS, TIMES, compiled, run
from toy import latents

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, kind)


def test_the_graph_knows_its_grid(traced: None) -> None:
    model = compiled(TimedDiT(), dense_steps=0)
    with svg_compile.record(model) as recording:
        run(model, latents(), TIMES[:2])
    assert [e.layout for e in recording.entries] == [GRID, GRID]
    assert all(0 < density < 1 for density in recording.densities().values())
    with svg_compile.record(model, layout=(5, 7, 3)) as again:
        run(model, latents(), TIMES[:2])
    assert again.summary == recording.summary


@pytest.mark.parametrize(
    ("layout", "conflict"),
    [
        (VideoLayout(5, 7, 3), "layout has block=128, the compiled graph of .* has block=8: leave layout out"),
        (VideoLayout(50, 7, 3, block=8), "layout has frames=50, the compiled graph of .* has frames=5"),
        ((7, 5, 3), "layout has frames=7, height=5, the compiled graph of .* has frames=5, height=7"),
        (VideoLayout(5, 7, 3, 4, block=8), "layout has text_len=4, the compiled graph of .* has text_len=0"),
    ],
)
def test_a_layout_that_contradicts_the_graph_is_told(layout: Any, conflict: str, traced: None) -> None:
    model = compiled(TimedDiT(), dense_steps=0)
    with pytest.warns(UserWarning, match=conflict), svg_compile.record(model, layout=layout) as recording:
        run(model, latents(), TIMES[:1])
    for found in (recording, recording.select(call=0), recording.select(layer="(model)")):
        with pytest.raises(SvgError, match=conflict):
            found.densities()
    assert "?" in recording.summary


def test_a_graph_for_changing_sizes_takes_them_from_the_layout(traced: None) -> None:
    model = torch.compile(TimedDiT(), backend="svg", dynamic=True, options={**OPTIONS, "dense_steps": 0})
    recordings = []
    for layout in (None, (5, 7, 3), GRID):
        with svg_compile.record(model, layout=layout) as recording:
            run(model, latents(), TIMES[:1])
        recordings.append(recording)
    with pytest.raises(SvgError, match="give it"):
        recordings[0].densities()
    for recording in recordings[1:]:
        assert [e.layout for e in recording.entries] == [GRID]
    block = "layout has block=128, .* has block=8"
    with pytest.warns(UserWarning, match=block), svg_compile.record(model, layout=VideoLayout(5, 7, 3)) as recording:
        run(model, latents(), TIMES[:1])
    with pytest.raises(SvgError, match=block):
        recording.densities()


@pytest.mark.parametrize("layout", ["5x7x3", (5, 7), (5, 7, 0), 3])
def test_what_is_no_layout_is_refused_before_the_run(layout: Any) -> None:
    with pytest.raises(SvgError, match="layout"), svg_compile.record(TimedDiT(), layout=layout):
        raise AssertionError("not reached")
