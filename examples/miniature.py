"""The example model at a size that CPUs run in seconds: what the recipes for one card, a large card and several are
tried on. Each of them generates one video dense and one sparse, in the same arrangement, and says how far they differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from torch import Tensor

import svg_compile
from moving_shapes import parse
from svg_compile.runtime.dispatcher import observe
from video_model import WEIGHTS, Prompt, denoise, keyframes_of, load_model

# Small enough for a sparse step to differ from a dense one: at the default `min_tokens` all would be dense.
OPTIONS = {"dense_steps": 0.25, "density": 0.3, "min_tokens": 0, "dense_layers": 0}


def arguments(description: str | None, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the example model")
    parser.add_argument(
        "--prompt", default="small cyan dotted ring bouncing; night", help="see examples/moving_shapes.py"
    )
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="pixels in height and width")
    parser.add_argument("--steps", type=int, default=4)
    return parser.parse_args(argv)


def device_of_this_process() -> torch.device:
    """This process' GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def generate(model: Any, prompt: Prompt, steps: int) -> Tensor:
    """A video [1, 3, F, H, W]. All forwards run in one `cache_context`, which step caches of diffusers ask for."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        with model.cache_context("cond"):
            return model(*args, **kwargs)

    # With a pipeline: svg_compile.attach(pipe), once, and pipe(...) as ever.
    with svg_compile.denoising(model, steps=steps) as run:
        for video in denoise(forward, prompt, steps=steps):
            run.advance()
            latest = video
    return latest


def compare(
    args: argparse.Namespace, prepare: Callable[[Any, torch.device], None], compile_it: Callable[[Any, str], None]
) -> tuple[float, int]:
    """Generate densely and sparsely; returns (relative difference, sparse forwards of graphs).

    prepare: what is done to the model before it is compiled. compile_it: (model, backend) compiles it in place.
    """
    device = device_of_this_process()
    prompt, _ = keyframes_of(parse(args.prompt), 0, frames=args.frames, pixels=args.size)
    videos = []
    for backend in ("inductor", "svg"):
        model = load_model(args.weights).to(device)
        prepare(model, device)
        compile_it(model, backend)
        with observe() as forwards:
            videos.append(generate(model, prompt.to(device, torch.float32), args.steps))
        torch.compiler.reset()
    dense, sparse = videos
    difference = float((sparse - dense).norm() / dense.norm())
    count = sum(not forward.dense for forward in forwards)
    print(f"{count} sparse forwards of {len(forwards)}; the video differs by {difference:.3f} from the dense one")
    return difference, count
