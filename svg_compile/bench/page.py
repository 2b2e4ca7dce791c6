"""A page of results: Markdown with tables and plots, made from stored JSON alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svg_compile.bench.tables import Result, conditions, notes, table, title
from svg_compile.errors import SvgError
from svg_compile.inspection.pictures import new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"svg": "#0b5cad", "hopper": "#3fa7d6", "flex": "#e67212", "flex-flash": "#b5179e", "transpose": "#5b8c2a"}
_MARKS = {"spatial": "o", "temporal": "s", "mixed": "D"}


def load(file: Path) -> Result:
    """A stored result; SvgError for what is none."""
    try:
        result = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SvgError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(result, dict) or result.get("benchmark") not in ("attention", "block", "forward", "trace"):
        raise SvgError(f"{file} holds no result of svg-compile bench.")
    return result


def write(files: Sequence[Path], out: Path, heading: str) -> list[Path]:
    """Write the page, and next to it a plot for each attention result -> what was written."""
    written = [out]
    parts = [f"# {heading}", "Made by `svg-compile bench page` from the JSON files in its folder."]
    out.parent.mkdir(parents=True, exist_ok=True)
    for file in files:
        result = load(file)
        try:
            parts += [f"## {title(result)}", table(result).markdown()]
            parts += ["\n".join(f"- {line}" for line in [*notes(result), conditions(result)])]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            what = f"{type(error).__name__}: {error}"
            raise SvgError(f"{file} is damaged, or a result of another version ({what}): measure anew.") from error
        if result["benchmark"] == "attention" and len({row["density_asked"] for row in _sparse(result)}) > 1:
            picture = out.with_name(f"{out.stem}_{file.stem}.png")
            save(draw(result), picture)
            parts.append(f"![Speedup over density]({picture.name})")
            written.append(picture)
    out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return written


def draw(result: Result) -> Figure:
    """Speedup over dense, by density, of each peer and kind of heads; and 1 / density, all that skipping can give."""
    figure = new_figure(figsize=(8.0, 4.8))
    axes = figure.subplots()
    rows = _sparse(result)
    densities = sorted({row["density"] for row in rows})
    axes.plot(densities, [1 / density for density in densities], color="0.6", linestyle="--", label="1 / density")
    for peer in dict.fromkeys(row["peer"] for row in rows):
        for kind in dict.fromkeys(row["kind"] for row in rows if row["peer"] == peer):
            points = sorted((r["density"], r["speedup"]) for r in rows if r["peer"] == peer and r["kind"] == kind)
            axes.plot(
                *zip(*points, strict=True), color=_COLOURS.get(peer, "#444444"), marker=_MARKS[kind], markersize=4,
                linewidth=1.2, label=f"{peer}, {kind}",
            )  # fmt: skip
    axes.axhline(1.0, color="0.8", linewidth=0.8)
    axes.set(xlabel="density reached", ylabel=f"times faster than dense ({result['base']})", ylim=(0, None))
    axes.set_title(title(result), fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    return figure


def _sparse(result: Result) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["kind"] in _MARKS]
