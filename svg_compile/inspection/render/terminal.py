"""A report in colour, for terminals; elsewhere its plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from svg_compile.inspection.explanation import Explanation
from svg_compile.inspection.render.text import breaks, figures, folded_rows, headline, remedies, site_table, to_text

if TYPE_CHECKING:
    from rich.console import Console


def print_report(report: Explanation, console: Console) -> None:
    """Print a report as wide as the console is; as plain text where it is no terminal."""
    if not console.is_terminal:
        # Not through the console, which would break lines at 80 columns.
        console.file.write(to_text(report) + "\n")
        return
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(headline(report), style="bold"))
    if report.sites:
        rows = folded_rows(report.sites)
        styles = ["green" if row.sites[0].rewritten else "yellow" for row in rows]
        look: dict[str, Any] = {"box": None, "pad_edge": False, "header_style": "dim"}
        console.print(site_table(rows).rich(no_wrap=("B x H x D",), styles=styles, **look))
    for title, lines in (
        ("What to do", remedies(report)),
        ("What it saves", figures(report)),
        ("Graph breaks", breaks(report)),
        ("Notes", list(report.notes)),
    ):
        if lines:
            console.print(Text(f"\n{title}", style="bold"))
            for line in lines:
                console.print(Padding(Text(line), (0, 0, 0, 2)))
