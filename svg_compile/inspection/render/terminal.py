"""A report in colour, for terminals; elsewhere its plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svg_compile.decisions import Report
from svg_compile.inspection.render.text import COLUMNS, breaks, figures, folded_rows, headline, remedies

if TYPE_CHECKING:
    from rich.console import Console


def print_report(report: Report, console: Console) -> None:
    """Print a report as wide as the console is; as plain text where it is no terminal."""
    if not console.is_terminal:
        # Not through the console, which would break lines at 80 columns.
        console.file.write(str(report) + "\n")
        return
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console.print(Text(headline(report), style="bold"))
    if report.sites:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in COLUMNS:
            table.add_column(name, overflow="fold", no_wrap=name == "B x H x D")
        for row in folded_rows(report.sites):
            style = "green" if row.sites[0].rewritten else "yellow"
            table.add_row(*map(Text, row.cells[:-1]), Text(row.cells[-1], style=style))
        console.print(table)
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
