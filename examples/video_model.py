"""The example model: diffusers' WanTransformer3DModel, small, on pixels, told what to draw by words and keyframes.

Shared by training, demo and study, so that all build the same model, embed captions alike and use one schedule.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.utils import logging
from safetensors.torch import load_file
from torch import Tensor

from moving_shapes import CAPTION_LENGTH, VOCABULARY, Scene, render

WEIGHTS = Path(__file__).resolve().parent / "weights"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
TEXT_DIM = 64
# One token is a patch of 4 x 4 pixels of one frame.
PATCH = (1, 4, 4)
# The videos' scale: the model sees shapes of one size in pixels, whatever size the video has.
SCALES = {"pixels_per_unit": 48.0, "frames_per_unit": 15.0}
# Given are every fifth frame and the last: the model draws what moves between them.
KEYFRAME_EVERY = 5
# In addition to the noisy video: the given frames (zeros elsewhere), and a map of their positions.
GIVEN_CHANNELS = 4
# Towards noise, as for real video models: many frames show one scene, which little noise would not hide.
SHIFT = 5.0


def build_model(layers: int = 6, heads: int = 4, ffn: int = 1024) -> WanTransformer3DModel:
    """About 7 million parameters at the defaults; heads of 64 channels, as CogVideoX has them."""
    return WanTransformer3DModel(
        patch_size=PATCH,
        num_attention_heads=heads,
        attention_head_dim=64,
        num_layers=layers,
        ffn_dim=ffn,
        in_channels=3 + GIVEN_CHANNELS,
        out_channels=3,
        text_dim=TEXT_DIM,
        freq_dim=128,
        rope_max_seq_len=128,
    )


def save_weights(model: WanTransformer3DModel, folder: Path) -> None:
    """Write config.json and the weights in bf16 to `folder`, as diffusers keeps models."""
    with _quiet_diffusers():
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)


def load_model(folder: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> WanTransformer3DModel:
    """The model that `save_weights` wrote to `folder`, or that of this repository."""
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"no model in {folder}: train one with examples/train_video_dit.py --out FOLDER")
    # Not from_pretrained: for this class it asks for the accelerate package.
    model = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder))
    load_weights(model, folder / WEIGHTS_NAME)
    for name, weight in model.named_parameters():
        # Norms and time embedding stay float32, as from_pretrained keeps them.
        if not any(part in name.split(".") for part in model._keep_in_fp32_modules):
            weight.data = weight.data.to(dtype)
    return model.eval()


def load_weights(model: WanTransformer3DModel, file: Path) -> None:
    """Fill `model` with the weights of a safetensors file; it must be of the same shape."""
    model.load_state_dict(load_file(file))


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    # It warns that some layers should stay in fp32 when a whole model is cast; that is meant here.
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def embed_words(words: Tensor) -> Tensor:
    """Captions int64 [B, CAPTION_LENGTH] -> float32 [B, CAPTION_LENGTH, TEXT_DIM].

    Fixed random vectors for word and place: the model's own text projection learns what they mean.
    """
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(len(VOCABULARY), TEXT_DIM, generator=generator)
    place = torch.randn(CAPTION_LENGTH, TEXT_DIM, generator=generator)
    return (table.to(words.device)[words] + place.to(words.device)) / 2**0.5


def embed_scenes(scenes: list[Scene]) -> Tensor:
    """float32 [len(scenes), CAPTION_LENGTH, TEXT_DIM]."""
    return embed_words(torch.stack([scene.tokens() for scene in scenes]))


def no_caption(batch: int) -> Tensor:
    """The embedding of no words at all: float32 [batch, CAPTION_LENGTH, TEXT_DIM]."""
    return embed_words(torch.zeros(batch, CAPTION_LENGTH, dtype=torch.int64))


def give_frames(clips: Tensor, given: Tensor) -> Tensor:
    """The model's input for known frames: [B, 4, F, H, W] of clips [B, 3, F, H, W], given bool [B, F]."""
    where = given[:, None, :, None, None].to(clips)
    return torch.cat([clips * where, where.expand(-1, -1, -1, *clips.shape[3:])], dim=1)


def keyframes(frames: int) -> Tensor:
    """Which frames of a video are given, bool [frames]: every fifth and the last; a single frame is not."""
    place = torch.arange(frames)
    return ((place % KEYFRAME_EVERY == 0) | (place == frames - 1)) & torch.tensor(frames > 1)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Flow matching, shifted towards noise as for long token sequences."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def training_noise_levels(batch: int, generator: torch.Generator, *, frames: int) -> Tensor:
    """Noise levels in (0, 1), float32 [B]: logit-normal, with the schedule's shift, and stratified over the batch.

    Half the shift for single frames: there is nothing to average over, so less noise hides what they show.
    """
    shift = SHIFT if frames > 1 else SHIFT / 2
    quantile = (torch.rand(batch, generator=generator) + torch.arange(batch)) / batch
    level = torch.sigmoid(torch.special.ndtri(quantile.clamp(1e-4, 1 - 1e-4)) * 1.2)
    return shift * level / (1 + (shift - 1) * level)


@dataclass(frozen=True)
class Prompt:
    """The inputs of a generation: noise [B, 3, F, H, W] in float32, the caption's words [B, CAPTION_LENGTH,
    TEXT_DIM] in the model's dtype, and the frames that are given [B, 4, F, H, W] (`give_frames`).
    """

    noise: Tensor
    text: Tensor
    given: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Prompt:
        """On a device, and the caption in a dtype."""
        return Prompt(self.noise.to(device), self.text.to(device, dtype), self.given.to(device))


def keyframes_of(scene: Scene, seed: int, *, frames: int, pixels: int) -> tuple[Prompt, Tensor]:
    """(the prompt to draw a scene between its keyframes, the scene itself, float32 [3, F, H, W]).

    `seed` decides where the scene's things are and how fast they go, and the noise.
    """
    truth = render(scene, np.random.default_rng(seed), frames, pixels, pixels, **SCALES)
    noise = torch.randn((1, *truth.shape), generator=torch.Generator().manual_seed(seed))
    return Prompt(noise, embed_scenes([scene]), give_frames(truth[None], keyframes(frames)[None])), truth


def denoise(
    transformer: Callable[..., Any], prompt: Prompt, *, steps: int, start: int = 0, video: Tensor | None = None
) -> Iterator[Tensor]:
    """Denoise from the prompt's noise and yield the video, float32 [B, 3, F, H, W], after each step.

    With `start` it goes on from the `video` that `start` steps have left.
    """
    schedule = scheduler()
    schedule.set_timesteps(steps, device=prompt.noise.device)
    video = prompt.noise if video is None else video
    for timestep in schedule.timesteps[start:]:
        seen = torch.cat([video, prompt.given], dim=1).to(prompt.text.dtype)
        with torch.no_grad():
            (velocity,) = transformer(seen, timestep.expand(len(seen)), prompt.text, return_dict=False)
            video = schedule.step(velocity.float(), timestep, video, return_dict=False)[0]
        yield video


def sample(transformer: Callable[..., Any], prompt: Prompt, *, steps: int) -> Tensor:
    """The last of `denoise`."""
    *_, last = denoise(transformer, prompt, steps=steps)
    return last
