"""The table of docs/companions.md has a row for each companion that has tests, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import test_companions
import test_quantised
import test_step_caches

DOCS = Path(__file__).resolve().parent.parent / "docs" / "companions.md"


def test_the_table_is_that_of_the_tests() -> None:
    said = {True: "sparse", False: "dense"}
    lines = re.findall(r"^\| ([^|]+) \| (sparse|dense) \| (sparse|dense) \|", DOCS.read_text(), re.MULTILINE)
    tested = [(name, said[whole], said[blocks]) for name, _, whole, blocks in test_companions.ROWS]
    # Their tests have one outcome: sparse, whole and by blocks.
    names = [*(row[0] for row in test_step_caches.DIFFUSERS), "cache-dit", *test_quantised.QUANTISED, "Ulysses"]
    assert lines == [*tested, *((name, "sparse", "sparse") for name in names)]
