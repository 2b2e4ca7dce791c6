"""Mutation check of the Triton kernels: each fault below, put into a copy of the sources, must make a test fail.

    python tests/mutation/run.py [name ...]

Prints a table and exits with 1 if a mutant survives. It works on a copy: the checkout is not touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ATTENTION = "test_attention.py"
PROFILE = "test_profile.py"
REPAIR = "test_repair.py"
NEED = "test_need.py"
MASK = "../test_mask.py"


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in `file`, wherever it stands; `tests` has to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str = ATTENTION


MUTANTS = (
    Mutant(
        "masked loop drops text and sink",
        "kernels/triton/attention.py",
        "sees_all, is_open[None, :], key_frame[None, :],",
        "sees_all, (place < 0)[None, :], key_frame[None, :] + 1,",
    ),
    Mutant(
        "kernel drops the sink",
        "kernels/triton/attention.py",
        "tl.where(sees_all, video, area)",
        "tl.where(sees_all, video, 0)",
    ),
    Mutant(
        "kernel drops text after the video",
        "kernels/triton/attention.py",
        "y_end = video + text_len",
        "y_end = y_begin",
    ),
    Mutant(
        "text keys dropped from the mask",
        "svg_compile/mask.py",
        "query_is_text | key_is_text |",
        "query_is_text |",
        MASK,
    ),
    Mutant("sink dropped from the mask", "svg_compile/mask.py", " | (key_frame == 0)", "", MASK),
    Mutant("band one-sided", "svg_compile/mask.py", " & (key_block - query_block <= half_width)", "", MASK),
    Mutant(
        "band never masked at its edges", "kernels/triton/attention.py", "shown & key_ok[None, :]", "key_ok[None, :]"
    ),
    Mutant(
        "frame and place swapped",
        "kernels/triton/tiles.py",
        "(rank - place * span) * area + place",
        "place * span + (rank - place * span)",
    ),
    Mutant(
        "frame and place swapped in the fast loop",
        "kernels/triton/attention.py",
        "(turn_in - turns * span) * area + turns",
        "turn_in",
    ),
    Mutant(
        "q's strides used for v",
        "kernels/triton/attention.py",
        "batch * stride_vb + head * stride_vh",
        "batch * stride_qb + head * stride_qh",
    ),
    Mutant(
        "k's token stride used for v",
        "kernels/triton/attention.py",
        "stride_kn, stride_kd, stride_vn, stride_vd,\n            HEAD_DIM",
        "stride_kn, stride_kd, stride_kn, stride_kd,\n            HEAD_DIM",
    ),
    Mutant(
        "int32 row offsets",
        "kernels/triton/tiles.py",
        "rows = token.to(tl.int64) * stride_token",
        "rows = token * stride_token",
    ),
    Mutant(
        "int32 tile offsets",
        "kernels/triton/attention.py",
        "start = tl.where(in_band >= 0, video_start + area + full_low + in_band * BLOCK_N, start).to(tl.int64)",
        "start = tl.where(in_band >= 0, video_start + area + full_low + in_band * BLOCK_N, start)",
    ),
    Mutant(
        "key mask ignored", "kernels/triton/attention.py", "key_ok &= tl.load(key_mask", "key_ok |= tl.load(key_mask"
    ),
    Mutant(
        "hidden keys taken for clean",
        "kernels/triton/prepare.py",
        "tl.maximum(hidden_first, begin), end)",
        "end, end)",
    ),
    Mutant(
        "a body that hides keys taken for clean",
        "kernels/triton/attention.py",
        "tl.where(in_body, full_low, full_high)",
        "full_high",
    ),
    Mutant(
        "band one block too wide",
        "kernels/triton/attention.py",
        "(last_block - half_width) * BAND, low), high)",
        "(first_block - half_width) * BAND, low), high)",
    ),
    Mutant("text tiles forgotten", "kernels/triton/attention.py", "y_tiles * BLOCK_N - x_rest", "- x_rest"),
    Mutant("unseen rows divide by zero", "kernels/triton/attention.py", "tl.where(total == 0.0, 1.0, total)", "total"),
    Mutant("running sum not rescaled", "kernels/triton/tiles.py", "total * factor + tl.sum", "total + tl.sum"),
    Mutant(
        "no guard for rows that saw nothing",
        "kernels/triton/tiles.py",
        'new_peak == float("-inf"), 0.0, shift',
        "new_peak > 3e38, 0.0, shift",
    ),
    Mutant(
        "tail of the queries written",
        "kernels/triton/tiles.py",
        "rows.to(base.dtype.element_ty), mask=token_ok[:, None]",
        "rows.to(base.dtype.element_ty), mask=(token >= 0)[:, None]",
    ),
    Mutant(
        "channels past the head dim written",
        "kernels/triton/tiles.py",
        "token_ok[:, None] & (channel < CHANNELS)[None, :])\n\n\n@triton.jit\ndef scores",
        "token_ok[:, None] & (channel >= 0)[None, :])\n\n\n@triton.jit\ndef scores",
    ),
    Mutant("negative scale loses its sign", "kernels/triton/launch.py", "(scale > 0) - (scale < 0)", "int(scale != 0)"),
    Mutant(
        "heads in no order",
        "kernels/triton/prepare.py",
        "tl.store(order + place, head",
        "tl.store(order + head, head",
    ),
    Mutant("the grid of another tile", "kernels/triton/attention.py", 'rows = meta["BLOCK_M"]', "rows = 32"),
    Mutant(
        "profile: ties are temporal",
        "kernels/triton/decide.py",
        "temporal_error < spatial_error",
        "temporal_error <= spatial_error",
        PROFILE,
    ),
    Mutant(
        "profile: what is not finite may win", "kernels/triton/decide.py", "tl.where(spatial_ok, 0, 2)", "0", PROFILE
    ),
    Mutant(
        "profile: late rows ignored",
        "kernels/sampling.py",
        "(index * video + (jitter * video) // _UNIT) // count",
        "index",
        PROFILE,
    ),
    Mutant(
        "profile: spatial and temporal widths swapped",
        "kernels/triton/profile_kernel.py",
        "spatial_width = tl.load(widths)",
        "spatial_width = tl.load(widths + 1)",
        PROFILE,
    ),
    Mutant(
        "profile: key mask ignored",
        "kernels/triton/profile_kernel.py",
        "token_ok &= tl.load(key_mask",
        "token_ok |= tl.load(key_mask",
        PROFILE,
    ),
    Mutant(
        "profile: last stretch of keys lost",
        "kernels/triton/decide.py",
        "for split in range(SPLITS)",
        "for split in range(SPLITS - 14)",
        PROFILE,
    ),
    Mutant(
        "profile: padded rows counted",
        "kernels/triton/decide.py",
        "tl.where(row_ok, tl.sum(off * off, 1), 0.0)",
        "tl.sum(off * off, 1)",
        PROFILE,
    ),
    Mutant(
        "profile: the step's density ignored by the errors",
        "kernels/triton/profile_kernel.py",
        "widths += 3 * tl.load(when)",
        "widths += 0 * tl.load(when)",
        PROFILE,
    ),
    Mutant(
        "profile: the step's density ignored by the plan",
        "kernels/triton/decide.py",
        "widths += 3 * tl.load(when)",
        "widths += 0 * tl.load(when)",
        PROFILE,
    ),
    Mutant(
        "profile: kinds kept when they were to be profiled",
        "kernels/triton/decide.py",
        "tl.load(when + stride_w) == 0",
        "tl.load(when + stride_w) >= 0",
        PROFILE,
    ),
    Mutant(
        "profile: kept kinds are head 0's",
        "kernels/triton/decide.py",
        "batch_head.to(tl.int64) * stride_ph",
        "0",
        PROFILE,
    ),
    Mutant(
        "repair: text rows moved",
        "kernels/triton/repair.py",
        "video_start + place, place < video",
        "place, place < video",
        REPAIR,
    ),
    Mutant("repair: means of x left in", "kernels/triton/repair.py", " - mean_x[None, :]", "", REPAIR),
    Mutant("repair: mean of y lost", "kernels/triton/repair.py", "(change + mean_y[None, :])", "change", REPAIR),
    Mutant(
        "repair: heads share a fit",
        "kernels/triton/repair.py",
        "fit += batch_head *",
        "fit += 0 * batch_head *",
        REPAIR,
    ),
    Mutant(
        "repair: exact rows of another place",
        "kernels/triton/repair.py",
        "video_start + tl.load(sampled",
        "1 + tl.load(sampled",
        REPAIR,
    ),
    Mutant(
        "repair: rows of the other kind", "kernels/repair.py", "HeadKind.SPATIAL, 1,", "HeadKind.SPATIAL, 2,", REPAIR
    ),
    Mutant("repair: no gate", "kernels/repair.py", "(least < before) &", "", REPAIR),
    Mutant(
        "repair: fits outlive their width",
        "kernels/repair.py",
        "(previous == plan).all(-1)",
        "(plan == plan).all(-1)",
        REPAIR,
    ),
    Mutant(
        "repair: kept rows are written",
        "kernels/triton/fit.py",
        'torch.where(anew, found, float("nan"))',
        "found",
        REPAIR,
    ),
    Mutant(
        "need: temporal rungs by the spatial order",
        "kernels/triton/need.py",
        "area, temporal == 1)",
        "area, temporal == 2)",
        NEED,
    ),
    Mutant(
        "need: key mask ignored",
        "kernels/triton/need.py",
        "token_ok &= tl.load(key_mask",
        "token_ok |= tl.load(key_mask",
        NEED,
    ),
    Mutant(
        "need: one split of the keys for all",
        "kernels/triton/need.py",
        "total += tl.load(",
        "total = tl.load(",
        NEED,
    ),
    Mutant(
        "need: padded rows counted",
        "kernels/triton/need.py",
        "tl.where(row_ok[:, None], total * total, 0.0)",
        "total * total",
        NEED,
    ),
    Mutant(
        "need: the spatial error for both kinds",
        "kernels/triton/need.py",
        "2 * at[:, None] + kind_of_rung[None, :]",
        "2 * at[:, None] + 0 * kind_of_rung[None, :]",
        NEED,
    ),
    Mutant(
        "need: what is left over is not spent",
        "kernels/triton/need.py",
        "for _ in range(FILLS):",
        "for _ in range(0):",
        NEED,
    ),
    Mutant(
        "need: every sample has the first one's share",
        "kernels/triton/need.py",
        "share + tl.program_id(0) * stride_s",
        "share",
        NEED,
    ),
    Mutant(
        "need: uniform half-widths kept beyond a small share",
        "kernels/triton/need.py",
        "tl.where(at_first > most, 1, 0)",
        "0",
        NEED,
    ),
    Mutant(
        "need: kinds kept without half-widths",
        "kernels/triton/need.py",
        "for column in tl.static_range(2):",
        "for column in tl.static_range(1):",
        NEED,
    ),
    Mutant(
        "need: the first density's ladder for all",
        "kernels/triton/need.py",
        "ladder += RUNGS * tl.load(when)",
        "ladder += 0 * tl.load(when)",
        NEED,
    ),
    Mutant(
        "need: rows of the plan by the first head's half-width",
        "kernels/triton/profile_kernel.py",
        "tl.load(plan + 2 * batch_head + 1)",
        "tl.load(plan + 1)",
        NEED,
    ),
    Mutant(
        "need: rows of the plan over the dense ones",
        "kernels/triton/profile_kernel.py",
        "partial += (1 + kind)",
        "partial += (0 + kind)",
        NEED,
    ),
    Mutant(
        "need: rows of the plan by the spatial order alone",
        "kernels/triton/profile_kernel.py",
        "band_rank(key_frame, key_place, frames, area, kind)",
        "band_rank(key_frame, key_place, frames, area, 0)",
        NEED,
    ),
)


def copy_sources(target: Path) -> None:
    """The packages laid out as they are imported, and the tests."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "svg_compile", target / "src" / "svg_compile", ignore=skip)
    for package in ("kernels", "passes"):
        shutil.copytree(ROOT / package, target / "src" / "svg_compile" / package, ignore=skip)
    shutil.copytree(ROOT / "tests", target / "tests", ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", target)


def is_noticed(mutant: Mutant) -> bool:
    """Whether the tests fail on a copy with the fault in it."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        copy_sources(target)
        package = target / "src" / "svg_compile"
        file = package / mutant.file.removeprefix("svg_compile/")
        source = file.read_text()
        if mutant.old not in source:
            raise SystemExit(f"{mutant.name}: {mutant.file} has no {mutant.old!r}; bring the mutant up to date.")
        file.write_text(source.replace(mutant.old, mutant.new))
        environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(target / "src"), "OMP_NUM_THREADS": "1"}
        where = [sys.executable, "-c", "import svg_compile; print(svg_compile.__file__)"]
        imported = subprocess.run(where, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout
        if not imported.startswith(str(package)):
            raise SystemExit(f"the tests would import {imported.strip()}, not the copy")
        tests = target / "tests" / "triton_interpreted" / mutant.tests
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)]
        run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        # A negative code is a crash: a fault that reads or writes out of bounds may end so.
        if run.returncode > 1:
            raise SystemExit(f"{mutant.name}: the tests did not run\n{run.stdout[-3000:]}{run.stderr[-3000:]}")
        return run.returncode != 0


def main(names: list[str]) -> int:
    """Run the mutants whose name contains one of `names`, all without names."""
    chosen = [mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)]
    survivors = 0
    print("| fault | file | tests | time |\n| --- | --- | --- | --- |", flush=True)
    for mutant in chosen:
        start = time.perf_counter()
        noticed = is_noticed(mutant)
        survivors += not noticed
        verdict = "noticed" if noticed else "SURVIVED"
        print(f"| {mutant.name} | {mutant.file} | {verdict} | {time.perf_counter() - start:.0f} s |", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
