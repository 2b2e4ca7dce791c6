"""The HTML of reports and dump indexes, by the Jinja templates in html/: pages in one style that load nothing."""

from __future__ import annotations

from importlib import resources
from typing import Any


def fill(template: str, **values: Any) -> str:
    """The template html/`template`.html.j2 with its values, each escaped."""
    import jinja2

    # An undefined name is an error. By default it prints as nothing, and a renamed value would vanish from the page.
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FunctionLoader(_file), undefined=jinja2.StrictUndefined
    )
    return environment.get_template(f"{template}.html.j2").render(**values)


def page(title: str, body: str) -> str:
    """A whole page around a body that `fill` made."""
    from markupsafe import Markup

    # Both are ours: what came from outside was escaped when the body was filled.
    return fill("page", title=title, style=Markup(_file("style.css")), body=Markup(body))


def fragment(body: str) -> str:
    """A body with its style, to embed in another page."""
    return f"<style>\n{_file('style.css')}</style>{body}"


def _file(name: str) -> str:
    return (resources.files(__package__) / "html" / name).read_text(encoding="utf-8")
