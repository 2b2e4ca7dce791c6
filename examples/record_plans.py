"""Record a run of the example model, draw its plans, and find the layers whose sparsity costs most.

    python examples/record_plans.py                      pictures and the recording go to out/plans
    python examples/record_plans.py --out docs/pictures

All files go into one folder: kinds.png, densities.png, margins.png, attention.png,
run.npz and run.json; the two tables are
printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import svg_compile
from moving_shapes import random_scene
from svg_compile import HeadKind, VideoLayout
from svg_compile.inspection.pictures import save
from svg_compile.inspection.recording.attention_pictures import draw_attention, sample_attention
from svg_compile.inspection.recording.plan_pictures import draw_densities, draw_kinds, draw_margins
from video_model import WEIGHTS, denoise, keyframes_of, load_model


class VideoAttention(TorchFunctionMode):
    """Keeps the operands of each self-attention over `tokens` tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.operands: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and kwargs["key"].shape[2] == self.tokens:
            self.operands.append((kwargs["query"], kwargs["key"], kwargs["value"]))
        return func(*args, **(kwargs or {}))


def draw_clearest(operands: list[tuple[Tensor, Tensor, Tensor]], layout: VideoLayout, density: float) -> Any:
    """The temporal head whose mask keeps most of its attention."""
    candidates = []
    for query, key, value in operands:
        plan = svg_compile.profile_heads(query, key, value, layout, density=density)
        for head in range(query.shape[1]):
            kept = sample_attention(query, key, layout, plan, head=head, rows=64).kept
            candidates.append((plan[0, head, 0] == HeadKind.TEMPORAL, kept, (query, key, layout, plan), head))
    *_, drawn, head = max(candidates, key=lambda candidate: candidate[:2])
    return draw_attention(*drawn, head=head)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    layout = VideoLayout(args.frames, args.size // 4, args.size // 4)
    options = {"density": args.density, "dense_steps": 0.25, "dense_layers": 0, "min_tokens": args.min_tokens}
    model = load_model(args.weights)
    prompt, _ = keyframes_of(random_scene(np.random.default_rng([5, 0])), 0, frames=args.frames, pixels=args.size)

    fast = torch.compile(model, backend="svg", options={**options, "num_inference_steps": args.steps})
    with svg_compile.record(model, layout=layout) as recording:
        videos = list(denoise(fast, prompt, steps=args.steps))
    print(recording.summary)
    recording.save(args.out / "run")
    save(draw_kinds(recording), args.out / "kinds.png")
    save(draw_densities(recording), args.out / "densities.png")
    save(draw_margins(recording), args.out / "margins.png")

    # The forward of a step in the middle, as it comes after the dense ones.
    middle = args.steps // 2
    hidden = torch.cat([videos[middle - 1], prompt.given], dim=1)
    inputs = {"hidden_states": hidden, "timestep": torch.tensor([500.0]), "encoder_hidden_states": prompt.text}
    print(svg_compile.bisect(model, inputs, options=options))
    with VideoAttention(layout.tokens) as seen, torch.no_grad():
        model(**inputs)
    save(draw_clearest(seen.operands, layout, args.density), args.out / "attention.png")
    print(f"wrote {args.out}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="pixels a side; a token is 4 x 4 of them")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--min-tokens", type=int, default=2048, help="shorter sequences stay dense")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=Path("out/plans"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
