"""Benchmarks that anyone can run: `python -m svg_compile.bench cpu`.

Times dense attention, FlexAttention with the same mask, and this package's op in one run, interleaved, and prints
medians and ratios. `--json FILE` also writes every figure with the versions and the machine it was taken on.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from svg_compile.kernels.cpu_attention import sparse_attention
from svg_compile.kernels.cpu_profile import profile_heads
from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.mask import attends, band_block, band_rank

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BANDS = (HeadKind.SPATIAL, HeadKind.TEMPORAL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, print a table on stdout and the progress on stderr."""
    parser = argparse.ArgumentParser(prog="python -m svg_compile.bench", description=__doc__)
    parser.add_argument("device", choices=["cpu"], help="what to measure")
    parser.add_argument("--frames", type=int, default=8, help="latent frames of the video")
    parser.add_argument("--tokens", type=int, default=8192, help="video tokens, about; frames are as square as can be")
    parser.add_argument("--text", type=int, default=0, help="text tokens after the video")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, default=64, help="query rows that the profile samples")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention out; it takes a while to compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    # The process is the benchmark's own, so its thread count is too.
    torch.set_num_threads(options.threads)
    report = measure(options)
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def grid(frames: int, tokens: int) -> tuple[int, int, int]:
    """(frames, height, width) with about `tokens` tokens and frames as square as can be."""
    area = max(1, tokens // frames)
    height = next(size for size in range(int(area**0.5), 0, -1) if area % size == 0)
    return frames, height, area // height


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time everything, interleaved; the report holds milliseconds, ratios and the conditions."""
    layout = VideoLayout(*grid(options.frames, options.tokens), text_len=options.text)
    generator = torch.Generator().manual_seed(0)
    shape = (1, layout.tokens, options.heads, options.head_dim)
    query, key, value = (
        torch.randn(shape, generator=generator).to(DTYPES[options.dtype]).transpose(1, 2) for _ in range(3)
    )
    plans = {
        "spatial": plan_for([HeadKind.SPATIAL] * options.heads, layout, options.density),
        "temporal": plan_for([HeadKind.TEMPORAL] * options.heads, layout, options.density),
        "mixed": plan_for([BANDS[head % 2] for head in range(options.heads)], layout, options.density),
    }
    calls: dict[str, Callable[[], object]] = {"dense": lambda: F.scaled_dot_product_attention(query, key, value)}
    for name, plan in plans.items():
        calls[f"op, {name}"] = partial(sparse_attention, query, key, value, plan, layout)
        if not options.no_flex:
            calls[f"flex, {name}"] = flex_call(query, key, value, plan, layout)
    calls["profile"] = lambda: profile_heads(
        query, key, value, layout, density=options.density, sampled_rows=options.rows
    )
    times = interleaved(calls, options.repeats)
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(dense / other for dense, other in zip(times["dense"], values, strict=True))
        for name, values in times.items()
    }
    return {
        "milliseconds": medians,
        "speedup_over_dense": ratios,
        "profile_share_of_dense": 1 / ratios["profile"],
        "density": {kind.name.lower(): density_of(layout, options.density, kind) for kind in BANDS},
        "layout": {"frames": layout.frames, "height": layout.height, "width": layout.width, "text_len": options.text},
        "tokens": layout.tokens,
        "heads": options.heads,
        "head_dim": options.head_dim,
        "dtype": options.dtype,
        "sampled_rows": options.rows,
        "repeats": options.repeats,
        "threads": options.threads,
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def plan_for(kinds: Sequence[HeadKind], layout: VideoLayout, density: float) -> Tensor:
    """A plan, int32 [1, H, 2], with every head at the density."""
    return torch.tensor([[(int(kind), layout.half_width_for(density, kind)) for kind in kinds]], dtype=torch.int32)


def density_of(layout: VideoLayout, density: float, kind: HeadKind) -> float:
    """The density that is reached, as widths come in whole blocks."""
    return layout.density(layout.half_width_for(density, kind), kind)


def flex_call(query: Tensor, key: Tensor, value: Tensor, plan: Tensor, layout: VideoLayout) -> Callable[[], object]:
    """FlexAttention, compiled, with the mask of the plan."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    video = (torch.arange(layout.tokens) - layout.video_start).clamp(0, layout.video - 1)
    text = torch.arange(layout.tokens) - layout.text_start
    is_text = (text >= 0) & (text < layout.text_len)
    frame, place = video // layout.area, video % layout.area
    ranks = [band_rank(frame, place, layout.frames, layout.area, int(kind)) for kind in BANDS]
    blocks = torch.stack([band_block(rank, layout.area, layout.block) for rank in ranks])
    # Copies, as a slice of the plan would make every call guard on its strides.
    kind, half_width = plan[0, :, 0].long().contiguous(), plan[0, :, 1].long().contiguous()

    def mask(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        near = (blocks[kind[head], row], blocks[kind[head], column], half_width[head])
        return attends(is_text[row], is_text[column], frame[column], *near)

    block_mask = create_block_mask(mask, 1, query.shape[1], layout.tokens, layout.tokens, "cpu", BLOCK_SIZE=128)
    compiled = torch.compile(flex_attention)
    return lambda: compiled(query, key, value, block_mask=block_mask)


@torch.no_grad()
def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times in turns, after one call each to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with tqdm(total=len(calls) * (repeats + 1), file=sys.stderr, unit="call") as progress:
        for turn in range(repeats + 1):
            for name, call in calls.items():
                progress.set_description(name)
                begin = time.perf_counter()
                call()
                seconds = time.perf_counter() - begin
                if turn:
                    times[name].append(seconds)
                progress.update()
    return times


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    size = "x".join(str(report["layout"][axis]) for axis in ("frames", "height", "width"))
    reached = ", ".join(f"{kind} {density:.3f}" for kind, density in report["density"].items())
    lines = [
        f"{report['cpu']} ({report['capability']}), {report['threads']} threads, torch {report['torch']}",
        f"{report['tokens']} tokens ({size}), {report['heads']} heads of {report['head_dim']}, {report['dtype']}",
        f"density: {reached}; medians of {report['repeats']}, interleaved",
        "",
        f"{'':<16}{'ms':>10}{'dense / it':>12}",
    ]
    for name, milliseconds in report["milliseconds"].items():
        lines.append(f"{name:<16}{milliseconds:>10.1f}{report['speedup_over_dense'][name]:>11.2f}x")
    lines.append("")
    lines.append(f"The profile of {report['sampled_rows']} rows takes {report['profile_share_of_dense']:.1%} of dense.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
