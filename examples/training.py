"""The parts of training that are not the loop: stages, batches, the optimizers, one step, the averaged weights."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moving_shapes import video
from video_model import PATCH, SCALES, embed_scenes, give_frames, keyframes, no_caption, training_noise_levels


@dataclass(frozen=True)
class Stage:
    """So many steps on videos of one size, and how much guidance they teach (1: none)."""

    steps: int
    frames: int
    pixels: int
    batch: int
    guidance: float = 1.0

    @property
    def tokens(self) -> int:
        return self.frames * (self.pixels // PATCH[1]) ** 2


_STAGE = re.compile(r"([1-9]\d*):([1-9]\d*):([1-9]\d*):([1-9]\d*)(?::(\d+(?:\.\d+)?))?")


def parse_stages(text: str) -> list[Stage]:
    stages = []
    for part in text.split(","):
        found = _STAGE.fullmatch(part.strip())
        if found is None or float(found[5] or 1) < 1:
            raise argparse.ArgumentTypeError(
                f"a stage is steps:frames:pixels:batch or steps:frames:pixels:batch:guidance, "
                f"whole numbers above 0 and guidance 1 or more; got {part!r}"
            )
        steps, frames, pixels, batch = (int(number) for number in found.groups()[:4])
        stages.append(Stage(steps, frames, pixels, batch, float(found[5] or 1)))
    if any(stage.pixels % PATCH[1] for stage in stages):
        raise argparse.ArgumentTypeError(f"pixels must be a multiple of {PATCH[1]}: a token is {PATCH[1]} pixels wide")
    return stages


def stage_at(stages: list[Stage], step: int) -> Stage:
    for stage in stages:
        if step < stage.steps:
            return stage
        step -= stage.steps
    return stages[-1]


def attention_for(stage: Stage, device: torch.device) -> str:
    """diffusers' name of the attention to train with: on CPU cores, whole matrices of scores while they are small.

    The backward of CPU flash attention is slow: at 144 tokens a step takes 1.5 times, at 576 1.25 times as long with
    it; from 2,304 tokens on both are equal.
    """
    return "_native_math" if device.type == "cpu" and stage.tokens < 2048 else "native"


class Batches(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Step -> (videos, captions), drawn from the step's number, so that a resumed run sees what it would have seen."""

    def __init__(self, stages: list[Stage], first: int, total: int, seed: int) -> None:
        self.stages, self.first, self.total, self.seed = stages, first, total, seed

    def __len__(self) -> int:
        return self.total - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        step = self.first + index
        stage = stage_at(self.stages, step)
        drawn = [
            video(step * 4096 + item, stage.frames, stage.pixels, stage.pixels, self.seed, **SCALES)
            for item in range(stage.batch)
        ]
        return torch.stack([clip for clip, _ in drawn]), embed_scenes([scene for _, scene in drawn])


class Optimizers:
    """Muon for the matrices of the blocks, AdamW for all else, behind the few methods that training needs.

    Muon learns the same in about half the steps; it is meant for hidden matrices alone.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, weight in model.named_parameters():
            (matrices if name.startswith("blocks.") and weight.ndim == 2 else others).append(weight)
        # match_rms_adamw: its steps are as large as AdamW's, so one learning rate serves both.
        muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw)

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self, rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def train_step(
    model: nn.Module,
    optimizers: Optimizers,
    rate: float,
    clips: Tensor,
    text: Tensor,
    generator: torch.Generator,
    guidance: float = 1.0,
) -> float:
    """One step of flow matching: from noise and data, predict noise - data at a random level between. -> the loss.

    With `guidance` above 1 the model learns to answer as guided sampling would, in one call a step instead of two
    (model guidance, arXiv 2502.12154): the target moves by 1 - 1 / guidance of what the caption changes in the model's
    own answer, whose fixed point is plain + guidance * (captioned - plain).
    """
    device = clips.device
    level = training_noise_levels(len(clips), generator, frames=clips.shape[2]).to(device)
    noise = torch.randn(clips.shape, generator=generator).to(device)
    # One caption in ten is left out, so that samples can be guided.
    dropped = (torch.rand(len(clips), 1, 1, generator=generator) < 0.1).to(device)
    text = torch.where(dropped, no_caption(len(clips)).to(text), text)
    shown = give_frames(clips, frames_to_give(len(clips), clips.shape[2], generator).to(device))
    mixed = torch.cat([torch.lerp(clips, noise, level[:, None, None, None, None]), shown], dim=1)
    with torch.autocast(device.type, torch.bfloat16):
        (velocity,) = model(mixed, level * 1000, text, return_dict=False)
        target = noise - clips
        if guidance != 1.0:
            with torch.no_grad():
                (plain,) = model(mixed, level * 1000, no_caption(len(clips)).to(text), return_dict=False)
                target += (1 - 1 / guidance) * (velocity - plain).float()
    loss = nn.functional.mse_loss(velocity.float(), target)
    optimizers.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizers.step(rate)
    return float(loss.detach())


def frames_to_give(batch: int, frames: int, generator: torch.Generator) -> Tensor:
    """The frames that the model receives in training, bool [B, F]: of nine tenths of the videos all `keyframes`, of the
    rest the first and the last alone; none of single frames.
    """
    every = torch.rand(batch, 1, generator=generator) > 0.1
    shown = keyframes(frames)
    ends = torch.zeros_like(shown)
    ends[0] = ends[-1] = frames > 1
    return torch.where(every, shown, ends)


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, step: int) -> None:
    """Move the averaged weights towards the model's: the mean of about the last hundred steps.

    Not of more, as stages are short: at 0.998 the average still drew for the size of a stage 150 steps ago.
    """
    decay = min(0.99, (1 + step) / (10 + step))
    for mean, weight in zip(ema.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def learning_rate(step: int, total: int, peak: float, warmup: int = 200, cooldown: float = 0.25) -> float:
    """Linear warm-up, constant, and linear down to a twentieth over the last part of the run.

    Constant in between, so that a run can be made longer or stopped early without having planned for it.
    """
    end = max(1.0, cooldown * total)
    return peak * min(1.0, (step + 1) / warmup, max(0.05, (total - step) / end))
