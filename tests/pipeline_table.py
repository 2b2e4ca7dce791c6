"""Runs the pipelines of docs/models.md and writes the page: `python tests/pipeline_table.py [--run] [NAME...]`.

Without --run it writes the page only. With it, each pipeline whose name holds one of the NAMEs is run as it is,
compiled whole and by blocks, and a line says what was found; it ends with 1 where anything is not as the page says.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch

from lowering import run_as_traced
from pipelines.rows import Row, check, run_compiled, run_eager
from pipelines.table import ROWS, page
from svg_compile import backend

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"


def run(row: Row) -> bool:
    """Run a row and print the result; True if it agrees with the page."""
    eager, right = run_eager(row), True
    for how in ("whole", "blocks"):
        start = time.perf_counter()
        try:
            seen = run_compiled(row, how)
            found = f"{seen.sparse} sparse, {seen.left_dense} left dense of {eager.attentions}"
            check(row, how, eager, seen)
        except Exception as error:
            torch._dynamo.reset()
            right, found = False, f"{type(error).__name__}: {error}"
        print(
            f"{row.name}, {how}: {getattr(row, how)} expected; {found} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    return right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    # The traced graph replaces Inductor: the check is about decisions and results, not about speed.
    backend.lower = run_as_traced
    rows = [row for row in ROWS if not given.names or any(name.lower() in row.name.lower() for name in given.names)]
    wrong = [row.name for row in rows if given.run and not run(row)]
    if wrong:
        print(f"not as docs/models.md says: {', '.join(wrong)}")
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
