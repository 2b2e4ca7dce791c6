"""Real diffusers pipelines of toy size: random transformers, given prompt embeddings, no text encoder and no VAE.

A run is `spec.call(pipe, steps, **changes)`. What a pipeline shows its transformer is its own: timesteps, dtypes,
guidance by two calls or by one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import models
from pipelines.parts import TEXT, draw, prompts, quiet


@dataclass(frozen=True)
class Spec:
    """One pipeline: how it is built, how it is called, and what its forwards look like."""

    name: str
    build: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]]
    size: dict[str, int]
    other_size: dict[str, int]
    forwards: int  # forwards of a step, by guidance
    exact: bool = True  # without attach, the timesteps tell the steps exactly
    denoisers: tuple[str, ...] = field(default=("transformer",))

    def call(self, pipe: Any, steps: int, **changes: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        given = self.arguments() | self.size | {"num_inference_steps": steps, "generator": generator} | changes
        return pipe(**given, output_type="latent", return_dict=False)[0]


def _wan(**more: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    return quiet(
        WanPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=models.case("wan").build(),
            scheduler=more.pop("scheduler", None) or FlowMatchEulerDiscreteScheduler(shift=5.0),
            **more,
        )
    )


def _wan22() -> Any:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return _wan(scheduler=scheduler, transformer_2=models.case("wan").build(), boundary_ratio=0.875)


def _wan_arguments() -> dict[str, Any]:
    return prompts(12) | {"guidance_scale": 3.0}


def _hunyuan() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline

    return quiet(
        HunyuanVideoPipeline(
            text_encoder=None,
            tokenizer=None,
            transformer=models.case("hunyuan_video").build(),
            vae=None,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder_2=None,
            tokenizer_2=None,
        )
    )


def _hunyuan_arguments() -> dict[str, Any]:
    mask = torch.ones(1, TEXT, dtype=torch.int64)
    mask[:, -3:] = 0
    given = {"prompt_embeds": draw(1, TEXT, 12), "pooled_prompt_embeds": draw(1, 8), "prompt_attention_mask": mask}
    return given | {"true_cfg_scale": 1.0}


def _cogvideox() -> Any:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    return quiet(
        CogVideoXPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            transformer=models.case("cogvideox_5b").build(),
            scheduler=CogVideoXDDIMScheduler(timestep_spacing="trailing"),
        )
    )


def _ltx() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline

    return quiet(
        LTXPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            transformer=models.case("ltx_video").build(),
        )
    )


def _ltx_arguments() -> dict[str, Any]:
    mask = torch.ones(1, TEXT, dtype=torch.int64)
    masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask.clone()}
    return prompts(12) | masks | {"guidance_scale": 3.0}


# Latents of 5 x 14 x 6 and, the second time, 3 x 10 x 8: the pipelines' pixel sizes are 8 (LTX: 32) times that.
_PIXELS = {"height": 112, "width": 48, "num_frames": 17}
_OTHER = {"height": 80, "width": 64, "num_frames": 9}
SPECS = (
    Spec("wan", _wan, _wan_arguments, _PIXELS, _OTHER, 2),
    Spec("wan_2_2", _wan22, _wan_arguments, _PIXELS, _OTHER, 2, False, ("transformer", "transformer_2")),
    Spec("hunyuan_video", _hunyuan, _hunyuan_arguments, _PIXELS, _OTHER, 1),
    Spec("cogvideox", _cogvideox, lambda: prompts(12) | {"guidance_scale": 3.0}, _PIXELS, _OTHER, 1),
    Spec("ltx", _ltx, _ltx_arguments, {"height": 224, "width": 96, "num_frames": 33},
         {"height": 160, "width": 128, "num_frames": 17}, 1),
)  # fmt: skip


def spec(name: str) -> Spec:
    return next(s for s in SPECS if s.name == name)


class TimedDiT(torch.nn.Module):
    """The smallest denoiser: latents [B, 4, F, H, W] and a timestep -> [B, F*H*W, 32].

    The timestep, a number or a tensor of one element, one a sample or one a token, is embedded by sine and cosine.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patch = torch.nn.Conv3d(4, 32, 1)
            self.time = torch.nn.Linear(2, 32)
            self.qkv = torch.nn.Linear(32, 96)
        self.eval()

    def forward(self, latents: torch.Tensor, timestep: Any) -> torch.Tensor:
        return self.attend(latents, timestep)

    def attend(self, latents: torch.Tensor, when: Any) -> torch.Tensor:
        x = self.patch(latents).flatten(2).transpose(1, 2)
        angle = (when if isinstance(when, torch.Tensor) else torch.full((1,), when)) / 1000
        waves = torch.stack([torch.sin(angle), torch.cos(angle)], -1).to(x.dtype)
        x = x + self.time(waves.reshape(-1, 1, 2) if angle.ndim < 2 else waves)
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (3 * self.qkv(x)).chunk(3, dim=-1))
        return x + torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
