"""Graph dumps: the numbered files, their contents, and that no other file is written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import golden
import svg_compile
from svg_compile import OptionError, SvgError
from svg_compile.inspection import dump
from svg_compile.inspection.dump_run import dump_graphs
from toy import ToyVideoDiT, latents

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
OPTIONS = {"min_tokens": 0, "dense_layers": 0, "dense_steps": 0, "block": 8, "on_error": "raise"}


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def compile_and_dump(folder: Path, **options: object) -> Path:
    torch.compile(ToyVideoDiT(layers=1), backend="svg", options={**OPTIONS, "dump_dir": str(folder), **options})(
        latents()
    )
    (process,) = folder.iterdir()
    return process


def test_files_stand_in_pass_order_with_shapes_axes_decisions_and_code(tmp_path: Path) -> None:
    process = compile_and_dump(tmp_path)
    graph = process / "graph_000"
    stages = [re.sub(r"^\d\d_|\.txt$", "", name) for name in sorted(os.listdir(graph))]
    assert stages[:5] == ["dynamo", "token_axes", "find_attention", "rewrite_attention", "op_counts"]
    assert stages[5:] == ["inductor_000_sparse"]
    before, after = (graph / "00_dynamo.txt").read_text(), (graph / "03_rewrite_attention.txt").read_text()
    assert "scaled_dot_product_attention" in before
    assert "f32[1, 105, 32]" in before
    assert "torch.ops.svg.attention.default" in after
    assert "scaled_dot_product_attention" not in after
    assert "5*7*3" in (graph / "01_token_axes.txt").read_text()
    assert "sparse" in (graph / "02_find_attention.txt").read_text()
    counts = (graph / "04_op_counts.txt").read_text().split("\n")
    assert any(re.search(r"scaled_dot_product_attention +1 -> +0", line) for line in counts)
    assert any(re.search(r"svg\.attention.* +0 -> +1", line) for line in counts)


def test_the_index_lists_every_file_and_needs_no_network(tmp_path: Path) -> None:
    process = compile_and_dump(tmp_path)
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value or "" for key, value in attrs if key in ("href", "src"))

    text = (process / "index.html").read_text()
    Links().feed(text)
    files = [f"graph_000/{name}" for name in os.listdir(process / "graph_000")]
    # The icon is empty, lest a browser ask for one.
    assert sorted(links) == sorted(["data:,", *files])
    assert "how often each operator stood in the graph" in text
    assert "1 of 1 attentions rewritten" in text


def test_a_second_graph_goes_beside_the_first(tmp_path: Path) -> None:
    compile_and_dump(tmp_path)
    torch._dynamo.reset()
    process = compile_and_dump(tmp_path)
    assert sorted(path.name for path in process.iterdir()) == ["graph_000", "graph_001", "index.html"]


def test_both_variants_code_is_named_by_its_variant(tmp_path: Path) -> None:
    process = compile_and_dump(tmp_path, dense_steps=1)
    names = sorted(name for name in os.listdir(process / "graph_000") if "inductor" in name)
    assert [name[3:] for name in names] == ["inductor_000_dense.txt", "inductor_001_sparse.txt"]


def test_the_environment_asks_for_a_dump_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dump.DUMP_VARIABLE, str(tmp_path / "by_environment"))
    torch.compile(ToyVideoDiT(layers=1), backend="svg", options=OPTIONS)(latents())
    (process,) = (tmp_path / "by_environment").iterdir()
    assert (process / "index.html").exists()
    torch._dynamo.reset()
    # The option overrides the environment variable.
    compile_and_dump(tmp_path / "by_option")
    assert len(list((tmp_path / "by_environment").iterdir())) == 1


def test_code_from_a_cache_is_shown_or_said_to_be_missing(tmp_path: Path) -> None:
    compile_and_dump(tmp_path / "first")
    torch._dynamo.reset()
    process = compile_and_dump(tmp_path / "second")
    named = [name for name in os.listdir(process / "graph_000") if "inductor" in name]
    assert named or "came from a cache" in (process / "index.html").read_text()


def test_what_the_graphs_are_called_cannot_break_the_index(tmp_path: Path) -> None:
    process = dump.ProcessDump(tmp_path)
    graph = process.new_graph()
    graph.summary, graph.counts = "<script>alert(1)</script>", "a < b"
    graph.notes.append("<img src=x>")
    process.write_index()
    text = (tmp_path / "index.html").read_text()
    assert "<script>" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_printed_graphs(tmp_path: Path) -> None:
    # As Dynamo and the passes print them; the versions that the goldens were made with are pinned.
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    if torch.__version__.partition("+")[0] != pinned["torch"].strip():
        pytest.skip("the goldens are of another version of torch")
    graph = compile_and_dump(tmp_path) / "graph_000"
    for stage in ("01_token_axes", "02_find_attention", "03_rewrite_attention", "04_op_counts"):
        golden.check(f"dump_{stage}", (graph / f"{stage}.txt").read_text())


def test_folders_are_private_and_values_are_not_written(tmp_path: Path) -> None:
    process = compile_and_dump(tmp_path / "made")
    for folder in (process, process / "graph_000"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "tensor(" not in "".join(path.read_text() for path in process.rglob("*.txt") if "inductor" not in path.name)


def test_a_link_that_waits_at_a_files_name_is_not_followed(tmp_path: Path) -> None:
    process = dump.ProcessDump(tmp_path)
    graph = process.new_graph()
    (graph.folder / "00_dynamo.txt").symlink_to(tmp_path / "victim")
    graph.text("dynamo", "text")
    assert isinstance(process.error, FileExistsError)
    assert graph.files == []
    assert not (tmp_path / "victim").exists()


def compiled(folder: Path, frames: int, **options: object) -> torch.Tensor:
    # A failing pass would raise; a failing dump must not count as a failing pass.
    asked = {**OPTIONS, "dump_dir": str(folder), "strict": True, **options}
    model = torch.compile(ToyVideoDiT(layers=1), backend="svg", dynamic=False, options=asked)
    out: torch.Tensor = model(latents(frames=frames))
    return out


@pytest.mark.parametrize("removed", ["all", "process"])
def test_a_folder_that_was_removed_is_made_again(tmp_path: Path, removed: str) -> None:
    folder = tmp_path / "dumps"
    compiled(folder, 5)
    (process,) = folder.iterdir()
    shutil.rmtree(folder if removed == "all" else process)
    compiled(folder, 4)
    (again,) = folder.iterdir()
    assert again != process
    assert stat.S_IMODE(again.stat().st_mode) == 0o700
    assert sorted(path.name for path in again.iterdir()) == ["graph_000", "index.html"]


def test_a_folder_that_cannot_be_written_any_more_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "dumps"
    compiled(folder, 5)
    shutil.rmtree(folder)
    folder.write_text("")
    with pytest.warns(UserWarning, match="the graph dump is not complete: .*dumps") as warned:
        compiled(folder, 4)
    assert len([each for each in warned if "graph dump" in str(each.message)]) == 1
    assert svg_compile.explain(ToyVideoDiT(layers=1), latents(), options=OPTIONS).rewritten == 1


def test_a_disk_that_is_full_in_the_middle_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def full(path: Any, mode: str, **more: Any) -> Any:
        opened.append(path)
        if len(opened) > 1 and mode == "xb":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return open(path, mode, **more)

    monkeypatch.setattr(dump, "open", full, raising=False)
    expected = compiled(tmp_path / "none", 5, dump_dir=None)
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match="not complete: .*No space left on device: .*01_token_axes"):
        found = compiled(tmp_path / "dumps", 5)
    assert torch.equal(found, expected)


def test_a_dump_that_was_asked_for_by_itself_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump.tempfile, "mkstemp", lambda **_: (_ for _ in ()).throw(PermissionError("no entry")))
    with pytest.raises(SvgError, match="the dump is not complete: no entry"):
        dump_graphs(ToyVideoDiT(layers=1), (latents(),), {}, OPTIONS, str(tmp_path), code=False)


def test_stage_names_become_safe_file_names_and_big_files_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump, "MAX_FILE_BYTES", 100)
    graph = dump.ProcessDump(tmp_path).new_graph()
    graph.text("../../Etc/Passwd", "x" * 1000)
    (file,) = graph.folder.iterdir()
    assert file.name == "00_______etc_passwd.txt"
    assert file.read_text().startswith("x" * 100 + "\n[cut")
    assert file.stat().st_size < 200


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    below = str(tmp_path / "file" / "below")
    with pytest.raises(OptionError, match=r"option 'dump_dir': cannot make a folder in .*below"):
        dump.asked_for(below)
    monkeypatch.setenv(dump.DUMP_VARIABLE, below)
    with pytest.raises(OptionError, match=f"environment variable {dump.DUMP_VARIABLE}: cannot make a folder"):
        dump.asked_for(None)
