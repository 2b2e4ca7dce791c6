"""Dynamo's texts on where it parted a model's graph, as facts."""

from __future__ import annotations

import os
import re
from typing import Any

from svg_compile.inspection.explanation import GraphBreak


def graph_breaks(found: list[tuple[str, list[Any]]]) -> tuple[GraphBreak, ...]:
    """Dynamo's texts, parted; a break that it tells twice, once without a place, counts once."""
    merged: dict[tuple[str, str], GraphBreak] = {}
    for text, frames in found:
        title = text.partition("\n")[0].strip()
        if title.startswith("generic_jump"):
            # Its short name for what the counters spell out.
            title = "Data-dependent branching"
        source = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        told = [key for key in merged if key[0] == title]
        if not source and told:
            bare = [key for key in told if not merged[key].explanation]
            merged.update({key: GraphBreak(*key, *_advice(text), merged[key].count) for key in bare})
            continue
        before = merged.get((title, source))
        merged[title, source] = GraphBreak(title, source, *_advice(text), 1 if before is None else before.count + 1)
    return tuple(merged.values())


def last_break(found: list[tuple[str, list[Any]]]) -> str:
    """The last break, in a line."""
    last = graph_breaks(found)[-1:]
    return "".join(f"{each.reason}{' at ' + os.path.basename(each.source) if each.source else ''}" for each in last)


def _advice(text: str) -> tuple[str, str]:
    """Dynamo's explanation and its first hint."""
    found = (re.search(rf"^ *{name}: (.*)$", text, re.MULTILINE) for name in ("Explanation", "Hint"))
    explanation, hint = (match[1] if match else "" for match in found)
    return explanation, hint
