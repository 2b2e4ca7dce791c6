"""The calls that are timed against each other, by name; each only after its result was compared with float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from svg_compile.bench.peers import DENSE, Problem, Unavailable, peer
from svg_compile.functional import sparse_attention
from svg_compile.kernels.reference import attention_mask, masked_attention
from svg_compile.layout import HeadKind

# Rows whose results are compared with float64, and how far a correct bf16 kernel may be from it.
_CHECKED_ROWS, _MOST_DIFFERENCE = 16, 0.02


@dataclass(frozen=True)
class Entries:
    """The calls to time, by name; a row of the table for each; what was left out, and how much differs from float64."""

    calls: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, what: str, kind: str, density: float, problem: Problem) -> None:
        """Add a peer's call for a problem, or why it cannot be made, or is wrong."""
        try:
            call = peer(what)(problem)
            difference = _difference(call, problem, dense=what in DENSE, skip_sink=what == "transpose")
            if what not in DENSE and what not in ("svg", "transpose"):
                _same_everywhere(call, problem)
        except Unavailable as error:
            self.skipped.setdefault(what if what in DENSE else f"{what} {kind}", str(error))
            return
        self.calls[name] = call
        self.differences[name] = difference
        self.rows.append({"name": name, "peer": what, "kind": kind, "density_asked": density})

    def add_unchecked(self, name: str, what: str, density: float, call: Callable[[], Tensor]) -> None:
        """Add a call of the profile, whose result is no attention."""
        self.calls[name] = call
        self.rows.append({"name": name, "peer": what, "kind": "profile", "density_asked": density})


def _difference(call: Callable[[], Tensor], problem: Problem, dense: bool, skip_sink: bool) -> float:
    """||out - exact|| / ||exact|| over some rows of the first and the last head; an error where that is too much."""
    layout = problem.layout
    first = layout.video_start + layout.area if skip_sink else 0
    last = layout.video_start + layout.video if skip_sink else layout.tokens
    rows = torch.linspace(first, last - 1, _CHECKED_ROWS, device=problem.query.device).long()
    with torch.no_grad():
        out = call()
    wrong, size = 0.0, 0.0
    for head in {0, problem.shape.heads - 1}:
        kind = HeadKind.DENSE if dense else problem.kinds[head]
        mask = attention_mask(layout, problem.half_widths[head], kind, out.device, rows)
        exact = masked_attention(problem.query[:1, head, rows], problem.key[:1, head], problem.value[:1, head], mask)
        wrong += float((out[:1, head, rows] - exact).square().sum())
        size += float(exact.square().sum())
    found = (wrong / size) ** 0.5
    _check(found, "its result is wrong")
    return found


@torch.no_grad()
def _same_everywhere(call: Callable[[], Tensor], problem: Problem) -> None:
    """An error where the whole result is not that of svg::attention: few rows are compared with float64."""
    out, ours = call(), sparse_attention(problem.query, problem.key, problem.value, problem.plan, problem.layout)
    _check(float((out - ours).norm() / ours.norm()), "its result differs from that of svg::attention")


def _check(found: float, what: str) -> None:
    if not found < _MOST_DIFFERENCE:
        raise Unavailable(f"{what} by {found:.3f} of its size")
