"""The facts that `svg_compile.explain` finds: the passes' decisions, the graph breaks, and what the model costs."""

from __future__ import annotations

from dataclasses import dataclass

from svg_compile.decisions import Decisions
from svg_compile.inspection.cost import Cost


@dataclass(frozen=True)
class GraphBreak:
    """A place where Dynamo parted the model's graph. source: file:line, "" where it does not say; count: how often."""

    reason: str
    source: str = ""
    explanation: str = ""
    hint: str = ""
    count: int = 1


@dataclass(frozen=True)
class Explanation(Decisions):
    """The decisions, the places between the graphs, and FLOPs; cost is None where it was not counted."""

    breaks: tuple[GraphBreak, ...] = ()
    cost: Cost | None = None
