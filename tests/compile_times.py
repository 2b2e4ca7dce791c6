"""CPU seconds of `explain` and of a first compiled call, in this checkout against another revision of it.

    python tests/compile_times.py REVISION [--turns N] [--inductor]      prints a Markdown table

Each process has an empty Inductor cache and one thread. The two trees take turns, and the table has the median of each
tree and the median of the turns' ratios. Imports are not counted; child processes are. Without --inductor the first
compiled call runs the rewritten graph as it is, because Inductor and its C++ compiler take most of the time and are the
same on both sides. Only public functions are called, so that old revisions can be measured too.
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

ROOT = Path(__file__).resolve().parent.parent
TOYS = ("wan", "hunyuan_video", "cogvideox_5b")
WHOLE = ("WanTransformer3DModel", "HunyuanVideoTransformer3DModel")
OPTIONS = {"density": 0.3, "dense_steps": 0, "dense_layers": 0, "min_tokens": 0, "block": 16}


def cpu() -> float:
    """CPU seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


def measure_toys(inductor: bool) -> dict[str, float]:
    """Models of two blocks of tests/models.py: `explain` twice, then the first compiled call."""
    import torch
    import torch._inductor.compile_fx as inductor_compile

    import models
    import svg_compile

    if not inductor:
        vars(inductor_compile)["compile_fx"] = lambda graph_module, *_, **__: graph_module.forward
    times = {}
    for name in TOYS:
        case = next(each for each in models.CASES if each.name == name)
        model, kwargs = case.build(), case.inputs(1, case.grid)
        with torch.no_grad():
            for what in ("explain, first", "explain, again"):
                begin = cpu()
                report = svg_compile.explain(model, options=OPTIONS, **kwargs)
                times[f"{name} | {what}"] = cpu() - begin
                assert sum(site.rewritten for site in report.sites) == case.video_sites
            torch._dynamo.reset()
            begin = cpu()
            torch.compile(model, backend="svg", options=OPTIONS)(**kwargs)
            times[f"{name} | first compiled call"] = cpu() - begin
    return times


def measure_whole() -> dict[str, float]:
    """`svg-compile explain` of classes in their released size, without weights."""
    import diffusers

    from svg_compile.cli import main

    times = {}
    for name in WHOLE:
        assert getattr(diffusers, name)
        begin = cpu()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "report.json"
            main(["explain", name, "--json", str(file)], standalone_mode=False)
            sites = json.loads(file.read_text())["sites"]
        times[f"{name} | explain, released size"] = cpu() - begin
        # The first layer is left dense.
        assert sum(site["rewritten"] for site in sites) >= 39, name
    return times


def laid_out(tree: Path, target: Path) -> Path:
    """The packages of a tree as they are installed."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(tree / "svg_compile", target / "svg_compile", ignore=skip)
    for package in ("kernels", "passes"):
        shutil.copytree(tree / package, target / "svg_compile" / package, ignore=skip)
    return target


def run(library: Path, *arguments: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{library}{os.pathsep}{ROOT / 'tests'}",
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, "--library", str(library), *arguments]
        done = subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{library}, {arguments}: {done.stderr[-3000:]}")
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def compare(revision: str, turns: int, inductor: bool) -> None:
    """Measure both trees in turns and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", str(old), revision], cwd=ROOT, check=True)
        try:
            libraries = [laid_out(old, Path(folder) / "old"), laid_out(ROOT, Path(folder) / "new")]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
        print(f"| model | measured | {revision} | this checkout | ratio |\n|---|---|---:|---:|---:|", flush=True)
        for arguments in (["--measure", "toys", *(["--inductor"] if inductor else [])], ["--measure", "whole"]):
            taken: list[list[dict[str, float]]] = [[], []]
            for turn in range(turns):
                for which in (0, 1) if turn % 2 == 0 else (1, 0):
                    taken[which].append(run(libraries[which], *arguments))
            for what in taken[0][0]:
                before, now = ([times[what] for times in each] for each in taken)
                ratios = sorted(b / a for a, b in zip(before, now))
                medians = " | ".join(f"{statistics.median(each):.2f} s" for each in (before, now))
                spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                print(f"| {what} | {medians} | {spread} |", flush=True)
        print(f"\n{turns} turns, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default="HEAD")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--inductor", action="store_true", help="compile by Inductor: minutes a turn")
    parser.add_argument("--measure", choices=["toys", "whole"], help=argparse.SUPPRESS)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.measure:
        compare(arguments.revision, arguments.turns, arguments.inductor)
        return
    import svg_compile

    assert svg_compile.__file__.startswith(arguments.library), svg_compile.__file__
    measured = measure_whole() if arguments.measure == "whole" else measure_toys(arguments.inductor)
    print(f"\n{json.dumps(measured)}")


if __name__ == "__main__":
    main()
