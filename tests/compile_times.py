"""CPU seconds of `explain` and of a first compile, in this checkout against another revision of it.

    python tests/compile_times.py REVISION [--turns N]      prints a Markdown table

Each measurement is a process of its own with an empty Inductor cache and one thread. The two trees take turns, and the
table has the median of each tree and the median of the turns' ratios. Imports are not counted; child processes, such
as the C++ compiler, are. Only public functions are called, so that old revisions can be measured too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOYS = ("wan", "hunyuan_video", "cogvideox_5b")
WHOLE = ("WanTransformer3DModel", "HunyuanVideoTransformer3DModel")
OPTIONS = {"density": 0.3, "dense_steps": 0, "dense_layers": 0, "min_tokens": 0, "block": 16}


def cpu() -> float:
    """CPU seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


def measure_toy(name: str) -> dict[str, float]:
    """A model of two blocks of tests/models.py: `explain` twice, then its first compiled call."""
    import torch

    import models
    import svg_compile

    case = next(each for each in models.CASES if each.name == name)
    model, kwargs, times = case.build(), case.inputs(1, case.grid), {}
    with torch.no_grad():
        for what in ("explain, first", "explain, again"):
            begin = cpu()
            report = svg_compile.explain(model, options=OPTIONS, **kwargs)
            times[what] = cpu() - begin
            assert sum(site.rewritten for site in report.sites) == case.video_sites
        torch._dynamo.reset()
        begin = cpu()
        torch.compile(model, backend="svg", options=OPTIONS)(**kwargs)
        times["first compiled call"] = cpu() - begin
    return times


def measure_whole(name: str) -> dict[str, float]:
    """`svg-compile explain` of a class in its released size, without weights."""
    import diffusers

    from svg_compile.cli import main

    assert getattr(diffusers, name)
    begin = cpu()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        main(["explain", name, "--json", str(file)], standalone_mode=False)
        sites = json.loads(file.read_text())["sites"]
    # The first layer is left dense.
    assert sum(site["rewritten"] for site in sites) >= 39, name
    return {"explain, whole model": cpu() - begin}


def laid_out(tree: Path, target: Path) -> Path:
    """The packages of a tree as they are installed."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(tree / "svg_compile", target / "svg_compile", ignore=skip)
    for package in ("kernels", "passes"):
        shutil.copytree(tree / package, target / "svg_compile" / package, ignore=skip)
    return target


def run(library: Path, name: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{library}{os.pathsep}{ROOT / 'tests'}",
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, "--measure", name, "--library", str(library)]
        done = subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{library}, {name}: {done.stderr[-3000:]}")
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def compare(revision: str, turns: int) -> None:
    """Measure both trees in turns and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", str(old), revision], cwd=ROOT, check=True)
        try:
            libraries = [laid_out(old, Path(folder) / "old"), laid_out(ROOT, Path(folder) / "new")]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
        print(f"| model | measured | {revision} | this checkout | ratio |\n|---|---|---:|---:|---:|", flush=True)
        for name in (*TOYS, *WHOLE):
            taken: list[list[dict[str, float]]] = [[], []]
            for turn in range(turns):
                for which in (0, 1) if turn % 2 == 0 else (1, 0):
                    taken[which].append(run(libraries[which], name))
            for what in taken[0][0]:
                before, now = ([times[what] for times in each] for each in taken)
                ratio = statistics.median(b / a for a, b in zip(before, now))
                medians = " | ".join(f"{statistics.median(each):.2f} s" for each in (before, now))
                spread = (
                    f"{min(b / a for a, b in zip(before, now)):.2f} to {max(b / a for a, b in zip(before, now)):.2f}"
                )
                print(f"| {name} | {what} | {medians} | {ratio:.2f} ({spread}) |", flush=True)
        print(f"\n{turns} turns, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default="HEAD")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    arguments: Any = parser.parse_args()
    if not arguments.measure:
        compare(arguments.revision, arguments.turns)
        return
    import svg_compile

    assert svg_compile.__file__.startswith(arguments.library), svg_compile.__file__
    measure = measure_toy if arguments.measure in TOYS else measure_whole
    print(f"\n{json.dumps(measure(arguments.measure))}")


if __name__ == "__main__":
    main()
