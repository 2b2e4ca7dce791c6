"""The pages in a real browser: nothing is written to its console, nothing is loaded, nothing sticks out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from test_report import full_report
from toy import ToyVideoDiT, latents


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except sync.Error as error:
            pytest.skip(f"no Chromium: playwright install chromium ({str(error).splitlines()[0]})")
        yield opened
        opened.close()


def visit(browser: Any, path: Path, scheme: str) -> None:
    """Open a page, with all of its details, and see that it is quiet, alone, and no wider than the window."""
    page = browser.new_page(viewport={"width": 1100, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= 1100
    assert page.evaluate("getComputedStyle(document.querySelector('.svg-page')).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)"
    )
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report(browser: Any, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "report.html").write_text(full_report().to_html(), encoding="utf-8")
    visit(browser, tmp_path / "report.html", scheme)


def test_the_fragment_for_notebooks(browser: Any, tmp_path: Path) -> None:
    body = f"<!doctype html><meta charset='utf-8'><body style='margin:0'>{full_report()._repr_html_()}"
    (tmp_path / "notebook.html").write_text(body, encoding="utf-8")
    visit(browser, tmp_path / "notebook.html", "light")


def test_the_dumps_index_and_its_links(browser: Any, tmp_path: Path) -> None:
    torch._dynamo.reset()
    options = {"min_tokens": 0, "dense_layers": 0, "dense_steps": 0, "block": 8, "dump_dir": str(tmp_path)}
    with torch.no_grad():
        torch.compile(ToyVideoDiT(layers=1), backend="svg", options=options)(latents())
    torch._dynamo.reset()
    (index,) = tmp_path.glob("*/index.html")
    visit(browser, index, "light")
    page = browser.new_page()
    page.goto(index.as_uri())
    links = page.eval_on_selector_all("a", "all => all.map(each => each.href)")
    assert len(links) == 6
    for link in links:
        assert page.goto(link) is not None
        assert page.inner_text("body").strip()
    page.close()
