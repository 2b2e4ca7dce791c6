"""A report as HTML: one page that loads nothing, or a fragment for a notebook."""

from __future__ import annotations

from typing import Any

from svg_compile.decisions import Reason
from svg_compile.inspection.explanation import Explanation
from svg_compile.inspection.render import templates
from svg_compile.inspection.render.text import bands, flops, folded_rows, headline, short

# Nothing is wrong with these: another reason is one that somebody may want to mend.
_AS_IT_SHOULD_BE = {Reason.CROSS_ATTENTION, Reason.DENSE_LAYER, Reason.CAUSAL, Reason.SINGLE_FRAME}


def page(report: Explanation) -> str:
    """The report as a page of its own."""
    return templates.page("svg_compile report", _body(report, "svg_compile report"))


def fragment(report: Explanation) -> str:
    """The report as part of a page, with its style."""
    return templates.fragment(_body(report, ""))


def _body(report: Explanation, heading: str) -> str:
    return templates.fill(
        "report",
        heading=heading,
        headline=headline(report),
        tiles=_tiles(report),
        notes=report.notes,
        rows=_rows(report),
        bars=_bars(report),
        bands=_bands(report),
        breaks=report.breaks,
    )


def _tiles(report: Explanation) -> list[tuple[str, str]]:
    tiles = [(f"{report.rewritten} of {len(report.sites)}", "attentions made sparse")]
    layout = next((site.layout for site in report.sites if site.rewritten), None)
    if layout is not None:
        text = f" and {layout.text_len} of text" if layout.text_len else ""
        tiles.append((f"{layout.tokens:,}", f"tokens: {layout.frames} x {layout.height} x {layout.width}{text}"))
    cost = report.cost
    if cost is not None and report.rewritten:
        best = min(cost.stages, key=lambda stage: stage.attention)
        bounds = [(cost.attention_bound(best), "attention in a sparse step"), (cost.model_bound(best), "a sparse step")]
        bounds.append((cost.run_bound, f"a run of {cost.steps} steps, {cost.dense_steps} dense"))
        tiles += [(f"\u2264 {bound:.2f}x", f"speed of {what}") for bound, what in bounds if bound is not None]
    return tiles


def _rows(report: Explanation) -> list[dict[str, Any]]:
    rows = []
    for row in folded_rows(report.sites):
        site = row.sites[0]
        reason = site.reason
        badge = "go" if reason is None else "" if reason in _AS_IT_SHOULD_BE else "warn"
        rows.append(
            {
                "cells": row.cells,
                "source": site.source,
                "badge": badge,
                "verdict": "sparse" if reason is None else "dense",
                "why": "" if reason is None else row.cells[-1],
                "remedy": "" if reason is None else reason.remedy,
                "stack": [{"full": line, "short": short(line)} for line in site.stack or (site.source,)],
            }
        )
    return rows


def _bars(report: Explanation) -> list[dict[str, Any]]:
    cost = report.cost
    if cost is None or not cost.model:
        return []
    forwards = [("dense", cost.attention, cost.model)]
    for stage in cost.stages if report.rewritten else ():
        name = f"density {stage.density:g}" if len(cost.stages) > 1 else "sparse step"
        forwards.append((name, stage.attention, cost.model_at(stage) or 0))
    share = 100 / cost.model
    return [
        {
            "name": name,
            "attention": attention * share,
            "rest": (model - attention) * share,
            "text": f"{flops(model)}, {attention / model:.0%} attention",
        }
        for name, attention, model in forwards
    ]


def _bands(report: Explanation) -> list[tuple[str, ...]]:
    return [
        (f"{tokens:,} tokens {sequence}, blocks of {block}", f"{density:g}", *reached)
        for (density, tokens, sequence, block), reached in bands(report).items()
    ]
