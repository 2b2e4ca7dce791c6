"""The example model: diffusers' WanTransformer3DModel, small, on pixels, told what to draw by a caption's words.

Shared by training and sampling, so that both build the same model, embed captions alike and use one schedule.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from torch import Tensor

from moving_shapes import CAPTION_LENGTH, VOCABULARY, Scene

TEXT_DIM = 64
# One token is a patch of 2 x 2 pixels of one frame.
PATCH = (1, 2, 2)
SHIFT = 3.0


def build_model(layers: int = 10, heads: int = 4) -> WanTransformer3DModel:
    """About 11 million parameters at the defaults; heads of 64 channels, as CogVideoX has them."""
    return WanTransformer3DModel(
        patch_size=PATCH,
        num_attention_heads=heads,
        attention_head_dim=64,
        num_layers=layers,
        ffn_dim=4 * 64 * heads,
        in_channels=3,
        out_channels=3,
        text_dim=TEXT_DIM,
        freq_dim=128,
        rope_max_seq_len=128,
    )


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
    """The embedding of no words at all, for guidance: float32 [batch, CAPTION_LENGTH, TEXT_DIM]."""
    return embed_words(torch.zeros(batch, CAPTION_LENGTH, dtype=torch.int64))


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Flow matching, shifted towards noise as for long token sequences."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def training_noise_levels(batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels in (0, 1), float32 [B]: logit-normal, with the schedule's shift."""
    level = torch.sigmoid(torch.randn(batch, generator=generator))
    return SHIFT * level / (1 + (SHIFT - 1) * level)


@torch.no_grad()
def sample(
    transformer: Callable[..., Any],
    noise: Tensor,
    text: Tensor,
    *,
    steps: int,
    guidance: float = 1.0,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Denoise `noise` [B, 3, F, H, W] to a video of the same shape; guidance 1 makes one call a step, else two."""
    schedule = scheduler()
    schedule.set_timesteps(steps, device=noise.device)
    video = noise
    empty = no_caption(noise.shape[0]).to(text) if guidance != 1.0 else None
    for index, timestep in enumerate(schedule.timesteps):
        when = timestep.expand(noise.shape[0])
        (velocity,) = transformer(video, when, text, return_dict=False)
        if empty is not None:
            (plain,) = transformer(video, when, empty, return_dict=False)
            velocity = plain + guidance * (velocity - plain)
        video = schedule.step(velocity, timestep, video, return_dict=False)[0]
        if on_step is not None:
            on_step(index)
    return video
