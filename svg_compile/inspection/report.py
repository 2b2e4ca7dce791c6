"""`Report`, what `svg_compile.explain` returns: its facts, and the forms in which they are printed."""

from __future__ import annotations

from dataclasses import dataclass

from svg_compile.inspection.explanation import Explanation


@dataclass(frozen=True)
class Report(Explanation):
    """All attentions of one model, in the order in which they run; `str(report)` is a table."""

    def __str__(self) -> str:
        from svg_compile.inspection.render.text import to_text

        return to_text(self)

    def to_markdown(self) -> str:
        """The report as GitHub-flavoured Markdown, to paste into an issue."""
        from svg_compile.inspection.render.text import to_markdown

        return to_markdown(self)

    def to_json(self, indent: int | None = 2) -> str:
        """All facts of the report as JSON."""
        from svg_compile.inspection.render.as_json import to_json

        return to_json(self, indent)

    def to_html(self) -> str:
        """The report as one self-contained HTML page."""
        from svg_compile.inspection.render.as_html import page

        return page(self)

    def _repr_html_(self) -> str:
        from svg_compile.inspection.render.as_html import fragment

        return fragment(self)
