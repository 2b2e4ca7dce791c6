"""Reports: every reason named with its line and remedy, as users meet it; tables, Markdown, JSON, HTML."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import golden
import models
import svg_compile
import test_find_attention as cases
from svg_compile import Reason, Report, Site, VideoLayout
from svg_compile.config import SvgConfig
from svg_compile.inspection.cost import cost_of
from svg_compile.inspection.explanation import GraphBreak
from svg_compile.inspection.render.terminal import print_report
from svg_compile.passes.attention_call import refused_call
from test_find_attention import Model, sdpa, video

LINE = inspect.getsourcelines(sdpa)[1] + 1


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def options_of(config: SvgConfig) -> dict[str, Any]:
    default = SvgConfig()
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: value for name, value in given.items() if value != getattr(default, name)}


def assert_named(report: Report, reason: Reason) -> None:
    """The report names the reason, the line of the model's code, and what to do, in all of its forms."""
    assert {site.reason for site in report.sites} == {reason}
    for site in report.sites:
        assert site.source == f"{cases.__file__}:{LINE}"
    for text in (str(report), report.to_markdown()):
        assert reason.text in text
        assert reason.remedy in text
        assert f"test_find_attention.py:{LINE}" in text
    for told in json.loads(report.to_json())["sites"]:
        assert (told["reason"], told["remedy"]) == (reason.name, reason.remedy)
        assert told["source"] == f"{cases.__file__}:{LINE}"
        assert told["stack"][-1] == told["source"]


@pytest.mark.parametrize("reason", cases.CASES, ids=lambda reason: reason.name)
def test_a_refusal_names_its_reason_its_line_and_a_remedy(reason: Reason) -> None:
    call, inputs, config = cases.CASES[reason]
    assert_named(svg_compile.explain(Model(call), *inputs, options=options_of(config)), reason)


def test_gradients() -> None:
    """A compile with gradients is refused; `explain` reports on inference, and says that it assumed it."""
    with torch.enable_grad():
        report = svg_compile.explain(Model(sdpa), video(), options={"min_tokens": 1})
        assert any("gradients are on here" in note for note in report.notes)
        torch._dynamo.reset()
        with pytest.warns(UserWarning, match="an operand needs gradients"):
            torch.compile(Model(sdpa), backend="svg", options={"min_tokens": 1, "dense_layers": 0})(video())


def test_higher_order() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cond(q.sum() > 0, lambda a, b, c: sdpa(a, b, c) * 1, lambda a, b, c: sdpa(a, b, c) * 2, (q, k, v))

    assert_named(svg_compile.explain(Model(attend), video(), options={"min_tokens": 1}), Reason.HIGHER_ORDER)


def test_sizes_that_a_child_graph_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    # Dynamo hands child graphs the symbols of what they are called with, so no traced model has this either.
    module = sys.modules["svg_compile.passes.find_attention"]
    monkeypatch.setattr(module, "computable", lambda graph, sizes: False)
    assert_named(svg_compile.explain(Model(sdpa), video(), options={"min_tokens": 1}), Reason.SYMBOLIC)


def test_a_scale_that_is_no_number() -> None:
    # Dynamo breaks the graph at a scale that depends on data, so no traced model has one: the refusal, in a report.
    query = torch.randn(2, 2, 48, 4)
    call = dict.fromkeys(("query", "key", "value"), query) | {"attn_mask": None, "dropout_p": 0.0, "is_causal": False}
    refusal = refused_call(call | {"enable_gqa": False, "scale": torch.tensor(0.5)}, query, SvgConfig())
    assert refusal is not None
    site = Site(False, refusal[0], "layers.0", None, 2, 2, 4, 48, 48, source=f"{cases.__file__}:{LINE}")
    assert_named(Report((dataclasses.replace(site, stack=(site.source,)),)), Reason.SCALE)


def test_every_reason_is_tested_here() -> None:
    elsewhere = {Reason.GRADIENT, Reason.HIGHER_ORDER, Reason.SYMBOLIC, Reason.SCALE}
    elsewhere |= {Reason.BETWEEN_GRAPHS, Reason.UNPROVEN_BETWEEN_GRAPHS}
    assert set(cases.CASES) | elsewhere == set(Reason)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("wan", "transformer_wan.py"),
        ("hunyuan_video", "transformer_hunyuan_video.py"),
        ("cogvideox_5b", "cogvideox_transformer_3d.py"),
        ("ltx_video", "transformer_ltx.py"),
    ],
)
def test_the_source_is_a_line_of_the_models_own_file(name: str, file: str) -> None:
    case = models.case(name)
    report = svg_compile.explain(case.build(), **case.inputs(1, case.grid), options={"min_tokens": 0})
    assert {site.source.rpartition("/")[2].partition(":")[0] for site in report.sites} == {file}
    assert all(len(site.stack) > 2 for site in report.sites)


def site(layer: str, **more: Any) -> Site:
    layout = VideoLayout(5, 7, 3, block=8)
    given = {"rewritten": True, "reason": None, "layout": layout, "batch": 1, "heads": 2, "head_dim": 16}
    return Site(**{**given, "tokens": 105, "key_tokens": 105, "layer": layer, "sequence": "[5*7*3]", **more})


def full_report() -> Report:
    dense = {"rewritten": False, "layout": None}
    sites = (
        site("blocks.0.attn1", **dense, reason=Reason.DENSE_LAYER, source="/m/model.py:7"),
        *(site(f"blocks.{index}.attn1", source="/m/model.py:7") for index in (1, 2, 3, 7)),
        site("blocks.0.attn2", **dense, reason=Reason.CROSS_ATTENTION, key_tokens=11, source="/m/model.py:9"),
        site("a.0.b.0", **dense, reason=Reason.MASK, detail="float32 [1, 1, 105, 105] | <b>"),
        site("a.1.b.1", **dense, reason=Reason.MASK, detail="float32 [1, 1, 105, 105] | <b>"),
        site("", **dense, reason=Reason.NOT_VIDEO, sequence="[105]", calls=3),
    )
    config = SvgConfig(density=((0.0, 0.6), (0.5, 0.3)), block=8)
    breaks = (GraphBreak("Data-dependent branching", "/m/model.py:3", "It branches.", "Use torch.where.", 2),)
    return Report(sites, 2, ("a note with <b>tags</b>",), breaks, cost_of(sites, 90_000_000, config))


def test_the_table() -> None:
    golden.check("report_table", str(full_report()))


def test_markdown() -> None:
    text = full_report().to_markdown()
    golden.check("report_markdown", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {7}


def test_json_holds_every_fact() -> None:
    report = full_report()
    told = json.loads(report.to_json())
    assert told["format"] == 1
    assert (told["rewritten"], told["attentions"], told["graphs"]) == (4, 9, 2)
    assert told["sites"][1]["layout"]["frames"] == 5
    assert told["sites"][1]["flops"]["spatial"][0]["density"] > told["sites"][1]["flops"]["spatial"][1]["density"]
    assert told["sites"][5]["reason"] == "CROSS_ATTENTION"
    assert told["graph_breaks"][0]["count"] == 2
    assert [stage["density_asked"] for stage in told["cost"]["sparse_steps"]] == [0.6, 0.3]
    assert told["notes"] == ["a note with <b>tags</b>"]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("render", [Report.to_html, Report._repr_html_])
def test_html_loads_nothing_and_escapes_what_it_shows(render: Callable[[Report], str]) -> None:
    page = Page()
    page.feed(render(full_report()))
    assert set(page.loads) <= {"data:,"}
    assert not {"script", "b>tags"} & set(page.tags)
    assert "a note with <b>tags</b>" in page.text
    for expected in (
        "4 of 9",
        "blocks.{1-3,7}.attn1 (4x)",
        Reason.MASK.remedy,
        "Data-dependent branching",
        "5 x 7 x 3",
    ):
        assert expected in page.text
    assert ("html" in page.tags) is (render is Report.to_html)


def test_a_report_of_nothing() -> None:
    empty = Report()
    assert str(empty) == "0 of 0 attentions rewritten, 1 graph"
    assert json.loads(empty.to_json())["sites"] == []
    assert "0 of 0" in empty.to_html()


def test_a_terminal_gets_colours_and_its_own_width_and_a_pipe_gets_the_text() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100, color_system="truecolor")
    print_report(full_report(), terminal)
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert plain != shown
    assert max(map(len, plain.splitlines())) <= 100
    assert "blocks.{1-3,7}.attn1 (4x)" in plain
    assert "What to do" in plain
    pipe = Console(file=io.StringIO())
    print_report(full_report(), pipe)
    assert pipe.file.getvalue() == str(full_report()) + "\n"  # type: ignore[attr-defined]
