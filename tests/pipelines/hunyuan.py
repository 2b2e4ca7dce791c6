"""HunyuanVideo and its relatives: text in the sequence, after the video."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import models
import pipelines
from pipelines.parts import (
    SIZE,
    TEXT,
    draw,
    flow,
    hunyuan_vae,
    picture,
    prompts,
    quiet,
    seeded,
    siglip,
    text_mask,
    wan_vae,
)
from pipelines.rows import HISTORY, Row

_HUNYUAN = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
            "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 12, "pooled_projection_dim": 8,
            "rope_axes_dim": (4, 6, 6)}  # fmt: skip
# Patches of 2 x 2 latents: 5 x 7 x 3 tokens.
_GIVEN = SIZE | {"prompt_embeds": draw(1, TEXT, 12), "pooled_prompt_embeds": draw(1, 8),
                 "prompt_attention_mask": text_mask()}  # fmt: skip
_NEGATIVE = {"negative_prompt_embeds": draw(1, TEXT, 12, seed=1), "negative_pooled_prompt_embeds": draw(1, 8, seed=1),
             "negative_prompt_attention_mask": text_mask()}  # fmt: skip


def _pipe(cls: str, transformer: str = "HunyuanVideoTransformer3DModel", **more: Any) -> Any:
    import diffusers

    config = _HUNYUAN | more.pop("config", {})
    more = {"vae": hunyuan_vae(), "scheduler": flow(shift=7.0)} | more
    return quiet(
        getattr(diffusers, cls)(
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=models.build(transformer, **config),
            **more,
        )
    )


def _i2v(kind: str, **config: Any) -> Any:
    return _pipe("HunyuanVideoImageToVideoPipeline", image_processor=None,
                 config={"image_condition_type": kind, **config})  # fmt: skip


def _framepack() -> Any:
    return _pipe("HunyuanVideoFramepackPipeline", "HunyuanVideoFramepackTransformer3DModel", **siglip(),
                 config={"has_image_proj": True, "image_proj_dim": 10, "has_clean_x_embedder": True,
                         "image_condition_type": None})  # fmt: skip


def _hunyuan15(cls: str, task: str, **more: Any) -> Any:
    import diffusers

    vae = seeded("AutoencoderKLHunyuanVideo15", latent_channels=4, block_out_channels=(16, 16, 16, 16, 16),
                 layers_per_block=1, downsample_match_channel=False, upsample_match_channel=False)  # fmt: skip
    transformer = models.build(
        "HunyuanVideo15Transformer3DModel", in_channels=9, out_channels=4, num_attention_heads=2,
        attention_head_dim=16, num_layers=2, num_refiner_layers=1, text_embed_dim=12, text_embed_2_dim=22,
        image_embed_dim=10, rope_axes_dim=(4, 6, 6), task_type=task, target_size=112,
    )  # fmt: skip
    pipe = quiet(
        getattr(diffusers, cls)(
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=transformer,
            vae=vae,
            scheduler=flow(shift=7.0),
            guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
            **more,
        )
    )
    # It makes 729 tokens of every image, and as many of none.
    pipe.vision_num_semantic_tokens = 16
    return pipe


def _text15() -> dict[str, Any]:
    return SIZE | prompts(12) | {
        "prompt_embeds_mask": text_mask(), "negative_prompt_embeds_mask": text_mask(),
        "prompt_embeds_2": draw(1, 13, 22), "prompt_embeds_mask_2": text_mask(13, 10),
        "negative_prompt_embeds_2": draw(1, 13, 22, seed=1), "negative_prompt_embeds_mask_2": text_mask(13, 10),
    }  # fmt: skip


def _motif(cls: str, **config: Any) -> Any:
    import diffusers

    # Of the text encoder only its image tower is used: prompts are given as embeddings.
    vision = siglip()
    tower = SimpleNamespace(vision_tower=vision["image_encoder"]) if config else None
    transformer = models.build(
        "MotifVideoTransformer3DModel", in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16,
        num_layers=1, num_single_layers=1, text_embed_dim=12, rope_axes_dim=(4, 6, 6), patch_size=2, **config,
    )  # fmt: skip
    pipe = getattr(diffusers, cls)(
        scheduler=flow(shift=7.0), vae=wan_vae(), text_encoder=None, tokenizer=None, transformer=transformer,
        feature_extractor=vision["feature_extractor"], guider=diffusers.AdaptiveProjectedGuidance(guidance_scale=3.0),
    )  # fmt: skip
    pipe.text_encoder = tower
    return quiet(pipe)


def _motif_text() -> dict[str, Any]:
    masks = {"prompt_attention_mask": text_mask(), "negative_prompt_attention_mask": text_mask()}
    return SIZE | prompts(12) | masks


_SECOND = "its code breaks the graph: compiled whole, its first forward of all is dense"
ROWS = (
    Row("HunyuanVideo T2V", "HunyuanVideoPipeline", pipelines.spec("hunyuan_video").build, lambda: _GIVEN, text=TEXT,
        quick=True),
    Row("HunyuanVideo T2V with true guidance", "HunyuanVideoPipeline", pipelines.spec("hunyuan_video").build,
        lambda: _GIVEN | _NEGATIVE | {"true_cfg_scale": 3.0}, text=TEXT),
    Row("HunyuanVideo I2V (latents concatenated)", "HunyuanVideoImageToVideoPipeline",
        lambda: _i2v("latent_concat", in_channels=9), lambda: _GIVEN | {"image": picture()}, text=TEXT),
    Row("HunyuanVideo I2V (first frame replaced)", "HunyuanVideoImageToVideoPipeline",
        lambda: _i2v("token_replace", guidance_embeds=True), lambda: _GIVEN | {"image": picture()}, text=TEXT,
        each=True),
    Row("SkyReels I2V on HunyuanVideo", "HunyuanSkyreelsImageToVideoPipeline",
        lambda: _pipe("HunyuanSkyreelsImageToVideoPipeline", config={"in_channels": 8, "guidance_embeds": True}),
        lambda: _GIVEN | _NEGATIVE | {"image": picture(), "true_cfg_scale": 3.0}, text=TEXT),
    Row("HunyuanVideo-1.5 T2V", "HunyuanVideo15Pipeline",
        lambda: _hunyuan15("HunyuanVideo15Pipeline", "t2v"), _text15, text=TEXT + 13 + 16,
        note=_SECOND),
    Row("HunyuanVideo-1.5 I2V", "HunyuanVideo15ImageToVideoPipeline",
        lambda: _hunyuan15("HunyuanVideo15ImageToVideoPipeline", "i2v", **siglip()),
        lambda: {**_text15(), "height": ..., "width": ..., "image": picture()}, grid=(5, 9, 4),
        text=TEXT + 13 + 16, note=_SECOND),
    Row("Framepack", "HunyuanVideoFramepackPipeline", _framepack,
        lambda: _GIVEN | {"height": 96, "width": 128, "num_frames": 33, "image": picture(96, 128),
                          "latent_window_size": 9}, grid=(9, 6, 8), text=148, each=True,
        note=f"{HISTORY}; its code breaks the graph: compiled whole, its first forward of all is dense"),
    Row("Motif-Video T2V", "MotifVideoPipeline", lambda: _motif("MotifVideoPipeline"), _motif_text, text=TEXT),
    Row("Motif-Video I2V", "MotifVideoImage2VideoPipeline",
        lambda: _motif("MotifVideoImage2VideoPipeline", image_embed_dim=10),
        lambda: _motif_text() | {"prompt": None, "image": picture()}, text=TEXT + 16),
)  # fmt: skip
