"""Every diffusers pipeline of docs/models.md, run unchanged, compiled whole and by blocks: each row is correct.

Inductor is replaced by the traced graph itself, except where a test says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from lowering import kind, watch
from pipelines.rows import Eager, Row, check, run_compiled, run_eager
from pipelines.table import ROWS, page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
# Their pipelines are quick; the others are slow tests.
MARKED = [pytest.param(row, id=row.name, marks=[] if row.quick else pytest.mark.slow) for row in ROWS]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@cache
def eager(name: str) -> Eager:
    return run_eager(next(row for row in ROWS if row.name == name))


def needs(row: Row) -> None:
    import diffusers

    if row.pipeline != "ConsisIDPipeline" and not hasattr(diffusers, row.pipeline):
        pytest.skip(f"diffusers {diffusers.__version__} has no {row.pipeline}")


@pytest.mark.parametrize("how", ["whole", "blocks"])
@pytest.mark.parametrize("row", MARKED)
def test_a_pipeline_is_what_its_row_says(row: Row, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(row)
    watch(monkeypatch, kind)
    check(row, how, eager(row.name), run_compiled(row, how))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "Wan 2.1 I2V",
        "HunyuanVideo T2V",
        "LTX-Video T2V",
        "Cosmos 2 video to world",
        "Cosmos 3",
        "MiniMax-H3, first frame given",
    ],
)
def test_a_pipeline_is_so_through_inductor(name: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    needs(row)
    check(row, "blocks", eager(name), run_compiled(row, "blocks"))


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, kind)
    row = next(row for row in ROWS if row.name == "LTX-Video T2V")
    seen = run_compiled(row, "whole", layout=(7, 5, 3))
    with pytest.raises(AssertionError):
        check(row, "whole", eager(row.name), seen)


def test_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_page_is_made_of_the_rows() -> None:
    assert PAGE.read_text() == page(), "make models-page writes it"
