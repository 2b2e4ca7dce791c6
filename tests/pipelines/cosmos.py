"""Cosmos 1, 2 and 2.5: one transformer that is given the padding mask of the pixels."""

from __future__ import annotations

from typing import Any

import torch

import models
from pipelines.parts import TEXT, Letters, clip, draw, flow, picture, prompts, quiet, seeded, unipc, wan_vae
from pipelines.rows import Row

_COSMOS = {"num_attention_heads": 2, "attention_head_dim": 16, "out_channels": 4, "num_layers": 2,
           "text_embed_dim": 12, "adaln_lora_dim": 8, "max_size": (32, 32, 32),
           "extra_pos_embed_type": "learnable"}  # fmt: skip
_SIZE = {"height": 112, "width": 48, "num_frames": 17}


class NoGuardrail:
    """In the place of Cosmos' guardrails, without which its pipelines do not begin: gigabytes of other models."""

    def to(self, device: Any) -> NoGuardrail:
        return self

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def _cosmos1_vae() -> Any:
    return seeded("AutoencoderKLCosmos", latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8),
                  decode_block_out_channels=(8, 8, 8, 8), attention_resolutions=(8,), resolution=64, num_layers=1,
                  patch_size=4, scaling_factor=1.0, spatial_compression_ratio=8, temporal_compression_ratio=4,
                  latents_mean=[0.0] * 64, latents_std=[1.0] * 64)  # fmt: skip


def _pipe(cls: str, vae: Any, scheduler: Any, channels: int, **more: Any) -> Any:
    import diffusers

    models.resize_without_torchvision()
    transformer = models.build("CosmosTransformer3DModel", **_COSMOS, in_channels=channels, **more.pop("config", {}))
    return quiet(getattr(diffusers, cls)(text_encoder=None, tokenizer=None, transformer=transformer, vae=vae,
                                         scheduler=scheduler, safety_checker=NoGuardrail(), **more))  # fmt: skip


def _edm() -> Any:
    from diffusers import EDMEulerScheduler

    return EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras")


def _transfer() -> Any:
    import diffusers

    models.resize_without_torchvision()
    context = {"img_context_dim_in": 10, "img_context_dim_out": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        controlnet = diffusers.CosmosControlNetModel(
            n_controlnet_blocks=2, in_channels=6, latent_channels=6, model_channels=32, num_attention_heads=2,
            attention_head_dim=16, text_embed_dim=12, adaln_lora_dim=8, max_size=(32, 32, 32),
            extra_pos_embed_type="learnable", use_crossattn_projection=False, **context,
        ).eval()  # fmt: skip
    return _pipe("Cosmos2_5_TransferPipeline", wan_vae(), unipc(), 5, controlnet=controlnet,
                 config={"controlnet_block_every_n": 1, "img_context_num_tokens": 4, **context})  # fmt: skip


def _text(**more: Any) -> dict[str, Any]:
    return _SIZE | prompts(12) | {"guidance_scale": 3.0} | more


def _controls() -> list[torch.Tensor]:
    return [draw(3, 112, 48, seed=seed) for seed in range(17)]


def _cosmos3() -> Any:
    import diffusers

    tokenizer: Any = Letters3()
    transformer = models.build(
        "Cosmos3OmniTransformer", head_dim=12, hidden_size=24, intermediate_size=32, latent_channel=4,
        latent_patch_size=2, num_attention_heads=2, num_hidden_layers=2, num_key_value_heads=2, patch_latent_dim=16,
        rope_axes_dim=[2, 2, 2], vocab_size=128,
    )  # fmt: skip
    return quiet(diffusers.Cosmos3OmniPipeline(transformer=transformer, text_tokenizer=tokenizer, vae=wan_vae(),
                                               scheduler=unipc(), safety_checker=NoGuardrail(),
                                               enable_safety_checker=False))  # fmt: skip


def _text3(**more: Any) -> dict[str, Any]:
    return _SIZE | {"prompt": "a dog", "negative_prompt": "a cat", "num_frames": 17, "guidance_scale": 3.0,
                    "use_system_prompt": False, "add_resolution_template": False,
                    "add_duration_template": False} | more  # fmt: skip


class Letters3(Letters):
    """Cosmos 3's tokenizer, with the templates and the markers that it asks for."""

    eos_token_id = 61
    bos_token_id = 62
    pad_token_id = 0

    def apply_chat_template(self, conversation: Any, **_: Any) -> Any:
        from transformers import BatchEncoding

        text = "".join(str(turn["content"]) for turn in conversation)
        return BatchEncoding({"input_ids": [1 + ord(letter) % 60 for letter in text][:TEXT]})

    def convert_tokens_to_ids(self, token: str) -> int:
        return 100 + len(token) % 20


ROWS = (
    Row("Cosmos 1 text to world", "CosmosTextToWorldPipeline",
        lambda: _pipe("CosmosTextToWorldPipeline", _cosmos1_vae(), _edm(), 4), _text, each=True),
    Row("Cosmos 1 video to world", "CosmosVideoToWorldPipeline",
        lambda: _pipe("CosmosVideoToWorldPipeline", _cosmos1_vae(), _edm(), 5), lambda: _text(image=picture()),
        each=True),
    Row("Cosmos 2 video to world", "Cosmos2VideoToWorldPipeline",
        lambda: _pipe("Cosmos2VideoToWorldPipeline", wan_vae(), flow(use_karras_sigmas=True), 5),
        lambda: _text(image=picture()), each=True),
    Row("Cosmos 2.5 predict", "Cosmos2_5_PredictBasePipeline",
        lambda: _pipe("Cosmos2_5_PredictBasePipeline", wan_vae(), unipc(), 5),
        lambda: _text(video=clip()), each=True),
    Row("Cosmos 2.5 transfer", "Cosmos2_5_TransferPipeline", _transfer,
        lambda: _text(controls=_controls(), num_frames_per_chunk=17, negative_prompt=None), each=True,
        denoisers=("transformer", "controlnet"), note="compile `pipe.controlnet`, too, which attends as often"),
    Row("Cosmos 2 text to image", "Cosmos2TextToImagePipeline",
        lambda: _pipe("Cosmos2TextToImagePipeline", wan_vae(), flow(use_karras_sigmas=True), 4),
        lambda: _text(num_frames=...), grid=(1, 7, 3), whole="dense", blocks="dense", each=True,
        note="an image: there is no time to be sparse in"),
    Row("Cosmos 3", "Cosmos3OmniPipeline", _cosmos3, _text3, tokens=105, keys=112, text=7, text_first=True, quick=True),
    Row("Cosmos 3, first frame given", "Cosmos3OmniPipeline", _cosmos3, lambda: _text3(image=picture()), tokens=105,
        keys=112, text=7, text_first=True),
)  # fmt: skip
