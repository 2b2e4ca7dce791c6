"""The usual inputs of model classes: sizes, and how each class calls them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from svg_compile.errors import SvgError

# Frames x height x width, of latents.
Grid = tuple[int, int, int]

_TEXT_CHANNELS = ("text_embed_dim", "caption_channels", "text_dim", "in_text_dim", "cross_attention_dim")


@dataclass(frozen=True)
class Size:
    """The size of one forward: samples, latent frames x height x width, and text tokens."""

    batch: int
    latents: Grid
    text: int


@dataclass(frozen=True)
class Recipe:
    """The inputs of one class: its usual size, arguments beyond the common ones, and defaults of its configuration.

    more: (configuration, size, dtype) -> keyword arguments that replace or join the common ones.
    """

    latents: Grid
    text: int
    more: Callable[[Any, Size, torch.dtype], dict[str, Any]] = lambda config, size, dtype: {}
    float_time: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)


def noise(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def text_channels(config: Any) -> int:
    found = next((value for name in _TEXT_CHANNELS if (value := getattr(config, name)) is not None), None)
    if found is None:
        raise SvgError(f"the model's configuration has none of {', '.join(_TEXT_CHANNELS)}: use module:function.")
    return int(found)


def _packed(config: Any, size: Size, dtype: torch.dtype) -> Tensor:
    frames, height, width = size.latents
    return noise(size.batch, frames * height * width, config.in_channels, dtype=dtype)


def _wan(config: Any, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    if config.image_dim is None:
        return {}
    # The model takes all but the last 512 tokens for the image's.
    text = noise(size.batch, 512, config.text_dim, dtype=dtype, seed=1)
    image = noise(size.batch, 257, config.image_dim, dtype=dtype, seed=3)
    return {"encoder_hidden_states": text, "encoder_hidden_states_image": image}


def _wan_vace(config: Any, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    control = noise(size.batch, config.vace_in_channels, *size.latents, dtype=dtype, seed=3)
    return {
        "control_hidden_states": control,
        "control_hidden_states_scale": torch.ones(len(config.vace_layers), dtype=dtype),
    }


def _hunyuan15(config: Any, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    second = 256
    return {
        # Its blocks compute in the timestep's dtype, which pipelines give the latents'.
        "timestep": torch.full((size.batch,), 500, dtype=dtype),
        "encoder_hidden_states_2": noise(size.batch, second, config.text_embed_2_dim, dtype=dtype, seed=3),
        "encoder_attention_mask_2": torch.ones(size.batch, second, dtype=torch.int64),
        # Text to video: an image of zeros.
        "image_embeds": torch.zeros(size.batch, 729, config.image_embed_dim, dtype=dtype),
    }


def _cogvideox(config: Any, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    frames, height, width = size.latents
    patch, patch_t = config.patch_size, config.patch_size_t
    grid = (frames // (patch_t or 1), height // patch, width // patch)
    # Frames stand before channels.
    inputs = {"hidden_states": noise(size.batch, frames, config.in_channels, height, width, dtype=dtype)}
    if config.use_rotary_positional_embeddings:
        rope = importlib.import_module("diffusers.models.embeddings").get_3d_rotary_pos_embed
        if patch_t is None:
            area = ((0, 0), (grid[1], grid[2]))
            inputs["image_rotary_emb"] = rope(config.attention_head_dim, area, grid[1:], grid[0])
        else:
            most = (config.sample_height // patch, config.sample_width // patch)
            inputs["image_rotary_emb"] = rope(
                config.attention_head_dim, None, grid[1:], grid[0], grid_type="slice", max_size=most
            )
    return inputs


def _ltx(config: Any, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    frames, height, width = size.latents
    places = {"num_frames": frames, "height": height, "width": width, "rope_interpolation_scale": (8 / 25, 32, 32)}
    return {"hidden_states": _packed(config, size, dtype), **places}


def _ltx2(config: Any, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    frames, height, width = size.latents
    audio = 126
    time = torch.full((size.batch,), 500.0)
    return {
        "hidden_states": _packed(config, size, dtype),
        "audio_hidden_states": noise(size.batch, audio, config.audio_in_channels, dtype=dtype, seed=3),
        "audio_encoder_hidden_states": noise(size.batch, size.text, text_channels(config), dtype=dtype, seed=4),
        "audio_encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.int64),
        "timestep": time,
        "sigma": time,
        "num_frames": frames,
        "height": height,
        "width": width,
        "fps": 24.0,
        "audio_num_frames": audio,
    }


def _allegro(config: Any, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    frames, height, width = size.latents
    patch = config.patch_size
    grid = (frames // (config.patch_size_t or 1), height // patch, width // patch)
    rope: Any = importlib.import_module("diffusers.models.embeddings").get_3d_rotary_pos_embed_allegro(
        embed_dim=config.attention_head_dim,
        crops_coords=((0, 0), grid[1:]),
        grid_size=grid[1:],
        temporal_size=grid[0],
        interpolation_scale=(2.2, 2.0, 2.0),
        device=torch.device("cpu"),
    )
    *tables, at_frame, at_height, at_width = rope
    places = torch.cartesian_prod(at_frame.long(), at_height.long(), at_width.long())
    positions = places.transpose(0, 1).reshape(3, 1, -1).contiguous()
    return {"image_rotary_emb": (tuple(tables), tuple(positions))}


def _cosmos(config: Any, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    mask = torch.zeros(1, 1, 8 * size.latents[1], 8 * size.latents[2], dtype=dtype)
    channels = config.in_channels
    return {
        "hidden_states": noise(size.batch, channels, *size.latents, dtype=dtype),
        "fps": 24,
        "encoder_attention_mask": None,
        "padding_mask": mask if config.concat_padding_mask else None,
    }


def _latte(config: Any, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    # Its pipeline cuts padding off instead.
    return {"encoder_attention_mask": None}


def _kandinsky(config: Any, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    frames, height, width = size.latents
    patch = config.patch_size or (1, 2, 2)
    # Latents, and with a visual condition the condition and its mask; channels last.
    channels = 2 * config.in_visual_dim + 1 if config.visual_cond else config.in_visual_dim
    grid = (frames // patch[0], height // patch[1], width // patch[2])
    return {
        "hidden_states": noise(size.batch, frames, height, width, channels, dtype=dtype),
        "pooled_projections": noise(size.batch, config.in_text_dim2, dtype=dtype, seed=2),
        "visual_rope_pos": [torch.arange(length) for length in grid],
        "text_rope_pos": torch.arange(size.text),
        "scale_factor": (1.0, 2.0, 2.0),
    }


# The released configuration of these two, as the class' defaults do not make a valid model.
_EASYANIMATE = {"patch_size": 2, "add_norm_text_encoder": True, "text_embed_dim_t5": None}


_LATTE = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "attention_bias": True,
    "sample_size": 64,
    "patch_size": 2,
    "video_length": 16,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}

RECIPES: dict[str, Recipe] = {
    "WanTransformer3DModel": Recipe((21, 60, 104), 512, _wan),
    "WanVACETransformer3DModel": Recipe((21, 60, 104), 512, _wan_vace),
    "SkyReelsV2Transformer3DModel": Recipe((25, 68, 120), 512, _wan),
    "HunyuanVideoTransformer3DModel": Recipe((33, 90, 160), 256),
    "HunyuanVideo15Transformer3DModel": Recipe((31, 30, 52), 1000, _hunyuan15),
    "CogVideoXTransformer3DModel": Recipe((13, 60, 90), 226, _cogvideox),
    "LTXVideoTransformer3DModel": Recipe((21, 16, 22), 128, _ltx, float_time=True),
    "LTX2VideoTransformer3DModel": Recipe((16, 16, 24), 1024, _ltx2, float_time=True),
    "AllegroTransformer3DModel": Recipe((22, 90, 160), 512, _allegro),
    "EasyAnimateTransformer3DModel": Recipe((13, 48, 84), 512, float_time=True, config=_EASYANIMATE),
    "MochiTransformer3DModel": Recipe((15, 60, 106), 256, float_time=True),
    # The padding mask is a channel more, resized by torchvision; attention is the same without.
    "CosmosTransformer3DModel": Recipe(
        (16, 88, 160), 512, _cosmos, float_time=True, config={"concat_padding_mask": False}
    ),
    "SanaVideoTransformer3DModel": Recipe((21, 60, 104), 300),
    "Kandinsky5Transformer3DModel": Recipe((31, 64, 96), 256, _kandinsky, float_time=True),
    "LatteTransformer3DModel": Recipe((16, 64, 64), 120, _latte, config=_LATTE),
}
