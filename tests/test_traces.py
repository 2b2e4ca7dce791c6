"""The compiler's own tools with this backend: logs, structured traces and tlparse, debug folders, the minifier.

Each case is a process of its own, as these tools are switched on by the environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PROGRAM = """
import torch
from toy import ToyVideoDiT, latents
options = {"min_tokens": 0, "block": 8, "dense_layers": 0, "dense_steps": 0, "on_error": "raise"}
with torch.no_grad():
    torch.compile(ToyVideoDiT(layers=1), backend="svg", options=options)(latents())
"""
# Inductor is told to fail at a relu, as its own tests do.
FAILING = """
import torch, torch._inductor.config
from toy import ToyVideoDiT, latents
torch._inductor.config.cpp.inject_relu_bug_TESTING_ONLY = "compile_error"
class Failing(ToyVideoDiT):
    def forward(self, x):
        return super().forward(x).relu()
with torch.no_grad():
    torch.compile(Failing(layers=1), backend="svg")(latents(frames=20, height=11, width=10))
"""


def run(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder of its own; Inductor makes its code anew, as tools show nothing of cached graphs."""
    more = {"PYTHONPATH": str(TESTS), "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=folder,
        env={**os.environ, **more, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def tlparse() -> str:
    script = shutil.which("tlparse", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if script is None:
        pytest.skip("tlparse is not installed: pip install tlparse")
    return script


def test_logs_tell_the_decisions(tmp_path: Path) -> None:
    result = run(PROGRAM, tmp_path, TORCH_LOGS="+svg_compile")
    assert result.returncode == 0, result.stderr
    assert "1 of 1 attentions rewritten" in result.stderr
    assert "toy.py:" in result.stderr


def test_tlparse_shows_the_decisions_the_graph_and_where_its_ops_come_from(tmp_path: Path, tlparse: str) -> None:
    result = run(PROGRAM, tmp_path, TORCH_TRACE=str(tmp_path / "trace"), INDUCTOR_PROVENANCE="1")
    assert result.returncode == 0, result.stderr
    (log,) = (tmp_path / "trace").iterdir()
    out = tmp_path / "out"
    subprocess.run([tlparse, str(log), "-o", str(out), "--no-browser"], check=True, capture_output=True, timeout=120)
    index = (out / "index.html").read_text()
    assert "svg_decisions" in index
    assert "svg_rewritten_graph" in index
    (decisions,) = out.glob("*/svg_decisions_*.txt")
    assert "1 of 1 attentions rewritten" in decisions.read_text()
    assert "[5*7*3]" in decisions.read_text()
    (graph,) = out.glob("*/svg_rewritten_graph_*.txt")
    assert "torch.ops.svg.attention.default" in graph.read_text()
    # Each call in Inductor's code carries a handle, and this file leads from the handle to the model's source lines.
    (stacks,) = out.glob("*/inductor_provenance_tracking_kernel_stack_traces_*.json")
    lines = {handle: str(told) for handle, told in json.loads(stacks.read_text()).items() if "svg." in handle}
    assert len(lines) == 3
    assert all("toy.py" in told and "self.attend(q, k, v)" in told for told in lines.values())
    code = "".join(path.read_text() for path in out.glob("payloads/*.txt"))
    assert all(f"[Provenance debug handles] {handle}" in code for handle in lines)


@pytest.mark.slow
def test_compile_debug_writes_its_folder_with_source_lines(tmp_path: Path) -> None:
    result = run(PROGRAM, tmp_path, TORCH_COMPILE_DEBUG="1")
    assert result.returncode == 0, result.stderr
    (code,) = tmp_path.glob("torch_compile_debug/*/torchinductor/*/output_code.py")
    assert "torch.ops.svg.attention" in code.read_text()
    (readable,) = tmp_path.glob("torch_compile_debug/*/torchinductor/*/fx_graph_readable.py")
    before, _, _ = readable.read_text().partition("torch.ops.svg.profile")
    assert "toy.py" in before.rpartition("# File: ")[2]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minifier")
    environment = {"TORCHDYNAMO_REPRO_AFTER": "dynamo", "TORCH_COMPILE_DEBUG_DIR": str(folder)}
    result = run(FAILING, folder, **environment)
    assert result.returncode != 0
    (path,) = folder.glob("torch_compile_debug/*/minifier/minifier_launcher.py")
    return path


def test_a_compile_that_fails_leaves_a_minifier_for_this_backend(launcher: Path) -> None:
    text = launcher.read_text()
    assert "backend='svg'" in text
    assert "scaled_dot_product_attention" in text


@pytest.mark.slow
def test_the_minifier_leaves_what_fails_alone(launcher: Path) -> None:
    # Its exit code says nothing: it is that of the last attempt.
    run(launcher.read_text(), launcher.parent)
    (repro,) = launcher.parents[3].glob("torch_compile_debug/**/repro.py")
    text = repro.read_text()
    assert "backend='svg'" in text
    assert "relu" in text
    assert "scaled_dot_product_attention" not in text
