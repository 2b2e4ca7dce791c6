"""A report as JSON: every fact of it, in plain names that scripts can rely on."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from svg_compile.decisions import Site
from svg_compile.inspection.cost import Cost, SiteCost
from svg_compile.inspection.explanation import Explanation

# Raised when a name is renamed or dropped; added names do not count.
FORMAT = 1


def to_json(report: Explanation, indent: int | None = 2) -> str:
    """The report as a JSON object."""
    return json.dumps(facts(report), indent=indent)


def facts(report: Explanation) -> dict[str, Any]:
    """The report as plain lists and dictionaries."""
    costs = report.cost.sites if report.cost is not None else (None,) * len(report.sites)
    return {
        "format": FORMAT,
        "rewritten": report.rewritten,
        "attentions": len(report.sites),
        "graphs": report.graphs,
        "sites": [_site(site, cost) for site, cost in zip(report.sites, costs)],
        "graph_breaks": [dataclasses.asdict(each) for each in report.breaks],
        "cost": None if report.cost is None else _cost(report.cost),
        "notes": list(report.notes),
    }


def _site(site: Site, cost: SiteCost | None) -> dict[str, Any]:
    out = dataclasses.asdict(site)
    out["reason"] = None if site.reason is None else site.reason.name
    out["decision"] = site.decision
    out["remedy"] = None if site.reason is None else site.reason.remedy
    out["flops"] = None if cost is None else dataclasses.asdict(cost)
    return out


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        "steps": cost.steps,
        "dense_steps": cost.dense_steps,
        "attention_flops": cost.attention,
        "model_flops": cost.model,
        "run_speedup_at_most": cost.run_bound,
        "sparse_steps": [
            {
                "density_asked": stage.density,
                "steps": stage.steps,
                "attention_flops": stage.attention,
                "model_flops": cost.model_at(stage),
                "attention_speedup_at_most": cost.attention_bound(stage),
                "model_speedup_at_most": cost.model_bound(stage),
            }
            for stage in cost.stages
        ],
    }
