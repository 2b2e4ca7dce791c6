"""The command line: what it prints, the files that it writes, its exit codes, and its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import golden
from svg_compile import SvgError
from svg_compile.cli import main
from svg_compile.inspection.recording.entry import Entry
from svg_compile.inspection.recording.recorded import Recording

TESTS = Path(__file__).resolve().parent
BUILDER = """
from toy import ToyVideoDiT, latents
def build():
    return ToyVideoDiT(layers=3), (latents(),), {}
def wrong():
    return ToyVideoDiT()
NUMBER = 3
def raises():
    return 1 / 0
def exits():
    raise SystemExit(3)
def needs(size):
    return size
def arguments():
    return ToyVideoDiT(), 3, {}
def shape():
    return ToyVideoDiT(), (latents()[0, 0],), {}
"""
TINY = ("num_attention_heads=2", "attention_head_dim=16", "num_layers=2", "ffn_dim=48", "text_dim=12", "freq_dim=16")
SIZE = ("--latents", "5x14x6", "--text", "11")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.py").write_text(BUILDER)
    (tmp_path / "syntax.py").write_text("def (")
    (tmp_path / "binary.py").write_bytes(b"\x00\xff")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "part.json").write_text('{"benchmark": "attention"}')
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_a_function_is_explained() -> None:
    result = run("explain", "tiny.py:build", "-o", "min_tokens=0", "-o", "block=8")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("2 of 3 attentions rewritten, 1 graph\n")
    assert "toy.py:" in result.stdout


def test_a_diffusers_class_is_explained_at_full_size_without_weights() -> None:
    result = run("explain", "WanTransformer3DModel", "num_layers=3")
    assert result.exit_code == 0, result.output
    golden.check("explain_wan", result.stdout)


def test_a_configuration_file_and_settings_go_together(tmp_path: Path) -> None:
    config = {"_class_name": "WanTransformer3DModel", "num_layers": 7, "num_attention_heads": 2, "ffn_dim": 48}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run("explain", "WanTransformer3DModel", "num_layers=1", "--config", "config.json", *SIZE, "--json", "-")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["attentions"], told["sites"][0]["heads"], told["sites"][0]["tokens"]) == (2, 2, 105)
    assert told["sites"][1]["key_tokens"] == 11


def test_reports_are_written_in_every_form(tmp_path: Path) -> None:
    forms = {"--json": "r.json", "--html": "r.html", "--markdown": "r.md"}
    result = run("explain", "tiny.py:build", *(part for pair in forms.items() for part in pair))
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "r.json").read_text())["attentions"] == 3
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "r.md").read_text().startswith("**0 of 3 attentions rewritten")
    assert "fewer tokens than min_tokens" in result.stdout


def test_check_tells_by_its_exit_code() -> None:
    assert run("explain", "tiny.py:build", "--check").exit_code == 3
    assert run("explain", "tiny.py:build", "--check", "-o", "min_tokens=0", "-o", "block=8").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("explain", "Wan"), 1, "Did you mean WanTransformer3DModel or WanVACETransformer3DModel?"),
        (("explain", "torch"), 1, "Known: WanTransformer3DModel,"),
        (("explain", "WanTransformer3DModel", "num_layer=3"), 1, "no setting 'num_layer'. Did you mean 'num_layers'?"),
        (("explain", "WanTransformer3DModel", "num_layers"), 2, "expected key=value, got 'num_layers'"),
        (("explain", "WanTransformer3DModel", "num_layers=x"), 1, "cannot be built with these settings: TypeError"),
        (("explain", "WanTransformer3DModel", "--latents", "3x4"), 2, "such as 21x60x104, got '3x4'"),
        (("explain", "tiny.py:build", "-o", "densty=1"), 2, "unknown option 'densty'. Did you mean 'density'?"),
        (("explain", "tiny.py:build", "num_layers=1"), 2, "a function takes none"),
        (("explain", "tiny.py:other"), 1, "tiny.py has no 'other'"),
        (("explain", "tiny.py:wrong"), 1, "must return (model, args, kwargs), got ToyVideoDiT"),
        (("explain", "none.py:build"), 1, "there is no file none.py"),
        (("explain", "none:build"), 1, "cannot import none"),
        (("explain",), 2, "Missing argument 'TARGET'"),
        (("masks", "3x4"), 2, "got '3x4'"),
        (("masks", "3x4x5", "--block", "3"), 2, "power of two"),
        (("masks", "3x4x5", "--density", "0"), 2, "not in the range 0<x<=1"),
        (("masks", "3x4x5", "--density", "nan"), 2, "nan is no number"),
        (("masks", "121x108000x192000"), 2, "not in pixels"),
        (("masks", "3x4x5", "--out", "m.xyz"), 2, "the ending says the format, one of"),
        (("masks", "3x4x5", "--out", "m"), 2, "the ending says the format, one of"),
        (("masks", "3x4x5", "--out", "sub"), 2, "the ending says the format, one of"),
        (("explain", "tiny.py:build", "-o", "density=2"), 2, "option 'density': expected a number above 0"),
        (("explain", "tiny.py:build", "--json", "-", "--html", "-"), 2, "only one report"),
        (("explain", "tiny.py:build", "--json", "none/r.json"), 1, "there is no folder"),
        (("explain", "tiny.py:build", "--html", "sub"), 1, "it is a folder"),
        (("explain", "tiny.py:raises"), 1, "tiny.py:raises failed: ZeroDivisionError: division by zero"),
        (("explain", "tiny.py:exits"), 1, "tiny.py:exits failed: SystemExit: 3"),
        (("explain", "tiny.py:needs"), 1, "missing 1 required positional argument"),
        (("explain", "tiny.py:NUMBER"), 1, "must be a function"),
        (("explain", "tiny.py:arguments"), 1, "must return (model, args, kwargs), got (ToyVideoDiT, int, dict)"),
        (("explain", "tiny.py:shape"), 1, "tiny.py:shape cannot be traced"),
        (("explain", "old[/x]/m.py:build"), 1, "there is no file old[/x]/m.py"),
        (("explain", ":build"), 1, "Empty module name"),
        (("explain", "syntax.py:build"), 1, "SyntaxError"),
        (("explain", "binary.py:build"), 1, "null bytes"),
        (("explain", "sub:build"), 1, "has no 'build'"),
        (("explain", "WanTransformer3DModel", "--config", "list.json"), 1, "expected a JSON object, got list"),
        (("explain", "WanTransformer3DModel", "--config", "binary.py"), 1, "is not JSON"),
        (("explain", "WanTransformer3DModel", "--config", "sub"), 2, "is a directory"),
        (("dump", "tiny.py:build", "--out", "tiny.py"), 2, "is a file"),
        (("dump", "tiny.py:build", "--out", "tiny.py/below"), 1, "--out: cannot make a folder"),
        (("plot", "tiny.py"), 1, "there is no tiny.py.json"),
        (("plot", "list.json"), 1, "there is no list.npz"),
        (("bench", "attention", "--device", "foo"), 2, "--device"),
        (("bench", "attention", "--device", "meta"), 2, "expected cuda or cpu"),
        (("bench", "attention", "--peer", "nonsense"), 2, "nonsense"),
        (("bench", "attention", "--grid", "3x4"), 2, "got '3x4'"),
        (("bench", "forward", "--mode", "nonsense"), 2, "nonsense"),
        (("bench", "page", "list.json", "--out", "p.md"), 1, "holds no result"),
        (("bench", "page", "part.json", "--out", "p.md"), 1, "is damaged, or a result of another version"),
        (("bench", "page", "part.json", "--out", "tiny.py/p.md"), 1, "tiny.py"),
        (("masks", "3x4x5", "--out", "none/m.png"), 1, "there is no folder"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else None,
)
def test_errors_say_what_to_do_without_a_traceback(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_file_may_be_called_as_a_module_of_python(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(BUILDER)
    assert run("explain", "json.py:build").exit_code == 0
    assert sys.modules["json"] is json


def test_a_traceback_is_shown_where_it_is_asked_for() -> None:
    result = run("--traceback", "explain", "tiny.py:raises")
    assert isinstance(result.exception, SvgError)
    assert isinstance(result.exception.__cause__, ZeroDivisionError)


def test_names_that_the_terminal_cannot_show_are_replaced(tmp_path: Path) -> None:
    model = (
        BUILDER
        + """
def build():
    import torch
    class Model(torch.nn.Module):
        def forward(self, x):
            return getattr(self, "\\u4e2d")(x)
    model = Model()
    model.add_module("\\u4e2d", ToyVideoDiT(layers=1))
    return model, (latents(),), {}
"""
    )
    (tmp_path / "named.py").write_text(model)
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(TESTS)}
    script = Path(sys.executable).parent / "svg-compile"
    done = subprocess.run([script, "explain", "named.py:build"], env=plain, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_that_cannot_be_traced_is_told_of_the_switch_for_weights(tmp_path: Path) -> None:
    code = "import torch\ndef fails(x):\n    return x @ x\ndef build():\n    return fails, (torch.ones(2, 3),), {}\n"
    (tmp_path / "broken.py").write_text(code)
    result = run("explain", "broken.py:build")
    assert result.exit_code == 1
    assert "broken.py:build cannot be traced" in result.output
    assert "--weights" in result.output


def test_dump_writes_graphs_of_a_model_without_weights(tmp_path: Path) -> None:
    options = ("-o", "min_tokens=0", "-o", "block=8", "-o", "dense_layers=0")
    result = run("dump", "WanTransformer3DModel", *TINY, *SIZE, *options, "--out", "d")
    assert result.exit_code == 0, result.output
    index = Path(result.stdout.strip())
    assert index.name == "index.html"
    assert "2 of 4 attentions rewritten" in index.read_text()
    names = sorted(os.listdir(index.parent / "graph_000"))
    assert names[:2] == ["00_dynamo.txt", "01_token_axes.txt"]
    assert not any("inductor" in name for name in names)


def test_dump_shows_inductors_code_when_asked() -> None:
    result = run("dump", "tiny.py:build", "-o", "min_tokens=0", "-o", "block=8", "--out", "d", "--code")
    assert result.exit_code == 0, result.output
    graph = Path(result.stdout.strip()).parent / "graph_000"
    (code,) = (path for path in graph.iterdir() if "inductor" in path.name)
    assert "torch.ops.svg.attention" in code.read_text()


def test_masks_are_drawn(tmp_path: Path) -> None:
    result = run("masks", "5x7x3", "--text", "11", "--block", "8", "--out", "m.png")
    assert (result.exit_code, result.stdout) == (0, "m.png\n")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_a_recording_is_drawn(tmp_path: Path) -> None:
    plan = torch.tensor([[0, 1], [1, 2]], dtype=torch.int32)[None]
    entries = [
        Entry("model", 0, step, 4, 0, layer, plan[..., 0], plan[..., 1], torch.rand(1, 2, 2), None)
        for step in range(2, 4)
        for layer in ("blocks.0.attn1", "blocks.1.attn1")
    ]
    Recording(entries).save(tmp_path / "plans.npz")
    result = run("plot", "plans.npz", "--layer", "blocks.1.attn1")
    assert result.exit_code == 0, result.output
    assert "blocks.1.attn1" in result.stdout
    assert "blocks.0.attn1" not in result.stdout
    for name in ("plans_kinds.png", "plans_margins.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "no entry of the recording" in run("plot", "plans.npz", "--layer", "blocks.7").stderr
    (tmp_path / "other.npz").write_bytes(b"nothing")
    assert run("plot", "other.npz").exit_code == 1


@pytest.mark.parametrize(
    "command", ["", "explain", "dump", "masks", "plot", "bench", "bench attention", "bench block", "bench forward"]
)
def test_help_speaks_of_every_command(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    golden.check("_".join(["help", *command.split()]), result.output.replace("main", "svg-compile", 1))


def test_the_entry_point_is_installed() -> None:
    script = Path(sys.executable).parent / "svg-compile"
    told = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("svg-compile, version ")
