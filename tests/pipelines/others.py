"""Kandinsky 5 and 6, whose latents have their channels last, and Helios, which draws a video after the video so far."""

from __future__ import annotations

from typing import Any

import torch

import models
from pipelines.parts import SIZE, TEXT, draw, flow, hunyuan_vae, picture, prompts, quiet, wan_vae
from pipelines.rows import HISTORY, Row

_KANDINSKY = {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 8, "time_dim": 16,
              "model_dim": 32, "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
              "visual_cond": True}  # fmt: skip
# Kandinsky's latents must be divisible by 16 pixels a side: 5 x 7 x 3 tokens of 2 x 2 latents.


def _kandinsky(cls: str, transformer: str, **more: Any) -> Any:
    import diffusers

    config = _KANDINSKY | more.pop("config", {})
    return quiet(getattr(diffusers, cls)(text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
                                         transformer=models.build(transformer, **config), vae=hunyuan_vae(),
                                         scheduler=flow(), **more))  # fmt: skip


def _text5(**more: Any) -> dict[str, Any]:
    lengths = torch.tensor([0, TEXT], dtype=torch.int32)
    return SIZE | {"prompt_embeds_qwen": draw(1, TEXT, 12), "prompt_embeds_clip": draw(1, 8),
                   "negative_prompt_embeds_qwen": draw(1, TEXT, 12, seed=1),
                   "negative_prompt_embeds_clip": draw(1, 8, seed=1), "prompt_cu_seqlens": lengths,
                   "negative_prompt_cu_seqlens": lengths, "guidance_scale": 3.0} | more  # fmt: skip


def _text6(**more: Any) -> dict[str, Any]:
    pooled = {"pooled_prompt_embeds": draw(1, 8), "negative_pooled_prompt_embeds": draw(1, 8, seed=1)}
    return SIZE | prompts(12) | pooled | {"guidance_scale": 3.0, "sample_audio": False} | more


def _helios() -> Any:
    import diffusers

    given = {key: models.WAN[key] for key in models.WAN if key != "rope_max_seq_len"} | {"rope_dim": (4, 6, 6)}
    scheduler = diffusers.HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True)
    transformer = models.build("HeliosTransformer3DModel", **given)
    return quiet(diffusers.HeliosPipeline(tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=scheduler,
                                          transformer=transformer))  # fmt: skip


ROWS = (
    Row("Kandinsky 5 T2V", "Kandinsky5T2VPipeline",
        lambda: _kandinsky("Kandinsky5T2VPipeline", "Kandinsky5Transformer3DModel"), _text5),
    Row("Kandinsky 5 I2V", "Kandinsky5I2VPipeline",
        lambda: _kandinsky("Kandinsky5I2VPipeline", "Kandinsky5Transformer3DModel"), lambda: _text5(image=picture())),
    Row("Kandinsky 6 T2V", "Kandinsky6TI2VAPipeline",
        lambda: _kandinsky("Kandinsky6TI2VAPipeline", "Kandinsky6Transformer3DModel"), _text6),
    Row("Kandinsky 6 I2V", "Kandinsky6TI2VAPipeline",
        lambda: _kandinsky("Kandinsky6TI2VAPipeline", "Kandinsky6Transformer3DModel",
                           config={"visual_token_type_num_embeddings": 2}),
        lambda: _text6(image=picture()), grid=(5, 7, 3), text=21,
        note="the image is the last frame of the sequence, and attended in full"),
    Row("Helios", "HeliosPipeline", _helios,
        lambda: {"height": 96, "width": 128, "num_frames": 45} | prompts(12)
        | {"guidance_scale": 3.0, "num_latent_frames_per_chunk": 12}, grid=(12, 6, 8), text=124, text_first=True,
        note=HISTORY),
)  # fmt: skip
