"""CogVideoX and others with text before the video, and those that attend within frames and along time apart."""

from __future__ import annotations

from typing import Any

import models
import pipelines
from pipelines.parts import (
    SIZE,
    TEXT,
    clip,
    cogvideox_vae,
    draw,
    flow,
    picture,
    prompts,
    quiet,
    seeded,
    t5,
    text_mask,
    wan_vae,
)
from pipelines.rows import Row

_ROTARY = {"use_rotary_positional_embeddings": True}
_CONFIG = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
           "time_embed_dim": 16, "text_embed_dim": 12, "num_layers": 2, "max_text_seq_length": TEXT,
           "sample_frames": 17, "sample_height": 14, "sample_width": 6}  # fmt: skip
_FORMER: dict[str, Any] = {"text": TEXT, "text_first": True, "each": True}


def _cog(cls: str, transformer: str = "CogVideoXTransformer3DModel", scheduler: Any = None, **config: Any) -> Any:
    import diffusers
    from diffusers.pipelines.consisid import pipeline_consisid

    # diffusers hides ConsisID where OpenCV is not installed, which only draws faces for it.
    home: Any = pipeline_consisid if cls == "ConsisIDPipeline" else diffusers
    return quiet(
        getattr(home, cls)(
            tokenizer=None,
            text_encoder=None,
            vae=cogvideox_vae(),
            transformer=models.build(transformer, **(_CONFIG | config)),
            scheduler=scheduler or diffusers.CogVideoXDDIMScheduler(timestep_spacing="trailing"),
        )
    )


def _text(**more: Any) -> dict[str, Any]:
    return SIZE | prompts(12) | {"guidance_scale": 3.0} | more


def _masks() -> dict[str, Any]:
    return {"prompt_attention_mask": text_mask(), "negative_prompt_attention_mask": text_mask(),
            "negative_prompt": None}  # fmt: skip


def _consisid() -> Any:
    from diffusers import CogVideoXDPMScheduler

    return _cog("ConsisIDPipeline", "ConsisIDTransformer3DModel", CogVideoXDPMScheduler(), **_ROTARY,
                in_channels=8, is_train_face=True, cross_attn_interval=1, cross_attn_dim_head=4, cross_attn_num_heads=2,
                LFE_id_dim=6, LFE_vit_dim=6, LFE_depth=5, LFE_dim_head=8, LFE_num_heads=2, LFE_num_id_token=1,
                LFE_num_querie=1, LFE_output_dim=21, LFE_ff_mult=1, LFE_num_scale=1)  # fmt: skip


def _allegro() -> Any:
    from diffusers import AllegroPipeline, EulerAncestralDiscreteScheduler

    scheduler = EulerAncestralDiscreteScheduler()
    return quiet(AllegroPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler,
                                 transformer=models.case("allegro").build()))  # fmt: skip


def _latte_transformer() -> Any:
    return models.build(
        "LatteTransformer3DModel", num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8,
        num_layers=2, cross_attention_dim=32, caption_channels=12, patch_size=2, sample_size=14, video_length=5,
        attention_bias=True, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        num_embeds_ada_norm=1000, activation_fn="gelu-approximate",
    )  # fmt: skip


def _latte() -> Any:
    from diffusers import DDIMScheduler, LattePipeline

    return quiet(LattePipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=DDIMScheduler(),
                               transformer=_latte_transformer()))  # fmt: skip


def _easyanimate() -> Any:
    import diffusers

    vae = seeded("AutoencoderKLMagvit", latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
                 norm_num_groups=2)  # fmt: skip
    transformer = models.build(
        "EasyAnimateTransformer3DModel", num_attention_heads=2, attention_head_dim=16, out_channels=4, num_layers=2,
        mmdit_layers=1, patch_size=2, time_embed_dim=16, text_embed_dim=12, add_norm_text_encoder=True,
        in_channels=4,
    )  # fmt: skip
    return quiet(diffusers.EasyAnimatePipeline(vae=vae, text_encoder=t5(), tokenizer=None, transformer=transformer,
                                         scheduler=flow()))  # fmt: skip


def _mochi() -> Any:
    from diffusers import MochiPipeline

    return quiet(MochiPipeline(scheduler=flow(), vae=None, text_encoder=None, tokenizer=None,
                               transformer=models.case("mochi").build()))  # fmt: skip


def _sana(cls: str) -> Any:
    import diffusers

    return quiet(getattr(diffusers, cls)(tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=flow(),
                                         transformer=models.case("sana_video").build()))  # fmt: skip


_SANA = {"height": 96, "width": 64, "num_frames": ..., "frames": 17, "use_resolution_binning": False}
_LINEAR = "its self-attention is linear: nothing to make sparse"
ROWS = (
    Row("CogVideoX 1.0 T2V (5B)", "CogVideoXPipeline", pipelines.spec("cogvideox").build, _text, **_FORMER, quick=True),
    Row("CogVideoX 1.0 T2V (2B)", "CogVideoXPipeline", lambda: _cog("CogVideoXPipeline"), _text, **_FORMER),
    Row("CogVideoX 1.5 T2V", "CogVideoXPipeline",
        lambda: _cog("CogVideoXPipeline", **_ROTARY, patch_size_t=2, patch_bias=False, sample_height=32,
                     sample_width=32),
        lambda: _text(num_frames=37), **_FORMER),
    Row("CogVideoX 1.0 I2V", "CogVideoXImageToVideoPipeline",
        lambda: _cog("CogVideoXImageToVideoPipeline", **_ROTARY, in_channels=8, use_learned_positional_embeddings=True),
        lambda: _text(image=picture()), **_FORMER),
    Row("CogVideoX V2V", "CogVideoXVideoToVideoPipeline", lambda: _cog("CogVideoXVideoToVideoPipeline", **_ROTARY),
        lambda: _text(num_frames=..., video=clip(), strength=0.5), **_FORMER, steps=4, skipped=2),
    Row("CogVideoX Fun control", "CogVideoXFunControlPipeline",
        lambda: _cog("CogVideoXFunControlPipeline", **_ROTARY, in_channels=8),
        lambda: _text(num_frames=..., control_video=clip()), **_FORMER),
    Row("ConsisID", "ConsisIDPipeline", _consisid,
        lambda: _text(image=picture(), id_vit_hidden=[draw(1, 2, 6)] * 5, id_cond=draw(1, 6)), **_FORMER),
    Row("Allegro", "AllegroPipeline", _allegro, lambda: _text(num_frames=5 * 4, **_masks()), each=True),
    Row("EasyAnimate T2V", "EasyAnimatePipeline", _easyanimate,
        lambda: _text(**_masks()), **_FORMER),
    Row("Mochi", "MochiPipeline", _mochi,
        lambda: {**_text(num_frames=25, **_masks()), "prompt_embeds": draw(1, TEXT, 16),
                 "negative_prompt_embeds": draw(1, TEXT, 16, seed=1)}, text=TEXT - 3, whole="dense", blocks="dense",
        each=True, note="its text is cut to the prompt's length in each attention, which then runs in no graph"),
    Row("Latte", "LattePipeline", _latte,
        lambda: _text(num_frames=..., video_length=5, negative_prompt=None, height=112, width=112),
        whole="dense", blocks="dense", each=True,
        note="attends within frames and along time apart, never over both: nothing to make sparse"),
    Row("SANA-Video T2V", "SanaVideoPipeline", lambda: _sana("SanaVideoPipeline"),
        lambda: _text(**_SANA, **_masks()), grid=(5, 6, 4), whole="dense", blocks="dense", each=True, note=_LINEAR),
    Row("SANA-Video I2V", "SanaImageToVideoPipeline", lambda: _sana("SanaImageToVideoPipeline"),
        lambda: _text(image=picture(96, 64), **_SANA, **_masks()), grid=(5, 6, 4), whole="dense", blocks="dense",
        each=True, note=_LINEAR),
)  # fmt: skip
