"""A newcomer's first programs: the README's code and output, quickstart.py and record_plans.py, at small sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from example import example
from lowering import kind, watch
from svg_compile.cli import main as command_line
from toy import ToyVideoDiT

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
video_model = example("video_model")

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def without_line_numbers(text: str) -> str:
    """Line numbers, and so the width of a column, differ between versions of diffusers."""
    return re.sub(r" +", " ", re.sub(r"\.py:\d+", ".py", text)).strip()


def test_the_code_in_the_readme_runs_and_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    one_line, use = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    space: dict[str, Any] = {"torch": torch, "transformer": ToyVideoDiT()}
    exec(one_line, space)
    assert space["transformer"] is not None
    space = {}
    exec(use, space)
    shown = README.partition("`explain` prints")[2].partition("```\n")[2].partition("```")[0]
    assert without_line_numbers(capsys.readouterr().out) == without_line_numbers(shown)
    assert space["video"].shape == space["latents"].shape
    # The run agrees with `explain`: one of its four attentions is sparse, in a step after the dense ones.
    assert space["video"].isfinite().all()


def test_the_commands_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert {name for name in re.findall(r"^make (\S+)", README, re.M) if f"\n{name}:" not in makefile} == set()
    commands = set(re.findall(r"^svg-compile (\w+)", README, re.M))
    assert commands
    assert commands <= set(command_line.commands)  # type: ignore[attr-defined]


def test_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--frames", "8", "--height", "16", "--width", "16", "--layers", "1", "--heads", "1"]
    example("quickstart").main([*small, "--repeat", "1"])
    printed = capsys.readouterr().out
    assert "1 of 2 attentions rewritten" in printed
    (difference,) = re.findall(r"difference +(\S+) relative", printed)
    # Sparse: not dense attention by another name, and not noise.
    assert 1e-4 < float(difference) < 0.5


def test_record_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    video_model.save_weights(video_model.build_model(layers=2, heads=2, ffn=32), tmp_path / "weights")
    flags = ["--frames", "8", "--size", "32", "--steps", "4", "--min-tokens", "64", "--density", "0.5"]
    example("record_plans").main([*flags, "--weights", str(tmp_path / "weights"), "--out", str(tmp_path / "out")])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"kinds.png", "densities.png", "margins.png", "attention.png", "run.npz", "run.json"}
    printed = capsys.readouterr().out
    assert "4 forwards in 1 run of 4 steps, 1 of them dense" in printed
    assert "2 layers" in printed


SMALL = ["--size", "32", "--frames", "6", "--steps", "4"]


@pytest.mark.parametrize("name", ["small_card", "large_card"])
def test_recipes_for_one_card(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "small_card":
        pytest.importorskip("torchao")
    watch(monkeypatch, kind)
    difference, sparse = example(name).main(SMALL)
    # 6 blocks, 3 of 4 steps; the cache may leave blocks out. Sparse, and the same video.
    assert sparse == 18 if name == "small_card" else 3 <= sparse <= 18
    assert 1e-4 < difference < 0.3


@pytest.mark.slow
def test_recipe_for_several_gpus() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "examples" / "several_gpus.py"), *SMALL]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"(\d+) sparse forwards of 24; the video differs by (\S+)", done.stdout)
    assert len(found) == 2
    assert found[0] == found[1]
    assert found[0][0] == "18"
    assert 1e-4 < float(found[0][1]) < 0.3
