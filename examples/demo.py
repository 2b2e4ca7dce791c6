"""The same video from the same noise: dense by `backend="inductor"`, sparse by `backend="svg"`, and sparser.

    python examples/demo.py
    python examples/demo.py --prompt "small cyan dotted ring bouncing; night" --seed 3 --density 0.2 --steps 20

Generates with the small video transformer in examples/weights (diffusers' WanTransformer3DModel, trained by
train_video_dit.py): from a caption and every fifth frame it draws the frames between. Prints how fast and how alike
the two are, and writes to out/demo: clips.gif, frames.png, head_kinds.png and report.json. A prompt is one or two
shapes and a background: see moving_shapes.py for the words.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import diffusers
import torch
from rich.console import Console
from torch import Tensor, nn
from tqdm import tqdm

import svg_compile
from moving_shapes import parse
from pictures import head_map, sheet, side_by_side
from quality import psnr, ssim
from svg_compile import HeadKind, VideoLayout
from svg_compile.config import SvgConfig
from svg_compile.inspection.render.table import Table
from video_model import WEIGHTS, Prompt, denoise, keyframes, keyframes_of, load_model

PROMPT = "large green checked triangle growing; waves"


@dataclass
class Run:
    """One generation: its video and the seconds of each step."""

    video: Tensor
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What report.json holds. `density`: what the sparse heads reached; `psnr_drawn`: over the frames that were not
    given; shares: of all heads in sparse steps; lean: the third generation, at a lower density.
    """

    tokens: int
    layers: int
    heads: int
    steps: int
    dense_steps: int
    density: float
    dense_seconds: float
    svg_seconds: float
    dense_step_seconds: float
    sparse_step_seconds: float
    speedup: float
    psnr: float
    psnr_drawn: float
    ssim: float
    spatial_share: float
    temporal_share: float
    lean_density: float
    lean_seconds: float
    lean_speedup: float
    lean_psnr: float
    versions: dict[str, str]


def compile_all(model: nn.Module, args: argparse.Namespace, prompt: Prompt) -> dict[str, Any]:
    """The compiled models, warm: dense by Inductor alone, sparse by this backend at two densities."""
    options = {
        "density": args.density,
        "dense_steps": args.dense_steps,
        "dense_layers": args.dense_layers,
        "min_tokens": args.min_tokens,
        # The demo would show nothing if nothing was rewritten.
        "strict": True,
    }
    compiled = {
        "inductor": torch.compile(model, backend="inductor"),
        "svg": torch.compile(model, backend="svg", options=options),
        "svg lean": torch.compile(model, backend="svg", options={**options, "density": args.lean_density}),
    }
    for name, call in tqdm(compiled.items(), desc="compiling", unit="backend"):
        # Both of svg's variants are compiled at its first call; the last step runs the sparse one.
        with schedule(name, model, args.steps, start=args.steps - 1):
            next(denoise(call, prompt, steps=args.steps))
    return compiled


def schedule(name: str, model: nn.Module, steps: int, start: int = 0) -> Any:
    """Passes the step to a sparse model; the dense one needs none."""
    return svg_compile.denoising(model, steps=steps, start=start) if name != "inductor" else nullcontext()


def generate(compiled: dict[str, Any], prompt: Prompt, steps: int, model: nn.Module) -> dict[str, Run]:
    """All generations, step by step in turn, so that all meet the same state of the machine."""
    runs = {name: Run(prompt.noise) for name in compiled}
    loops: dict[str, Iterator[Tensor]] = {name: denoise(call, prompt, steps=steps) for name, call in compiled.items()}
    with schedule("svg", model, steps) as told, tqdm(total=len(runs) * steps, desc="generating", unit="step") as bar:
        for _ in range(steps):
            for name, run in runs.items():
                start = time.perf_counter()
                run.video = next(loops[name])
                if prompt.noise.is_cuda:
                    torch.cuda.synchronize()
                run.seconds.append(time.perf_counter() - start)
                bar.update()
            told.advance()
    return runs


def head_kinds(recording: svg_compile.Recording, steps: int, layers: int, heads: int) -> Tensor:
    """int64 [steps, layers, heads] of `HeadKind`; dense where nothing was sparse."""
    kinds = torch.full((steps, layers, heads), int(HeadKind.DENSE))
    for entry in recording.entries:
        if entry.kinds is not None:
            # The layer is called after its module: blocks.3.attn1.
            kinds[entry.step, int(entry.layer.split(".")[1])] = entry.kinds[0].long()
    return kinds


def measure(
    runs: dict[str, Run],
    recording: svg_compile.Recording,
    kinds: Tensor,
    tokens: int,
    dense_steps: int,
    lean_density: float,
) -> Report:
    """The figures of report.json."""
    dense, sparse, lean = runs["inductor"], runs["svg"], runs["svg lean"]
    steps, layers, heads = kinds.shape
    planned = kinds[dense_steps:]
    drawn = ~keyframes(dense.video.shape[2])
    reached = [entry.density for entry in recording.entries if not entry.dense and entry.density is not None]
    return Report(
        tokens=tokens,
        layers=layers,
        heads=heads,
        steps=steps,
        dense_steps=dense_steps,
        density=mean(reached) if reached else 1.0,
        dense_seconds=sum(dense.seconds),
        svg_seconds=sum(sparse.seconds),
        dense_step_seconds=median(dense.seconds),
        sparse_step_seconds=median(sparse.seconds[dense_steps:] or sparse.seconds),
        speedup=sum(dense.seconds) / sum(sparse.seconds),
        psnr=psnr(sparse.video[0], dense.video[0]),
        psnr_drawn=psnr(sparse.video[0][:, drawn], dense.video[0][:, drawn]),
        ssim=ssim(sparse.video[0], dense.video[0]),
        spatial_share=float((planned == HeadKind.SPATIAL).float().mean()) if len(planned) else 0.0,
        temporal_share=float((planned == HeadKind.TEMPORAL).float().mean()) if len(planned) else 0.0,
        lean_density=lean_density,
        lean_seconds=sum(lean.seconds),
        lean_speedup=sum(dense.seconds) / sum(lean.seconds),
        lean_psnr=psnr(lean.video[0], dense.video[0]),
        versions={
            "svg_compile": svg_compile.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        },
    )


def show(report: Report) -> None:
    step = report.dense_step_seconds, report.sparse_step_seconds
    total = report.dense_seconds, report.svg_seconds
    lean = f"svg at density {report.lean_density:g}"
    rows = (
        ("seconds a dense step", f"{step[0]:.2f}", "", ""),
        ("seconds a sparse step", "", f"{step[1]:.2f}", f"{step[0] / step[1]:.2f}"),
        ("seconds in all", f"{total[0]:.1f}", f"{total[1]:.1f}", f"{report.speedup:.2f}"),
        ("dense steps", str(report.steps), str(report.dense_steps), ""),
        ("density of sparse heads", "1.000", f"{report.density:.3f}", ""),
        ("heads spatial / temporal", "", f"{report.spatial_share:.0%} / {report.temporal_share:.0%}", ""),
        ("PSNR to inductor", "", f"{report.psnr:.1f} dB", ""),
        ("PSNR without the keyframes", "", f"{report.psnr_drawn:.1f} dB", ""),
        ("SSIM to inductor", "", f"{report.ssim:.4f}", ""),
        (f"{lean}, seconds in all", "", f"{report.lean_seconds:.1f}", f"{report.lean_speedup:.2f}"),
        (f"{lean}, PSNR to inductor", "", f"{report.lean_psnr:.1f} dB", ""),
    )
    title = f"{report.tokens} tokens, {report.layers} layers of {report.heads} heads, {report.steps} steps"
    Console().print(Table(("", "inductor", "svg", "times faster"), rows, "rrrr").rich(title=title))


def main(argv: list[str] | None = None) -> Report:
    args = parse_args(argv)
    dtype = torch.bfloat16
    model = load_model(args.weights, dtype).to(args.device)
    layout = VideoLayout(args.frames, args.size // 4, args.size // 4)
    prompt, _ = keyframes_of(parse(args.prompt), args.seed, frames=args.frames, pixels=args.size)
    prompt = prompt.to(args.device, dtype)
    dense_steps = SvgConfig(dense_steps=args.dense_steps).dense_until(args.steps)
    print(f"{args.prompt} (seed {args.seed})")
    print(f"{layout.tokens} tokens: {args.frames} frames of {args.size} x {args.size} pixels")

    compiled = compile_all(model, args, prompt)
    with svg_compile.record(model, layout=layout) as recording:
        runs = generate(compiled, prompt, args.steps, model)
    # The leaner generation's forwards are each step's second ones.
    recording = recording.select(call=0)
    kinds = head_kinds(recording, args.steps, len(model.blocks), model.config.num_attention_heads)
    report = measure(runs, recording, kinds, layout.tokens, dense_steps, args.lean_density)

    clips = {name: runs[name].video[0].float().cpu() for name in ("inductor", "svg")}
    args.out.mkdir(parents=True, exist_ok=True)
    side_by_side(clips, args.out / "clips.gif")
    sheet(clips, args.out / "frames.png")
    head_map(kinds, args.out / "head_kinds.png")
    (args.out / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    show(report)
    print(f"wrote clips.gif, frames.png, head_kinds.png and report.json to {args.out}")
    return report


def steps_or_share(text: str) -> int | float:
    """An int counts steps; a number with a point is a share of them."""
    return float(text) if "." in text else int(text)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=2, help="of the scene's places and speeds, and of the noise")
    parser.add_argument("--density", type=float, default=0.3, help="share of query-key pairs a sparse head computes")
    parser.add_argument("--lean-density", type=float, default=0.15, help="of a third generation, for its time and PSNR")
    parser.add_argument("--steps", type=int, default=16, help="denoising steps")
    parser.add_argument("--dense-steps", type=steps_or_share, default=0.25, help="a count, or a share such as 0.25")
    parser.add_argument("--dense-layers", type=int, default=0, help="first layers left dense")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=96, help="pixels in height and width, a multiple of 4")
    parser.add_argument("--device", default=device)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the model")
    parser.add_argument("--min-tokens", type=int, default=2048, help="shorter sequences stay dense")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    args = parser.parse_args(argv)
    if args.size % 4:
        parser.error(f"argument --size: {args.size} is not a multiple of 4, the side of a token in pixels")
    return args


if __name__ == "__main__":
    main()
