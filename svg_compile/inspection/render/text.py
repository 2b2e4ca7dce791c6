"""A report in print: the table with alike layers folded into one row, the figures below it, and both as Markdown."""

from __future__ import annotations

import os
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from svg_compile.decisions import Decisions, Site
from svg_compile.inspection.explanation import Explanation, GraphBreak
from svg_compile.inspection.render.table import Table, escaped

COLUMNS = ("layer", "source", "B x H x D", "tokens", "sequence", "decision")
_CODE = ("layer", "source", "sequence")


@dataclass(frozen=True)
class Row:
    """A row of the table: one attention, or several layers' that differ in their number alone."""

    cells: tuple[str, ...]
    sites: tuple[Site, ...]


def to_text(report: Decisions) -> str:
    """A table for terminals and logs; below it what explain found besides, where this is what it returned."""
    lines = [headline(report)]
    if report.sites:
        lines.append(site_table(folded_rows(report.sites)).text())
    return "\n".join([*lines, *(f"  {line}" for line in _below(report))])


def to_markdown(report: Decisions) -> str:
    """The report as GitHub-flavoured Markdown."""
    lines = [f"**{headline(report)}**"]
    if report.sites:
        plain = site_table(folded_rows(report.sites))
        rows = (tuple(map(_quoted, COLUMNS, row)) for row in plain.rows)
        lines += ["", Table(COLUMNS, tuple(rows), plain.align).markdown()]
    return "\n".join([*lines, "", *(f"- {escaped(line)}" for line in _below(report))]).rstrip() + "\n"


def site_table(rows: Sequence[Row]) -> Table:
    """The attentions, all columns left-aligned."""
    return Table(COLUMNS, tuple(row.cells for row in rows), "l" * len(COLUMNS))


def _quoted(column: str, cell: str) -> str:
    """In code quotes, as stars would make italics of grids."""
    return f"`{cell}`" if column in _CODE else cell


def _below(report: Decisions) -> list[str]:
    found = [*figures(report), *breaks(report)] if isinstance(report, Explanation) else []
    return [*remedies(report), *found, *report.notes]


def headline(report: Decisions) -> str:
    """The report in one line."""
    graphs = "1 graph" if report.graphs == 1 else f"{report.graphs} graphs"
    return f"{report.rewritten} of {len(report.sites)} attentions rewritten, {graphs}"


def folded_rows(sites: Sequence[Site]) -> tuple[Row, ...]:
    """One row a site, but one alone for sites that differ only in the numbers in their layers' paths."""
    groups: dict[tuple[str, ...], list[Site]] = {}
    for site in sites:
        groups.setdefault((re.sub(r"\d+", "#", site.layer), *_cells(site)), []).append(site)
    return tuple(Row((_layers(group), *key[1:]), tuple(group)) for key, group in groups.items())


def _cells(site: Site) -> tuple[str, ...]:
    return (
        os.path.basename(site.source) or "?",
        f"{site.batch}x{site.heads}x{site.head_dim}",
        str(site.tokens) if site.tokens == site.key_tokens else f"{site.tokens} x {site.key_tokens}",
        site.sequence,
        site.decision if site.calls == 1 else f"{site.decision} (called {site.calls}x)",
    )


def _layers(sites: Sequence[Site]) -> str:
    """`blocks.0.attn, blocks.1.attn, blocks.5.attn` -> `blocks.{0-1,5}.attn`."""
    paths = list(dict.fromkeys(site.layer for site in sites))
    if len(paths) == 1:
        return (paths[0] or "(model)") + (f" ({len(sites)}x)" if len(sites) > 1 else "")
    parts = [path.split(".") for path in paths]
    columns = list(zip(*parts))
    varying = [index for index, column in enumerate(columns) if len(set(column)) > 1]
    out = [column[0] for column in columns]
    for index in varying:
        plain = len(varying) == 1 and all(part.isdecimal() for part in columns[index])
        out[index] = "{" + _ranges(sorted({int(part) for part in columns[index]})) + "}" if plain else "*"
    return ".".join(out) + f" ({len(sites)}x)"


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def remedies(report: Decisions) -> list[str]:
    """One line a reason: what to do about it."""
    reasons = Counter(site.reason for site in report.sites if site.reason is not None)
    return [f"{reason.text} ({count}x): {reason.remedy}" for reason, count in reasons.items()]


def figures(report: Explanation) -> list[str]:
    """The densities reached, the FLOPs, and the speedups that they allow; nothing where no cost is known."""
    cost = report.cost
    if cost is None:
        return []
    if not report.rewritten:
        share = f"attention: {flops(cost.attention)} of the {flops(cost.model)} of a forward" if cost.model else ""
        return [share] if share and report.sites else []
    by_need = ("wider or narrower by need",) if cost.adaptive_widths else ()
    lines = [
        f"density {density:g} asked, on {tokens} tokens in blocks of {block}: " + ", ".join((*reached, *by_need))
        for (density, tokens, _, block), reached in bands(report).items()
    ]
    for stage in cost.stages:
        at = f" at density {stage.density:g}" if len(cost.stages) > 1 else ""
        lines.append(
            f"attention{at}: {flops(cost.attention)} dense, {flops(stage.attention)} in a sparse step: "
            f"at most {cost.attention_bound(stage):.2f}x as fast"
        )
        if (sparse := cost.model_at(stage)) is not None and cost.model:
            lines.append(
                f"the model{at}: {flops(cost.model)} dense, {flops(sparse)} in a sparse step: "
                f"at most {cost.model_bound(stage):.2f}x as fast"
            )
    if cost.run_bound is None:
        lines.append("the model: FLOPs unknown, for a graph could not be run without data")
    else:
        lines.append(
            f"a run of {cost.steps} steps, the first {cost.dense_steps} dense: at most {cost.run_bound:.2f}x as fast"
        )
    outside = "; what runs between graphs is not counted" if report.breaks else ""
    lines.append(f"these are bounds by arithmetic, not forecasts: memory and launches come on top{outside}")
    return lines


def bands(report: Explanation) -> dict[tuple[float, int, str, int], tuple[str, str]]:
    """(density asked, tokens, sequence, block) -> what heads of both kinds reach, in print; each once."""
    found: dict[tuple[float, int, str, int], tuple[str, str]] = {}
    if report.cost is None:
        return found
    for site, cost in zip(report.sites, report.cost.sites):
        for stage, spatial, temporal in zip(report.cost.stages, cost.spatial, cost.temporal):
            assert site.layout is not None
            found[stage.density, site.tokens, site.sequence, site.layout.block] = (
                f"spatial {spatial.density:.3f} (half-width {spatial.half_width})",
                f"temporal {temporal.density:.3f} (half-width {temporal.half_width})",
            )
    return found


def breaks(report: Explanation) -> list[str]:
    """One line a graph break: where, why, and what Dynamo advises."""
    return [*map(break_line, report.breaks)]


def break_line(each: GraphBreak) -> str:
    """A graph break in one line."""
    where = f" at {short(each.source)}" if each.source else ""
    often = f" ({each.count}x)" if each.count > 1 else ""
    more = textwrap.shorten(each.hint or each.explanation, 160, placeholder=" ...")
    return f"graph break{where}{often}: {each.reason}" + (f": {more}" if more else "")


def short(source: str) -> str:
    """The last two parts of a path: a file's name alone often says too little."""
    return "/".join(source.replace(os.sep, "/").split("/")[-2:])


def flops(count: float) -> str:
    """A count of FLOPs in print: `1.23 TFLOP`."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}FLOP"
        count /= 1000
    return f"{count:.3g} EFLOP"
