"""`svg-compile bench`: what it counts is right, what it compares is equal, and what it stores becomes a page."""

from __future__ import annotations

import inspect
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from svg_compile.bench import attention, page, parts, peers, transformer, work
from svg_compile.bench.attention import Request, measure
from svg_compile.bench.tables import table, title
from svg_compile.bench.timing import Times, interleaved
from svg_compile.cli import main
from svg_compile.decisions import Site
from svg_compile.inspection.tracing import explain
from svg_compile.kernels.reference import attention_mask
from svg_compile.kernels.triton import profile as triton_profile
from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.mask import band_rank
from svg_compile.targets import Request as ModelRequest
from svg_compile.targets import load
from svg_compile.zoo import MODELS, PRESETS, Shape

CPU = torch.device("cpu")
TINY = Shape("tiny", VideoLayout(5, 6, 7, text_len=9, block=16), 3, 16)
ARGUMENTS = ["--grid", "4x8x8", "--text", "20", "--heads", "2", "--head-dim", "16", "--repeats", "2", "--device", "cpu"]


def query_tiles(layout: VideoLayout, kind: HeadKind, rows: int) -> list[torch.Tensor]:
    """Positions of each tile's queries: text, frame 0 and the body in the head's order, cut apart."""
    video = torch.arange(layout.video)
    rank = band_rank(video // layout.area, video % layout.area, layout.frames, layout.area, int(kind))
    body = layout.video_start + layout.area + torch.argsort(rank[layout.area :])
    text = layout.text_start + torch.arange(layout.text_len)
    sink = layout.video_start + torch.arange(layout.area)
    return [tile for part in (text, sink, body) for tile in part.split(rows) if len(tile)]


@given(
    frames=st.integers(1, 6), height=st.integers(1, 6), width=st.integers(1, 6), text=st.integers(0, 9),
    first=st.booleans(), block=st.sampled_from([8, 16]), half_width=st.integers(0, 6),
    kind=st.sampled_from([HeadKind.SPATIAL, HeadKind.TEMPORAL]), rows=st.sampled_from([4, 8, 16]),
)  # fmt: skip
def test_work_counts_the_masks_pairs_and_the_tiles_that_hold_them(
    frames: int, height: int, width: int, text: int, first: bool, block: int, half_width: int, kind: HeadKind, rows: int
) -> None:
    layout = VideoLayout(frames, height, width, text, first, block)
    shape = Shape("drawn", layout, 1, 16)
    mask = attention_mask(layout, half_width, kind)
    assert work.mask_pairs(shape, [kind], [half_width]) == pytest.approx(int(mask.sum()))
    seen = [int(mask[tile].any(0).sum()) for tile in query_tiles(layout, kind, rows)]
    expected = sum(rows * 4 * math.ceil(keys / 4) for keys in seen)
    # Frame 0's queries of a temporal head are frames - 1 ranks apart, so their tiles' blocks can leave none out here.
    assert work.tile_pairs(shape, [kind], [half_width], rows, 4) == expected


def test_dense_work_is_the_formula_of_everyone() -> None:
    shape = Shape("square", VideoLayout(4, 8, 8), 2, 16, batch=3)
    pairs = work.mask_pairs(shape, [HeadKind.DENSE] * 2, [0, 0])
    assert work.flops(shape, pairs) == 4 * 3 * 2 * 256**2 * 16
    assert work.tile_pairs(shape, [HeadKind.DENSE] * 2, [0, 0]) == pairs
    assert work.least_bytes(shape, 2) == 4 * 3 * 2 * 256 * 16 * 2


def test_times_tell_medians_and_ratios_of_turns() -> None:
    fast, slow = Times((1.0, 2.0, 3.0, 4.0, 5.0)), Times((2.0, 6.0, 6.0, 12.0, 10.0))
    assert fast.summary() == {"median": 3.0, "p20": pytest.approx(1.8), "p80": pytest.approx(4.2)}
    assert fast.speedup_over(slow) == 2.0


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = interleaved(calls, 3, CPU)
    assert order == list("ab") * 4
    assert all(len(each.ms) == 3 for each in times.values())


def test_what_is_known_is_kept_after_each_turn_and_time_ends_with_a_whole_one() -> None:
    kept: list[int] = []
    calls = {name: lambda: time.sleep(0.01) for name in "ab"}
    times = interleaved(calls, 50, CPU, seconds=0.05, keep=lambda times: kept.append(len(times["b"].ms)))
    assert kept == list(range(1, len(kept) + 1))
    assert len(times["a"].ms) == len(times["b"].ms) == kept[-1] < 50


def test_a_run_that_is_stopped_leaves_its_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = tmp_path / "figures.json"

    readings = iter([None])

    def clocks(*_: object) -> None:
        # The second reading comes after the last turn.
        for reading in readings:
            return reading
        raise KeyboardInterrupt

    monkeypatch.setattr(attention, "clocks", clocks)
    run = CliRunner().invoke(main, ["bench", "attention", *ARGUMENTS, "--peer", "sdpa", "--json", str(stored)])
    assert run.exit_code != 0
    result = json.loads(stored.read_text())
    assert result["repeats"] == 2
    assert title(result)


def test_all_that_runs_here_computes_the_same_attention() -> None:
    result = measure(Request(TINY, torch.bfloat16, CPU, densities=(0.5, 0.7), repeats=1))
    found = {(row["peer"], row["kind"]) for row in result["rows"]}
    kinds = ("spatial", "temporal", "mixed")
    expected = {("sdpa", "dense"), *((peer, "profile") for peer in ("profile", "fit", "repair", "layer"))} | {
        (peer, kind) for peer in ("svg", "flex") for kind in kinds
    }
    assert found == expected | {("transpose", "temporal"), ("transpose", "mixed")}
    assert not any("wrong" in reason for reason in result["skipped"].values())
    for row in result["rows"]:
        if row["kind"] in kinds:
            assert 0 < row["difference"] < 0.01
            assert row["efficiency"] == pytest.approx(row["speedup"] * row["density"])
            assert row["tflops_pairs"] > 0
            # FlexAttention's tiles lie otherwise; there is no count of them to divide by.
            assert (row["tflops_tiles"] is None) == (row["peer"] == "flex")
            assert row["tflops_tiles"] is None or row["tflops_tiles"] > row["tflops_pairs"]
    assert {row["density_asked"] for row in result["rows"] if row["peer"] == "svg"} == {0.5, 0.7}
    assert json.loads(json.dumps(result)) == json.loads(json.dumps(result))


def test_a_peer_that_computes_something_else_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def dense(problem: peers.Problem) -> object:
        return peers.DENSE["sdpa"](problem)

    monkeypatch.setitem(peers.SPARSE, "flex", dense)
    result = measure(Request(TINY, torch.float32, CPU, kinds=("mixed",), peers=("sdpa", "svg", "flex"), repeats=1))
    assert "wrong by" in result["skipped"]["flex mixed"]
    assert {row["peer"] for row in result["rows"]} == {"sdpa", "svg", "profile", "fit", "repair", "layer"}


def test_from_the_command_line_to_a_page(tmp_path: Path) -> None:
    stored, page = tmp_path / "figures.json", tmp_path / "page" / "cpu.md"
    arguments = [
        *ARGUMENTS,
        "--density",
        "0.6",
        "--density",
        "0.8",
        "--kind",
        "mixed",
        "--peer",
        "sdpa",
        "--peer",
        "svg",
    ]
    run = CliRunner().invoke(main, ["bench", "attention", *arguments, "--json", str(stored)])
    assert run.exit_code == 0, run.output
    result = json.loads(stored.read_text())
    assert title(result) in run.output
    assert "svg::attention" in run.output
    assert result["machine"]["torch"] == torch.__version__
    run = CliRunner().invoke(main, ["bench", "page", str(stored), "--out", str(page), "--heading", "On a CPU"])
    assert run.exit_code == 0, run.output
    text = page.read_text()
    assert text.startswith("# On a CPU\n")
    assert table(result).markdown() in text
    assert (page.parent / "cpu_figures.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        # 2: the arguments are not of the form that is asked for; 1: what they lead to cannot be done.
        (["attention", "--peer", "fast"], 2, "no peer 'fast'. Known: cudnn"),
        (["attention", *ARGUMENTS, "--peer", "svg"], 1, "no dense attention to compare with"),
        (["attention", "--grid", "4x8"], 2, "expected frames x height x width"),
        (["page", __file__, "--out", "page.md"], 1, "cannot be read as JSON"),
    ],
)
def test_bad_input_says_what_to_do(arguments: list[str], code: int, message: str) -> None:
    run = CliRunner().invoke(main, ["bench", *arguments])
    assert run.exit_code == code
    assert message in run.stderr


def only_site(cls: str, request: ModelRequest) -> tuple[Site, torch.nn.Module]:
    """The one attention of a model that is made sparse, and the model."""
    target = load(cls, request)
    with torch.no_grad():
        report = explain(target.model, *target.args, options={"dense_layers": 0}, **target.kwargs)
    (site,) = [site for site in report.sites if site.rewritten]
    return site, target.model


@pytest.mark.parametrize(("name", "kind"), [(model.name, kind) for model in MODELS.values() for kind in model.blocks])
def test_blocks_of_known_models_have_the_presets_tokens(name: str, kind: str) -> None:
    model = MODELS[name]
    (latents, text), preset = model.size, PRESETS[model.preset]
    site, built = only_site(model.cls, ModelRequest(model.one_block(kind), latents=latents, text=text))
    assert (site.layout, site.heads, site.head_dim) == (preset.layout, preset.heads, preset.head_dim)
    linear = {size for module in built.modules() if isinstance(module, torch.nn.Linear) for size in module.weight.shape}
    # Each kind of block has one of them; 15360 is the single-stream block's alone.
    assert linear.intersection(model.ffn)


def test_the_preset_of_which_no_block_is_timed_is_its_model_s_attention() -> None:
    site, _ = only_site("CosmosTransformer3DModel", ModelRequest({"num_layers": 1}))
    preset = PRESETS["cosmos"]
    assert (site.layout, site.heads, site.head_dim) == (preset.layout, preset.heads, preset.head_dim)


def test_a_model_has_as_many_blocks_as_its_class_by_default() -> None:
    for name in ("hunyuanvideo", "wan-14b"):
        model = MODELS[name]
        defaults = inspect.signature(getattr(diffusers, model.cls).__init__).parameters
        assert {setting: defaults[setting].default for setting in model.config} == model.config


def test_a_block_is_timed_part_by_part_and_a_run_projected() -> None:
    settings = {**MODELS["small"].settings, "ffn_dim": 256}
    model = replace(MODELS["small"], heads=1, latents=(8, 32, 32), text=16, ffn=(256,), settings=settings)
    (result,) = transformer.measure_blocks(model, transformer.Options(CPU, repeats=1, compile_times=False))
    assert result["tokens"] == 2048
    for side in ("dense", "sparse"):
        assert sum(result[side]["parts"].values()) > 0
        assert result[side]["parts"]["attention"] > 0
        assert result[side]["parts"]["MLP"] > 0
    assert result["dense"]["parts"]["profile"] == 0
    assert result["sparse"]["parts"]["profile"] > 0
    assert "projected: 50 steps, 5 dense" in table(result).markdown()


@pytest.mark.slow
def test_a_block_of_another_size_is_timed_in_one_forward(tmp_path: Path) -> None:
    file = tmp_path / "block.json"
    arguments = ["bench", "block", "--model", "small", "--latents", "8x32x32", "--once", "--density", "0.5"]
    ran = CliRunner().invoke(main, [*arguments, "--device", "cpu", "--json", str(file)])
    assert ran.exit_code == 0, ran.output
    result = json.loads(file.read_text())
    assert (result["latents"], result["tokens"], result["repeats"]) == ([8, 32, 32], 2048, 1)
    for side in ("dense", "sparse"):
        assert result[side]["ms"]["median"] == pytest.approx(sum(result[side]["parts"].values()))


def test_projections_add_dense_and_sparse_steps() -> None:
    few = transformer.projected(MODELS["wan-14b"], 1000.0, 400.0)[0]
    assert few == {"steps": 50, "dense_steps": 5, "dense_seconds": 100.0, "svg_seconds": 46.0, "speedup": 100 / 46}


def test_the_time_of_every_kernel_of_ours_counts_for_a_part() -> None:
    folder = Path(triton_profile.__file__).parent
    names = [name for file in folder.glob("*.py") for name in re.findall(r"def (\w+_fwd_kernel)\(", file.read_text())]
    assert len(names) > 10
    ours = [parts._PATTERNS[part] for part in (parts.PROFILE, parts.ATTENTION)]
    assert not [name for name in names if not any(pattern.search(name) for pattern in ours)]


def test_the_stored_trace_is_on_its_page_and_within_what_is_promised(tmp_path: Path) -> None:
    """The first call of a deep model by blocks takes at most 15 s of CPU time, the next one of its shapes none."""
    stored = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "trace.json"
    rows = [row for row in json.loads(stored.read_text())["rows"] if row["what"] == "blocks"]
    # At full depth.
    assert {row["model"]: row["sparse"] for row in rows} == {
        "WanTransformer3DModel": 40,
        "HunyuanVideoTransformer3DModel": 60,
    }
    for row in rows:
        assert row["seconds"] <= 15
        assert row["again"] < 0.1
    made = tmp_path / "trace.md"
    page.write([stored], made, "A look at a model")
    assert made.read_text() == stored.with_suffix(".md").read_text()
