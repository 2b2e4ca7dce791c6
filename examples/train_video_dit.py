"""Train the example model on the procedural videos: resumable, deterministic data, EMA, samples on the way.

    python examples/train_video_dit.py --out out/train                                  on a GPU
    python examples/train_video_dit.py --out out/train --stages cpu                     on CPU cores
    python examples/train_video_dit.py --out out/more --init examples/weights/diffusion_pytorch_model.safetensors

A stage is steps:frames:pixels:batch, or steps:frames:pixels:batch:guidance to teach the model guidance. Start with
single frames, for shapes, and small; finish long and large. Started again with the same folder, training goes on where
it stopped. The folder holds checkpoint.pt (this script's own, loaded with
weights_only), weights/ (the averaged weights in bf16 and their config, as diffusers keeps them), losses.csv,
losses.png and samples_*.png.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from diffusers import attention_backend
from PIL import Image
from torch import nn
from tqdm import tqdm

from moving_shapes import contact_sheet, parse
from training import (
    Batches,
    Optimizers,
    Stage,
    attention_for,
    average,
    learning_rate,
    parse_stages,
    stage_at,
    train_step,
)
from video_model import build_model, keyframes_of, load_weights, sample, save_weights

STAGES = {
    "gpu": "8000:1:48:128,4000:8:48:48,2000:16:48:16,2000:16:96:8",
    "cpu": "3000:1:32:128,1500:4:48:16,1000:16:48:2,500:4:96:3,500:16:96:1",
}
SHOWN = (
    "large red striped circle bouncing; sky",
    "small blue plain square orbiting, large yellow plain ring spinning; hills",
    "large green checked triangle growing; waves",
    "small white plain circle bouncing, small orange plain circle orbiting; night",
)


def save(path: Path, state: object) -> None:
    """Write a checkpoint in one step, so that a run that is killed leaves the last whole one."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def show_samples(ema: nn.Module, stage: Stage, device: torch.device, path: Path) -> None:
    """Draw a sheet of samples at the stage's size."""
    # Large videos are slow on CPU cores; two show enough.
    shown = SHOWN if device.type != "cpu" or stage.pixels < 64 else SHOWN[:2]
    rows = []
    for caption in shown:
        prompt, truth = keyframes_of(parse(caption), 0, frames=stage.frames, pixels=stage.pixels)
        with torch.autocast(device.type, torch.bfloat16):
            clip = sample(ema, prompt.to(device, torch.float32), steps=16)[0]
        # Below each sample, the scene whose keyframes were given.
        rows += [clip.float().cpu(), truth]
    Image.fromarray(contact_sheet(rows)).save(path)


def draw_losses(losses: list[tuple[int, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(*zip(*losses, strict=True), linewidth=1)
    axes.set(xlabel="step", ylabel="flow matching loss", yscale="log", title="Training loss (mean over 50 steps)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    total = sum(stage.steps for stage in args.stages)
    model = build_model(args.layers, args.heads, args.ffn).to(device)
    if args.init is not None:
        load_weights(model, args.init)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizers = Optimizers(model, args.lr)
    first, losses = 0, []
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizers.load_state_dict(state["optimizers"])
        first, losses = state["step"], [tuple(pair) for pair in state["losses"]]
        print(f"going on from step {first} of {total}")
    loader = torch.utils.data.DataLoader(
        Batches(args.stages, first, total, args.seed), batch_size=None, num_workers=args.workers
    )
    forward: Any = torch.compile(model) if args.compile else model
    recent: list[float] = []
    with tqdm(loader, total=total, initial=first, desc="training", unit="step", mininterval=args.show_every) as bar:
        for step, (clips, text) in enumerate(bar, first):
            # From the step's number, like the data: a resumed run draws the same noise.
            generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
            rate = learning_rate(step, total, args.lr, cooldown=args.cooldown)
            clips, text = clips.to(device), text.to(device)
            stage = stage_at(args.stages, step)
            with attention_backend(attention_for(stage, device)):
                recent.append(train_step(forward, optimizers, rate, clips, text, generator, stage.guidance))
            average(ema, model, step)
            done = step + 1
            if done % 50 == 0 or done == total:
                losses.append((done, sum(recent) / len(recent)))
                recent.clear()
                bar.set_postfix(loss=f"{losses[-1][1]:.4f}", refresh=False)
            if done % args.save_every == 0 or done == total:
                state = {"model": model.state_dict(), "ema": ema.state_dict(), "optimizers": optimizers.state_dict()}
                write(args.out, {**state, "step": done, "losses": losses}, ema)
            if done % args.sample_every == 0 or done == total:
                show_samples(ema, stage, device, args.out / f"samples_{done:06d}.png")
                draw_losses(losses, args.out / "losses.png")


def write(folder: Path, state: dict[str, Any], ema: nn.Module) -> None:
    """Everything that a stopped run leaves: the checkpoint, the averaged weights and the losses so far."""
    save(folder / "checkpoint.pt", state)
    save_weights(ema, folder / "weights")
    with open(folder / "losses.csv", "w", newline="") as file:
        csv.writer(file).writerows([("step", "loss"), *state["losses"]])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, samples and the loss curve")
    parser.add_argument("--init", type=Path, help="weights (safetensors) that a new run starts from")
    parser.add_argument("--stages", default=None, help='"gpu", "cpu" or steps:frames:pixels:batch[:guidance], ...')
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--ffn", type=int, default=1024, help="width of the MLPs")
    parser.add_argument("--lr", type=float, default=1.2e-3, help="peak learning rate")
    parser.add_argument("--cooldown", type=float, default=0.25, help="last part of the run, in which the rate falls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(12, max(0, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--sample-every", type=int, default=500, help="steps between sample sheets")
    parser.add_argument("--show-every", type=float, default=1.0, help="seconds between updates of the progress bar")
    parser.add_argument("--compile", action="store_true", help="compile the training step (worth it on a GPU)")
    parser.add_argument("--device", default=device)
    args = parser.parse_args(argv)
    named = args.stages or ("gpu" if args.device.startswith("cuda") else "cpu")
    try:
        args.stages = parse_stages(STAGES.get(named, named))
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --stages: {error}")
    return args


if __name__ == "__main__":
    # Under autocast a norm's weights stay float32; that it cannot be fused then is no news.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    train(parse_args())
