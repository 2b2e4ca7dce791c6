"""The parts of toy pipelines other than the transformer: embeddings, pictures, and real autoencoders of toy size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

TEXT = 11
# Latents of 5 x 14 x 6 where an autoencoder makes one of 4 frames and of 8 x 8 pixels.
SIZE = {"height": 112, "width": 48, "num_frames": 17}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(dim: int, length: int = TEXT) -> dict[str, Any]:
    return {"prompt_embeds": draw(1, length, dim), "negative_prompt_embeds": draw(1, length, dim, seed=1)}


def picture(height: int = SIZE["height"], width: int = SIZE["width"], seed: int = 0) -> Any:
    from PIL import Image

    noise = (draw(height, width, 3, seed=seed).sigmoid() * 255).to(torch.uint8)
    return Image.fromarray(noise.numpy())


def clip(frames: int = SIZE["num_frames"], height: int = SIZE["height"], width: int = SIZE["width"]) -> list[Any]:
    return [picture(height, width, seed) for seed in range(frames)]


def flow(**config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**{"shift": 5.0, **config})


def unipc() -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def drawn(make: Callable[[], Any]) -> Any:
    """A module with weights that are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def seeded(cls: str, **config: Any) -> Any:
    """A diffusers module with weights that are the same each time."""
    import diffusers

    return drawn(lambda: getattr(diffusers, cls)(**config))


def clip_vision(dim: int = 10) -> dict[str, Any]:
    """An image encoder that makes 17 tokens of `dim` of an image, and its processor."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(hidden_size=dim, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                              image_size=4, patch_size=1)  # fmt: skip
    return {
        "image_encoder": drawn(lambda: CLIPVisionModel(config)),
        "image_processor": CLIPImageProcessor(crop_size=4, size=4),
    }


def siglip(dim: int = 10) -> dict[str, Any]:
    """An image encoder that makes 16 tokens of `dim` of an image, and its processor."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(hidden_size=dim, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                image_size=16, patch_size=4)  # fmt: skip
    size = {"height": 16, "width": 16}
    return {
        "image_encoder": drawn(lambda: SiglipVisionModel(config)),
        "feature_extractor": SiglipImageProcessor(size=size),
    }


def t5(dim: int = 12) -> Any:
    """A text encoder, where a pipeline insists on one."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=dim, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=64)
    return drawn(lambda: T5EncoderModel(config))


class Letters:
    """A tokenizer, where a pipeline insists on one: a token a letter, padded to a length."""

    model_max_length = TEXT

    def __call__(self, text: Any, max_length: int = TEXT, **_: Any) -> Any:
        from transformers import BatchEncoding

        texts = [text] if isinstance(text, str) else text
        rows = [[1 + ord(letter) % 60 for letter in each][:max_length] for each in texts]
        padded = torch.tensor([row + [0] * (max_length - len(row)) for row in rows])
        return BatchEncoding({"input_ids": padded, "attention_mask": (padded > 0).to(torch.int64)})

    def batch_decode(self, ids: torch.Tensor) -> list[str]:
        return [""] * len(ids)


def text_mask(length: int = TEXT, seen: int = TEXT - 3) -> torch.Tensor:
    return (torch.arange(length) < seen).to(torch.int64)[None]


def wan_vae(channels: int = 4) -> Any:
    """Wan 2.1's: 4 x 8 x 8 pixels a latent."""
    return seeded("AutoencoderKLWan", base_dim=3, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                  temperal_downsample=[False, True, True], latents_mean=[0.0] * channels,
                  latents_std=[1.0] * channels)  # fmt: skip


def wan22_vae(channels: int = 4) -> Any:
    """Wan 2.2's for 5B: 4 x 16 x 16 pixels a latent."""
    return seeded("AutoencoderKLWan", base_dim=3, z_dim=channels, in_channels=12, out_channels=12, is_residual=True,
                  patch_size=2, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
                  latents_mean=[0.0] * channels, latents_std=[1.0] * channels, scale_factor_spatial=16,
                  scale_factor_temporal=4)  # fmt: skip


def hunyuan_vae() -> Any:
    """HunyuanVideo's: 4 x 8 x 8 pixels a latent."""
    return seeded("AutoencoderKLHunyuanVideo", latent_channels=4, layers_per_block=1, norm_num_groups=4,
                  down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
                  block_out_channels=(8, 8, 8, 8), spatial_compression_ratio=8, temporal_compression_ratio=4,
                  mid_block_add_attention=False)  # fmt: skip


def cogvideox_vae() -> Any:
    """CogVideoX': 4 x 8 x 8 pixels a latent."""
    return seeded("AutoencoderKLCogVideoX", latent_channels=4, layers_per_block=1, norm_num_groups=2,
                  down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
                  block_out_channels=(8, 8, 8, 8), temporal_compression_ratio=4)  # fmt: skip
