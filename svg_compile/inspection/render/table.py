"""A table of texts, printed three ways: in plain text, as Markdown, and for a rich console."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """Headers, and rows of as many cells.

    align: one letter a column, "l" or "r"; by default the first column is left-aligned and the others right-aligned.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str = ""

    def __post_init__(self) -> None:
        if not self.align:
            object.__setattr__(self, "align", "l" + "r" * (len(self.headers) - 1))
        wrong = [row for row in (self.align, *self.rows) if len(row) != len(self.headers)]
        if wrong:
            raise ValueError(f"a table of {len(self.headers)} columns has a row of {len(wrong[0])}: {wrong[0]!r}")

    def text(self) -> str:
        """Columns as wide as their widest cell, two spaces before and between them."""
        lines = (self.headers, *self.rows)
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  " + "  ".join(map(_aligned, line, widths, self.align)).rstrip() for line in lines)

    def markdown(self) -> str:
        """GitHub-flavoured Markdown; what would part cells or be taken for HTML is escaped."""
        rulers = {"l": "---|", "r": "---:|"}
        head, *body = ("| " + " | ".join(map(escaped, line)) + " |" for line in (self.headers, *self.rows))
        return "\n".join((head, "|" + "".join(rulers[side] for side in self.align), *body))

    def rich(self, *, no_wrap: Container[str] = (), styles: Sequence[str] = (), **look: Any) -> RichTable:
        """A table to print on a rich console.

        no_wrap: headers of columns whose cells stay on one line. styles: of the last cell of each row. look: more
        arguments of `rich.table.Table`.
        """
        from rich.table import Table as RichTable
        from rich.text import Text

        drawn = RichTable(**look)
        for header, side in zip(self.headers, self.align):
            justify: Any = {"l": "left", "r": "right"}[side]
            drawn.add_column(header, justify=justify, overflow="fold", no_wrap=header in no_wrap)
        for index, row in enumerate(self.rows):
            # Not as plain strings: brackets, as in [8*16*16], would be taken for markup.
            drawn.add_row(*map(Text, row[:-1]), Text(row[-1], style=styles[index] if styles else ""))
        return drawn


def escaped(text: str) -> str:
    """A text as Markdown shows it, in a table and out of one."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _aligned(cell: str, width: int, side: str) -> str:
    return cell.rjust(width) if side == "r" else cell.ljust(width)
