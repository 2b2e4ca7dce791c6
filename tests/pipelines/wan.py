"""Wan and its relatives: one transformer, text by cross-attention."""

from __future__ import annotations

from typing import Any

import models
import pipelines
from pipelines.parts import SIZE, clip, clip_vision, flow, picture, prompts, quiet, unipc, wan22_vae, wan_vae
from pipelines.rows import Row

_WAN = models.WAN | {"num_layers": 2}
_IMAGE = {"in_channels": 12, "image_dim": 10, "added_kv_proj_dim": 32}
# Wan's attention takes all but the last 512 tokens for those of the image.
_LONG = 512


def _pipe(cls: str, transformer: tuple[str, dict[str, Any]], scheduler: Any = None, **more: Any) -> Any:
    import diffusers

    name, config = transformer
    more = {"vae": None} | more
    return quiet(
        getattr(diffusers, cls)(
            tokenizer=None,
            text_encoder=None,
            transformer=models.build(name, **(_WAN | config)),
            scheduler=scheduler or flow(),
            **more,
        )
    )


def _text(**more: Any) -> dict[str, Any]:
    return prompts(12) | SIZE | {"guidance_scale": 3.0} | more


def _with_image(**more: Any) -> dict[str, Any]:
    return prompts(12, _LONG) | SIZE | {"guidance_scale": 3.0, "image": picture()} | more


def _i2v(**more: Any) -> Any:
    return _pipe("WanImageToVideoPipeline", ("WanTransformer3DModel", _IMAGE), vae=wan_vae(), **clip_vision(), **more)


def _i2v22() -> Any:
    second = models.build("WanTransformer3DModel", **(_WAN | {"in_channels": 12}))
    return _pipe("WanImageToVideoPipeline", ("WanTransformer3DModel", {"in_channels": 12}), unipc(), vae=wan_vae(),
                 transformer_2=second, boundary_ratio=0.875, image_encoder=None, image_processor=None)  # fmt: skip


def _ti2v(cls: str) -> Any:
    return _pipe(cls, ("WanTransformer3DModel", {}), unipc(), vae=wan22_vae(), expand_timesteps=True)


_TI2V = {"height": 224, "width": 96}
_SKY = ("SkyReelsV2Transformer3DModel", {})

ROWS = (
    Row("Wan 2.1 T2V", "WanPipeline", pipelines.spec("wan").build, _text, quick=True),
    Row("Wan 2.1 I2V", "WanImageToVideoPipeline", _i2v, _with_image),
    Row("Wan 2.1 first and last frame", "WanImageToVideoPipeline",
        lambda: _pipe("WanImageToVideoPipeline", ("WanTransformer3DModel", _IMAGE | {"pos_embed_seq_len": 34}),
                      vae=wan_vae(), **clip_vision()),
        lambda: _with_image(last_image=picture(seed=1))),
    Row("Wan 2.1 V2V", "WanVideoToVideoPipeline",
        lambda: _pipe("WanVideoToVideoPipeline", ("WanTransformer3DModel", {}), unipc(), vae=wan_vae()),
        lambda: _text(num_frames=..., video=clip(), strength=0.7), steps=4, skipped=2),
    Row("Wan 2.2 T2V (two transformers)", "WanPipeline", pipelines.spec("wan_2_2").build, _text,
        denoisers=("transformer", "transformer_2")),
    Row("Wan 2.2 I2V (two transformers)", "WanImageToVideoPipeline", _i2v22,
        lambda: _text(image=picture()), denoisers=("transformer", "transformer_2")),
    Row("Wan 2.2 5B T2V", "WanPipeline", lambda: _ti2v("WanPipeline"), lambda: _text(**_TI2V)),
    Row("Wan 2.2 5B I2V", "WanImageToVideoPipeline", lambda: _ti2v("WanImageToVideoPipeline"),
        lambda: _text(image=picture(224, 96), **_TI2V)),
    Row("Wan VACE", "WanVACEPipeline",
        lambda: _pipe("WanVACEPipeline",
                      ("WanVACETransformer3DModel", {"vace_layers": [0, 1], "vace_in_channels": 8 + 64}),
                      vae=wan_vae()),
        lambda: _text(video=clip())),
    Row("Wan VACE with a reference image", "WanVACEPipeline",
        lambda: _pipe("WanVACEPipeline",
                      ("WanVACETransformer3DModel", {"vace_layers": [0, 1], "vace_in_channels": 8 + 64}),
                      vae=wan_vae()),
        lambda: _text(video=clip(), reference_images=[picture(seed=2)]), grid=(6, 7, 3)),
    Row("Wan 2.2 Animate", "WanAnimatePipeline",
        lambda: _pipe("WanAnimatePipeline",
                      ("WanAnimateTransformer3DModel",
                       {"in_channels": 12, "latent_channels": 4, "image_dim": 10, "added_kv_proj_dim": 32,
                        "inject_face_latents_blocks": 2, "motion_encoder_size": 16, "motion_style_dim": 8,
                        "motion_dim": 4, "motion_encoder_dim": 8, "face_encoder_hidden_dim": 16,
                        "face_encoder_num_heads": 2, "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}}),
                      vae=wan_vae(), **clip_vision()),
        lambda: _with_image(guidance_scale=1.0, num_frames=..., segment_frame_length=17, pose_video=clip(),
                            face_video=clip(17, 16, 16)), grid=(6, 7, 3)),
    Row("Lucy Edit", "LucyEditPipeline",
        lambda: _pipe("LucyEditPipeline", ("WanTransformer3DModel", {"in_channels": 8}), unipc(), vae=wan22_vae(),
                      expand_timesteps=True),
        lambda: _text(video=clip(17, 224, 96), **_TI2V)),
    Row("ChronoEdit", "ChronoEditPipeline", lambda: _chronoedit(), _with_image, grid=(2, 7, 3)),
    Row("ChronoEdit with temporal reasoning", "ChronoEditPipeline", lambda: _chronoedit(),
        lambda: _with_image(enable_temporal_reasoning=True, num_temporal_reasoning_steps=2)),
    Row("AnyFlow", "AnyFlowPipeline", lambda: _anyflow("AnyFlowPipeline", "AnyFlowTransformer3DModel", {}), _text),
    Row("AnyFlow-FAR", "AnyFlowFARPipeline",
        lambda: _anyflow("AnyFlowFARPipeline", "AnyFlowFARTransformer3DModel",
                         {"compressed_patch_size": (1, 4, 4), "full_chunk_limit": 3, "chunk_partition": (1, 2, 2)}),
        _text, whole="dense", blocks="dense", note="attends by FlexAttention, with a mask of its own"),
    Row("SkyReels-V2 T2V", "SkyReelsV2Pipeline", lambda: _pipe("SkyReelsV2Pipeline", _SKY, unipc()), _text),
    Row("SkyReels-V2 I2V", "SkyReelsV2ImageToVideoPipeline",
        lambda: _pipe("SkyReelsV2ImageToVideoPipeline", ("SkyReelsV2Transformer3DModel", _IMAGE), unipc(),
                      vae=wan_vae(), **clip_vision()), _with_image),
    Row("SkyReels-V2 DF T2V", "SkyReelsV2DiffusionForcingPipeline",
        lambda: _pipe("SkyReelsV2DiffusionForcingPipeline", _SKY, unipc()), lambda: _text(prompt=None)),
    Row("SkyReels-V2 DF I2V", "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        lambda: _pipe("SkyReelsV2DiffusionForcingImageToVideoPipeline", _SKY, unipc(), vae=wan_vae()),
        lambda: _text(image=picture())),
    Row("SkyReels-V2 DF V2V", "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        lambda: _pipe("SkyReelsV2DiffusionForcingVideoToVideoPipeline", _SKY, unipc(), vae=wan_vae()),
        lambda: _text(video=clip(9), overlap_history=5, num_frames=17, base_num_frames=17)),
)  # fmt: skip


def _chronoedit() -> Any:
    return _pipe("ChronoEditPipeline", ("ChronoEditTransformer3DModel", _IMAGE | {"rope_temporal_skip_len": 4}),
                 vae=wan_vae(), **clip_vision())  # fmt: skip


def _anyflow(cls: str, transformer: str, config: dict[str, Any]) -> Any:
    from diffusers import FlowMapEulerDiscreteScheduler

    return _pipe(cls, (transformer, config), FlowMapEulerDiscreteScheduler(shift=5.0))
