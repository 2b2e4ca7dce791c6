"""Printed output kept in tests/goldens and in docs/debugging.md; `make goldens` rewrites both.

A block of the page after `<!-- golden: NAME -->` must be what NAME.txt holds. Line numbers of source files, folders
and checksums are not compared: they change with every version of the code that they point into.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

GOLDENS = Path(__file__).resolve().parent / "goldens"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "debugging.md"

# Of absolute paths, but for the file's own name: where things lie is each machine's own.
_FOLDERS = re.compile(r"(?:/[\w.\-+]+)+/(?=[\w\-]+\.(?:py|html))")


def check(name: str, text: str) -> None:
    """Compare a text with its golden, and the page's block of that name with it."""
    text = _FOLDERS.sub("", text.strip("\n") + "\n")
    path = GOLDENS / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text)
        PAGE.write_text(_block(name).sub(lambda found: found[1] + text + found[3], PAGE.read_text()))
    assert plain(text) == plain(path.read_text()), f"{path}: make goldens rewrites it"
    for found in _block(name).finditer(PAGE.read_text()):
        assert plain(found[2]) == plain(text), f"{PAGE}, block {name}: make goldens rewrites it"


def plain(text: str) -> str:
    """A text without what may change: line numbers, folders, checksums, and the padding that follows from them."""
    text = re.sub(r"(\.py:)\d+", r"\1N", text)
    text = _FOLDERS.sub("", text)
    text = re.sub(r"pid\d+-\w+", "pidN", text)
    text = re.sub(r"(abi = )\d+", r"\1CHECKSUM", text)
    return re.sub(r" +", " ", text)


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- golden: {re.escape(name)} -->\n```\w*\n(?:\$ [^\n]*\n)*)(.*?\n)(```)", re.DOTALL)
