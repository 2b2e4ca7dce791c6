"""Which operator took an axis' name: what `explain` says where a grid could not be proven."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import fx

from svg_compile.passes.node_origin import source_of


class Why(NamedTuple):
    """An operator and the graph's node that called it; None for a node where the graph does not show it.

    place: the line that called it outside of a graph.
    """

    operator: Any
    node: fx.Node | None
    place: str = ""

    def __str__(self) -> str:
        name = str(getattr(self.operator, "overloadpacket", self.operator))
        source = self.place if self.node is None else source_of(self.node)
        return f"{name} at {os.path.basename(source)}" if source else name


_UNDER_ANALYSIS: ContextVar[Why | None] = ContextVar("the operator whose axes are being derived", default=None)


def under_analysis() -> Why | None:
    """The operator whose result is being named."""
    return _UNDER_ANALYSIS.get()


@contextmanager
def analysing(why: Why) -> Iterator[None]:
    """Blame `why` for every axis that loses its name in the block."""
    token = _UNDER_ANALYSIS.set(why)
    try:
        yield
    finally:
        _UNDER_ANALYSIS.reset(token)
