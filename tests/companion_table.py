"""The table in docs/companions.md, made of the rows that the tests check: `make companions-page` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from companion_rows import COMPANIONS, MODELS
from sharded import COMPANIONS as SHARDED
from test_quantised import QUANTISED, WITH_TEXT
from test_ulysses import MODELS as SPREAD

PAGE = Path(__file__).resolve().parent.parent / "docs" / "companions.md"
BEGIN, END = "<!-- made by tests/companion_table.py -->\n", "<!-- end -->\n"
# Of pairs that no test runs.
_NEVER, _UNTESTED = "not in diffusers", ""


def table() -> str:
    """The rows: a companion, "sparse" or "dense" for each model, whole and by blocks, and a note."""
    lines = [f"| together with | {' | '.join(MODELS)} | note |", f"|---|{'---|' * len(MODELS)}---|"]
    lines += [f"| {name} | {' | '.join(cells)} | {note} |" for name, cells, note in _rows()]
    return "".join(f"{line}\n" for line in lines)


def _rows() -> Iterator[tuple[str, Sequence[str], str]]:
    for each in COMPANIONS:
        notes = [*([each.note] if each.note else []), *(f"{model}: {why}" for model, why in each.without.items())]
        yield each.name, [_NEVER if model in each.without else "sparse" for model in MODELS], "; ".join(notes)
    for name in QUANTISED:
        tested = {"Wan", "HunyuanVideo"} if name in WITH_TEXT else {"Wan"}
        yield name, ["sparse" if model in tested else _UNTESTED for model in MODELS], ""
    yield "Ulysses", ["sparse" if model in SPREAD else _NEVER for model in MODELS], "several processes; see below"
    for name in dict.fromkeys(each.removesuffix(" with text") for each in SHARDED):
        cases = {case for each, (case, _) in SHARDED.items() if each.removesuffix(" with text") == name}
        tested = {model for model, case in MODELS.items() if case.name in cases}
        note = "several processes; by blocks, see below" if name == "tensor parallel" else "several processes"
        yield name, ["sparse" if model in tested else _UNTESTED for model in MODELS], note


def written(page: str) -> str:
    """A page with the table in the place of the one that it has."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has no place for the table"
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
