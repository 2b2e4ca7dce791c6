"""LTX-Video and LTX-2: packed latents, whose coordinates are computed by the model or by the pipeline."""

from __future__ import annotations

from typing import Any

import torch

import models
import pipelines
from pipelines.parts import TEXT, Letters, clip, draw, flow, picture, prompts, quiet, seeded, t5, text_mask
from pipelines.rows import Row

# The autoencoders of both make a latent of 8 frames and of 32 x 32 pixels: 5 x 7 x 3 latents, each a token.
_SIZE = {"height": 224, "width": 96, "num_frames": 33}


def _ltx_vae() -> Any:
    vae = seeded("AutoencoderKLLTXVideo", latent_channels=4, block_out_channels=(8, 8, 8, 8),
                 decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
                 decoder_layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True, True, True, False),
                 decoder_spatio_temporal_scaling=(True, True, True, False), patch_size=4,
                 decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
                 timestep_conditioning=False)  # fmt: skip
    vae.use_framewise_encoding = False
    return vae


def _pipe(cls: str, **more: Any) -> Any:
    import diffusers

    given = {"scheduler": flow(), "vae": _ltx_vae(), "text_encoder": None, "tokenizer": None} | more
    transformer = models.case("ltx_video").build()
    return quiet(getattr(diffusers, cls)(transformer=transformer, **given))


def _text(**more: Any) -> dict[str, Any]:
    masks = {"prompt_attention_mask": text_mask(), "negative_prompt_attention_mask": text_mask()}
    return _SIZE | prompts(12) | masks | {"guidance_scale": 3.0} | more


def _condition(**given: Any) -> dict[str, Any]:
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    return _text(conditions=[LTXVideoCondition(**given)])


def _long() -> dict[str, Any]:
    # Of three steps two run: the pipeline leaves the scheduler's last one out.
    return _SIZE | {
        "prompt": "a dog|a cat",
        "cond_image": picture(224, 96),
        "max_sequence_length": TEXT,
        "temporal_tile_size": 40,
        "temporal_overlap": 8,
        "num_inference_steps": 3,
        "skip_steps_sigma_threshold": None,
    }


def _long_pipe() -> Any:
    return _pipe("LTXI2VLongMultiPromptPipeline", text_encoder=t5(), tokenizer=Letters())


def _ltx2(cls: str, **more: Any) -> Any:
    import diffusers
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        connectors = LTX2TextConnectors(
            caption_channels=12, text_proj_in_factor=3, video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=6, video_connector_num_layers=1,
            video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=6, audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_double_precision=False,
        ).eval()  # fmt: skip
    vae = seeded("AutoencoderKLLTX2Video", latent_channels=4, block_out_channels=(8, 8, 8, 8),
                 decoder_block_out_channels=(8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
                 decoder_layers_per_block=(1, 1, 1, 1), timestep_conditioning=False, spatial_compression_ratio=32,
                 temporal_compression_ratio=8)  # fmt: skip
    vae.use_framewise_encoding = False
    audio_vae = seeded("AutoencoderKLLTX2Audio", base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1,
                       in_channels=2, resolution=32, latent_channels=2, mel_bins=8, sample_rate=16000,
                       mel_hop_length=160)  # fmt: skip
    mels = audio_vae.config.mel_bins // 4 * audio_vae.config.latent_channels
    transformer = models.build(
        "LTX2VideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16,
        cross_attention_dim=32, audio_in_channels=mels, audio_out_channels=mels, audio_num_attention_heads=2,
        audio_attention_head_dim=8, audio_cross_attention_dim=16, num_layers=2, caption_channels=12, rope_type="split",
    )  # fmt: skip
    given = {"scheduler": flow(), "vae": vae, "audio_vae": audio_vae, "connectors": connectors,
             "transformer": transformer, "vocoder": None} | more  # fmt: skip
    return quiet(getattr(diffusers, cls)(text_encoder=None, tokenizer=None, **given))


def _ltx2_text(**more: Any) -> dict[str, Any]:
    # The hidden states of all layers of the text encoder, which the connectors join.
    embeds = {"prompt_embeds": draw(1, TEXT, 36), "negative_prompt_embeds": draw(1, TEXT, 36, seed=1)}
    return _text() | embeds | {"spatio_temporal_guidance_blocks": [1], "frame_rate": 24.0} | more


# One forward a step: by default there are three more, without prompt, without a block, and of each modality alone.
_ALONE = {"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0, "audio_guidance_scale": 1.0,
          "audio_stg_scale": 0.0, "audio_modality_scale": 1.0, "spatio_temporal_guidance_blocks": None}  # fmt: skip


def _ltx2_condition(index: int, frames: Any) -> Any:
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    return LTX2VideoCondition(frames=frames, index=index, strength=1.0, crf=0)


def _reference() -> Any:
    from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition

    return LTX2ReferenceCondition(frames=clip(33, 224, 96), strength=1.0)


_BESIDE = "tokens of the condition are attended in full; dense where they are over 30% of the sequence"
_REFERENCE = "the sequence also holds a reference as long as the video: too many tokens to attend in full"
_LONG = (
    "the image stands behind the video, too, and in later windows the frames repeated of the window before: all are "
    "attended in full; dense where they are over 30% of the sequence (29% by default)"
)
_PICTURE = draw(1, 3, 224, 96).clamp(0, 1)
ROWS = (
    Row("LTX-Video T2V", "LTXPipeline", pipelines.spec("ltx").build, _text, quick=True),
    Row("LTX-Video I2V", "LTXImageToVideoPipeline", lambda: _pipe("LTXImageToVideoPipeline"),
        lambda: _text(image=picture(224, 96))),
    Row("LTX-Video condition, first frame", "LTXConditionPipeline", lambda: _pipe("LTXConditionPipeline"),
        lambda: _condition(image=picture(224, 96), frame_index=0)),
    Row("LTX-Video condition, a later frame", "LTXConditionPipeline", lambda: _pipe("LTXConditionPipeline"),
        lambda: _condition(image=picture(224, 96), frame_index=16), text=21, text_first=True, note=_BESIDE),
    Row("LTX-Video long, several prompts", "LTXI2VLongMultiPromptPipeline", _long_pipe, _long, text=21, note=_LONG),
    Row("LTX-2 T2V", "LTX2Pipeline", lambda: _ltx2("LTX2Pipeline"), _ltx2_text),
    Row("LTX-2 I2V", "LTX2ImageToVideoPipeline", lambda: _ltx2("LTX2ImageToVideoPipeline"),
        lambda: _ltx2_text(image=_PICTURE, image_crf=0, **_ALONE)),
    Row("LTX-2 condition, first frame", "LTX2ConditionPipeline", lambda: _ltx2("LTX2ConditionPipeline"),
        lambda: _ltx2_text(conditions=[_ltx2_condition(0, _PICTURE)], **_ALONE)),
    Row("LTX-2 condition, a later frame", "LTX2ConditionPipeline", lambda: _ltx2("LTX2ConditionPipeline"),
        lambda: _ltx2_text(conditions=[_ltx2_condition(2, _PICTURE)], **_ALONE), text=21, note=_BESIDE),
    Row("LTX-2 in context", "LTX2InContextPipeline", lambda: _ltx2("LTX2InContextPipeline"),
        lambda: _ltx2_text(reference_conditions=[_reference()], **_ALONE), tokens=210, whole="dense",
        blocks="dense", note=_REFERENCE),
)  # fmt: skip
