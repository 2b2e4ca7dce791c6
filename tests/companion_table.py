"""The table in docs/companions.md, made of the rows that the tests check: `python tests/companion_table.py` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from companion_rows import COMPANIONS, MODELS
from test_quantised import QUANTISED
from test_ulysses import PROCESSES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "companions.md"
BEGIN = "<!-- The table is made by tests/companion_table.py. -->\n"
END = "<!-- End of the table. -->\n"


def table() -> str:
    """The table: a row a companion, with the models that the tests run it on, whole and by blocks."""
    lines = ["| beside it | " + " | ".join(MODELS) + " | note |", "|---|" + "---|" * len(MODELS) + "---|"]
    lines += [f"| {name} | {' | '.join(cells)} | {note} |" for name, cells, note in _rows()]
    return "\n".join(line.replace("  ", " ") for line in lines) + "\n"


def _rows() -> Iterator[tuple[str, list[str], str]]:
    for each in COMPANIONS:
        yield each.name, [_cell(each.without.get(model)) for model in MODELS], each.note
    for name, models in QUANTISED_ON.items():
        yield name, ["sparse" if model in models else "" for model in MODELS], ""
    yield "Ulysses", ["sparse", "refused", "", ""], f"{PROCESSES} processes on CPUs, equal to one; see below"
