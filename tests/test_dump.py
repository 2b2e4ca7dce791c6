"""Graph dumps: the numbered files, what stands in them, and that nothing is written where it should not be."""

from __future__ import annotations

import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import golden
from svg_compile import OptionError
from svg_compile.inspection import dump
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
    # The option is the nearer wish.
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
    graph = dump.ProcessDump(tmp_path).new_graph()
    (graph.folder / "00_dynamo.txt").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        graph.text("dynamo", "text")
    assert not (tmp_path / "victim").exists()


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


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="dump_dir"):
        dump.process_dump(str(tmp_path / "file" / "below"))
