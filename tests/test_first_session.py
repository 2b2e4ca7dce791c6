"""The script of a first session on a GPU: no result is lost, whatever its steps do; its steps can be run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parent / "gpu" / "first_session.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("first_session", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["first_session"] = module
    spec.loader.exec_module(module)
    return module


def stored(folder: Path) -> dict[str, Any]:
    session: dict[str, Any] = json.loads((folder / "session.json").read_text())
    return session


def python(script: ModuleType, name: str, code: str, seconds: float = 30.0, **more: Any) -> Any:
    return script.Step(name, ("-c", code, *(["{json}"] if "argv[1]" in code else [])), seconds, **more)


def test_a_step_that_fails_or_hangs_costs_only_itself(script: ModuleType, tmp_path: Path) -> None:
    hangs = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    part = "import sys, time; open(sys.argv[1], 'w').write('[7, '); "
    half = "import sys, time; open(sys.argv[1], 'w').write('[7]'); print('one turn', flush=True); time.sleep(60)"
    steps = [
        python(script, "a", "import sys; open(sys.argv[1], 'w').write('{\"speed\": 3}'); print('fine')"),
        python(script, "b", "raise SystemExit(3)"),
        python(script, "n", "import sys; print('no figures to', sys.argv[1])"),
        python(script, "c", hangs + "time.sleep(60)", seconds=2.0),
        python(script, "d", half, seconds=4.0),
        python(script, "e", "print(1)", after=("a", "b")),
        python(script, "f", "print(1)", after=("a",)),
        python(script, "h", part + "import os; os.abort()"),
        python(script, "g", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
    ]
    begun = time.monotonic()
    assert not script.run_session(steps, tmp_path, 120.0, {"commit": "abc"}, dry=False)
    assert time.monotonic() - begun < 30
    session = stored(tmp_path)
    assert session["commit"] == "abc"
    found = {step["name"]: step for step in session["steps"]}
    assert [found[name]["status"] for name in "abncdefhg"] == [
        "succeeded",
        "failed with 3",
        "failed: it stored no figures",
        "stopped: out of time",
        "stopped: out of time",
        "left out: b did not succeed",
        "succeeded",
        "failed with -6",
        "failed with -11",
    ]
    assert found["a"]["figures"] == {"00-a.json": {"speed": 3}}
    assert found["h"]["figures"] == {"07-h.json": "[7, "}
    assert found["a"]["output"] == "fine\n"
    assert found["d"]["figures"] == {"04-d.json": [7]}
    assert found["d"]["output"] == "one turn\n"


def test_the_file_tells_what_runs_while_it_runs(script: ModuleType, tmp_path: Path) -> None:
    copies = "import shutil, sys; from pathlib import Path; p = Path(sys.argv[1]).parent / 'session.json'; "
    step = python(
        script, "a", copies + f"shutil.copy(p, {str(tmp_path / 'then.txt')!r}); open(sys.argv[1], 'w').write('1')"
    )
    assert script.run_session([step, python(script, "b", "pass")], tmp_path, 60.0, {}, dry=False)
    then = json.loads((tmp_path / "then.txt").read_text())
    assert [step["status"] for step in then["steps"]] == ["running", "not begun"]


def test_steps_for_which_no_time_is_left_are_left_out(script: ModuleType, tmp_path: Path) -> None:
    steps = [python(script, "a", "pass", seconds=60.0), python(script, "b", "pass", seconds=60.0)]
    assert not script.run_session(steps, tmp_path, 1.0, {}, dry=False)
    assert [step["status"] for step in stored(tmp_path)["steps"]] == ["left out: no time"] * 2


def test_steps_come_after_those_that_they_need(script: ModuleType) -> None:
    names = [step.name for step in script.STEPS]
    assert len(set(names)) == len(names)
    for number, step in enumerate(script.STEPS):
        assert set(step.after) <= set(names[:number])
    # What is promised for the first ten minutes fits into them.
    until = names.index("forward") + 1
    assert sum(step.seconds for step in script.STEPS[:until] if not step.name.startswith("hopper")) <= 620


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_at_once_and_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--results", str(tmp_path / "none")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "torch sees no GPU here" in result.stderr
    assert "--dry-run" in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU tests would run")
def test_every_step_can_be_run(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--dry-run", "--seconds", "1500", "--results", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    session = stored(tmp_path)
    assert result.returncode == 0, [(step["name"], step["status"], step.get("output")) for step in session["steps"]]
    assert session["dry_run"]
    assert session["commit"]
    assert session["torch"] == torch.__version__
    figures = {step["name"]: step["figures"] for step in session["steps"]}
    assert figures["attention"]["01-attention.json"]["machine"]["device"] == "cpu"
    assert any(name.startswith("07-forward") for name in figures["forward"])
