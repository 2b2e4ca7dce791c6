"""What a sparse step gains under Ulysses: the example model's forward by `inductor` and by `svg`, in turns, in one run.

    torchrun --nproc_per_node 2 examples/several_gpus_times.py --json out/bench/ulysses.json

Each process holds the whole model and a part of the tokens. A forward is one step of the model at 9,216 tokens, by
blocks; the sparse ones profile their heads, and share the pairs of a layer among the heads of all processes or of each
(`share_processes`). Times are those of the slowest process. `make bench-ulysses` runs it on two
processes and writes docs/benchmarks/ulysses.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import svg_compile
from miniature import device_of_this_process
from moving_shapes import parse
from several_gpus import join, prepare
from video_model import WEIGHTS, keyframes_of, load_model

OPTIONS = {"dense_steps": 0, "dense_layers": 0}
# What is timed, and the options of it that are svg's.
WAYS: dict[str, dict[str, Any]] = {"inductor": {}, "svg": {}, "svg, apart": {"share_processes": False}}


def forwards(args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The forward of a model compiled in each way."""
    device, dtype = device_of_this_process(), getattr(torch, args.dtype)
    prompt, _ = keyframes_of(parse("small cyan dotted ring bouncing; night"), 0, frames=args.frames, pixels=args.size)
    prompt = prompt.to(device, dtype)
    seen = torch.cat([prompt.noise, prompt.given], dim=1).to(prompt.text.dtype)
    inputs = seen, torch.tensor([500.0], device=device), prompt.text
    found: dict[str, Callable[[], Any]] = {}
    for way, more in WAYS.items():
        backend = way.partition(",")[0]
        model = load_model(args.weights, dtype)
        prepare(model, device)
        options = {**OPTIONS, "density": args.density, **more} if backend == "svg" else None
        model.compile_repeated_blocks(backend=backend, options=options, dynamic=False)
        if backend == "svg":
            # A model compiled by blocks is served in a schedule alone.
            svg_compile.denoising(model, steps=10**6).__enter__()
        found[way] = lambda model=model: model(*inputs, return_dict=False)  # type: ignore[misc]
    return found


def timed(forward: Callable[[], Any]) -> float:
    """Seconds of a forward, of the slowest process."""
    dist.barrier()
    start = time.perf_counter()
    forward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    dist.barrier()
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All ways in turns; the medians of the turns' own ratios."""
    runs = forwards(args)
    for _ in range(2):
        outputs = {name: run() for name, run in runs.items()}
    off = (outputs["svg"][0] - outputs["inductor"][0]).float().norm() / outputs["inductor"][0].float().norm()
    turns = [{name: timed(run) for name, run in runs.items()} for _ in range(args.repeats)]
    ratios = [turn["inductor"] / turn["svg"] for turn in turns]
    apart = [turn["inductor"] / turn["svg, apart"] for turn in turns]
    return {
        "date": date.today().isoformat(),
        "processes": dist.get_world_size(),
        "threads": torch.get_num_threads(),
        "tokens": args.frames * (args.size // 4) ** 2,
        "density": args.density,
        "dtype": args.dtype,
        "torch": torch.__version__,
        "machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
        "load": os.getloadavg()[0],
        "turns": turns,
        "dense": statistics.median(turn["inductor"] for turn in turns),
        "sparse": statistics.median(turn["svg"] for turn in turns),
        "speedup": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "sparse_apart": statistics.median(turn["svg, apart"] for turn in turns),
        "speedup_apart": statistics.median(apart),
        "least_apart": min(apart),
        "most_apart": max(apart),
        "difference": float(off),
    }


PAGE = """# Ulysses

A step of the example model under diffusers' context parallelism, {processes} processes of {threads} thread each on a
CPU (gloo), {tokens} tokens, density {density}, {dtype}, blocks compiled one by one, medians of {count} turns
({date}, torch {torch}, load {load:.1f} at the end). `make bench-ulysses` measures it anew.

| | seconds | times faster |
|---|---|---|
| dense, `inductor` | {dense:.2f} | |
| sparse, `svg`, profile included | {sparse:.2f} | **{speedup:.2f}x** ({least:.2f} to {most:.2f}) |
| sparse, `share_processes` off | {sparse_apart:.2f} | {speedup_apart:.2f}x ({least_apart:.2f} to {most_apart:.2f}) |

The output of a sparse step differs by {difference:.3f} from the dense one (relative, L2).
"""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    join()
    try:
        with torch.no_grad():
            found = measure(args)
        if dist.get_rank() == 0:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(found, indent=1) + "\n")
            page = PAGE.format(**found, count=len(found["turns"]))
            if args.page is not None:
                args.page.write_text(page)
            print(page)
    finally:
        dist.destroy_process_group()
    return found


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=96, help="pixels a side; a token is 4 x 4 of them")
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--json", type=Path, default=Path("out/bench/ulysses.json"))
    parser.add_argument("--page", type=Path, help="write this page, too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
