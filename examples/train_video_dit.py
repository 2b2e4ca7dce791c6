"""Train the example model on the procedural videos: resumable, deterministic data, EMA, samples on the way.

    python examples/train_video_dit.py --out out/train                      on a GPU
    python examples/train_video_dit.py --out out/train --stages 4000:4:32:8,4000:8:32:4,2000:8:64:2     on CPU cores

A stage is steps:frames:pixels:batch; start short and small, finish long and large. Started again with the same
folder, training goes on where it stopped. The folder holds checkpoint.pt (this script's own, loaded with
weights_only), weights.safetensors (the averaged weights, bf16), losses.csv, losses.png and samples_*.png.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from moving_shapes import contact_sheet, parse, video
from video_model import build_model, embed_scenes, no_caption, sample, training_noise_levels

GPU_STAGES = "12000:8:32:64,12000:8:64:16,4000:16:64:8"
SHOWN = (
    "large red striped circle bouncing; sky",
    "small blue plain square orbiting, large yellow plain ring spinning; hills",
    "large green checked square spinning; waves",
    "small orange plain triangle bouncing; night",
)


@dataclass(frozen=True)
class Stage:
    """So many steps on videos of one size."""

    steps: int
    frames: int
    pixels: int
    batch: int


def parse_stages(text: str) -> list[Stage]:
    stages = []
    for part in text.split(","):
        numbers = part.split(":")
        if len(numbers) != 4 or not all(number.isdigit() and int(number) > 0 for number in numbers):
            raise argparse.ArgumentTypeError(f"a stage is steps:frames:pixels:batch, got {part!r}")
        stages.append(Stage(*map(int, numbers)))
    if any(stage.pixels % 2 for stage in stages):
        raise argparse.ArgumentTypeError("pixels must be even: a token is 2 x 2 pixels")
    return stages


def stage_at(stages: list[Stage], step: int) -> Stage:
    for stage in stages:
        if step < stage.steps:
            return stage
        step -= stage.steps
    return stages[-1]


class Batches(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Step -> (videos, captions), drawn from the step's number, so that a resumed run sees what it would have seen."""

    def __init__(self, stages: list[Stage], first: int, total: int, seed: int) -> None:
        self.stages, self.first, self.total, self.seed = stages, first, total, seed

    def __len__(self) -> int:
        return self.total - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        step = self.first + index
        stage = stage_at(self.stages, step)
        drawn = [
            video(step * 4096 + item, stage.frames, stage.pixels, stage.pixels, self.seed)
            for item in range(stage.batch)
        ]
        return torch.stack([clip for clip, _ in drawn]), embed_scenes([scene for _, scene in drawn])


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, clips: Tensor, text: Tensor, generator: torch.Generator
) -> float:
    """One step of flow matching: from noise and data, predict noise - data at a random level between. -> the loss."""
    device = clips.device
    level = training_noise_levels(len(clips), generator).to(device)
    noise = torch.randn(clips.shape, generator=generator).to(device)
    # One caption in ten is left out, so that samples can be guided.
    dropped = (torch.rand(len(clips), 1, 1, generator=generator) < 0.1).to(device)
    text = torch.where(dropped, no_caption(len(clips)).to(text), text)
    mixed = torch.lerp(clips, noise, level[:, None, None, None, None])
    with torch.autocast(device.type, torch.bfloat16):
        (velocity,) = model(mixed, level * 1000, text, return_dict=False)
    loss = nn.functional.mse_loss(velocity.float(), noise - clips)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, step: int) -> None:
    """Move the averaged weights towards the model's; slower as training goes on."""
    decay = min(0.9995, (1 + step) / (10 + step))
    for mean, weight in zip(ema.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up over 500 steps, then down to a tenth along a cosine."""
    if step < 500:
        return peak * (step + 1) / 500
    share = torch.tensor((step - 500) / max(1, total - 500))
    return peak * (0.1 + 0.45 * (1 + float(torch.cos(torch.pi * share))))


def save(path: Path, state: object) -> None:
    """Write a checkpoint in one step, so that a run that is killed leaves the last whole one."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def export_weights(ema: nn.Module, path: Path) -> None:
    """The averaged weights in bf16; rotary tables are computed anew and left out."""
    weights = {name: tensor.detach().to(torch.bfloat16).contiguous().cpu() for name, tensor in ema.named_parameters()}
    save_file(weights, path)


def show_samples(ema: nn.Module, stage: Stage, device: torch.device, path: Path) -> None:
    text = embed_scenes([parse(caption) for caption in SHOWN]).to(device)
    shape = (len(SHOWN), 3, stage.frames, stage.pixels, stage.pixels)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        clips = sample(ema, noise, text, steps=20, guidance=2.0)
    Image.fromarray(contact_sheet(list(clips.float().cpu()))).save(path)


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
    model = build_model(args.layers, args.heads).to(device)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    first, losses = 0, []
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first, losses = state["step"], [tuple(pair) for pair in state["losses"]]
        print(f"going on from step {first} of {total}")
    loader = torch.utils.data.DataLoader(
        Batches(args.stages, first, total, args.seed), batch_size=None, num_workers=args.workers
    )
    forward = torch.compile(model) if args.compile else model
    recent: list[float] = []
    with tqdm(loader, total=total, initial=first, desc="training", unit="step") as bar:
        for step, (clips, text) in enumerate(bar, first):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, total, args.lr)
            # From the step's number, like the data: a resumed run draws the same noise.
            generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
            loss = train_step(forward, optimizer, clips.to(device), text.to(device), generator)
            average(ema, model, step)
            recent.append(loss)
            done = step + 1
            if done % 50 == 0 or done == total:
                losses.append((done, sum(recent) / len(recent)))
                recent.clear()
                bar.set_postfix(loss=f"{losses[-1][1]:.4f}")
            if done % args.save_every == 0 or done == total:
                state = {"model": model.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
                save(checkpoint, {**state, "step": done, "losses": losses})
                export_weights(ema, args.out / "weights.safetensors")
                with open(args.out / "losses.csv", "w", newline="") as file:
                    csv.writer(file).writerows([("step", "loss"), *losses])
            if done % args.sample_every == 0 or done == total:
                show_samples(ema, stage_at(args.stages, step), device, args.out / f"samples_{done:06d}.png")
                draw_losses(losses, args.out / "losses.png")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, samples and the loss curve")
    parser.add_argument("--stages", type=parse_stages, default=GPU_STAGES, help="steps:frames:pixels:batch, ...")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(12, max(0, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--sample-every", type=int, default=2000, help="steps between sample sheets")
    parser.add_argument("--compile", action="store_true", help="compile the training step (worth it on a GPU)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


if __name__ == "__main__":
    train(parse_args())
