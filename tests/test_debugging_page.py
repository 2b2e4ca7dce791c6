"""docs/debugging.md: its commands are run, its outputs compared, its links and its Python code tried."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import golden
import svg_compile
from svg_compile import Reason
from svg_compile.cli import main
from toy import ToyVideoDiT, by_hand, latents

TEXT = golden.PAGE.read_text()
BLOCKS = dict(re.findall(r"<!-- golden: (\w+) -->\n```text\n(?:\$ (svg-compile [^\n]*)\n)?", TEXT))


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.parametrize("name", [name for name, command in BLOCKS.items() if command])
def test_a_command_prints_what_the_page_shows(name: str) -> None:
    result = CliRunner().invoke(main, shlex.split(BLOCKS[name])[1:])
    assert result.exit_code == 0, result.output
    golden.check(name, result.stdout)


def test_every_block_has_a_golden() -> None:
    made_elsewhere = {"dump_01_token_axes", "dump_04_op_counts"}
    here = {"reasons", "warning_backend"}
    assert {name for name, command in BLOCKS.items() if not command} == made_elsewhere | here


def test_every_reason_is_listed() -> None:
    golden.check("reasons", "\n".join(f"{reason.text}\n    {reason.remedy}" for reason in Reason))


def test_the_warning_of_another_backend() -> None:
    with torch.no_grad(), pytest.warns(UserWarning, match="svg") as seen:
        torch.compile(ToyVideoDiT(layers=1, attend=by_hand), backend="svg", options={"min_tokens": 0})(latents())
    (message,) = (str(each.message) for each in seen if str(each.message).startswith("svg"))
    golden.check("warning_backend", message)


def test_python_code_runs() -> None:
    space: dict[str, Any] = {"svg_compile": svg_compile, "model": ToyVideoDiT(), "inputs": (latents(),)}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        with torch.no_grad():
            exec(code, space)


def test_links_within_the_page_lead_somewhere() -> None:
    titles = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", TEXT, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= titles
    for file in set(re.findall(r"\]\((\w[\w.\-]*\.md)\)", TEXT)):
        assert (golden.PAGE.parent / file).exists()
