"""Inputs of model classes beyond the common ones, as their pipelines make them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svg_compile.errors import SvgError
from svg_compile.zoo import Grid

_TEXT_CHANNELS = ("text_embed_dim", "caption_channels", "text_dim", "in_text_dim", "cross_attention_dim")


@dataclass(frozen=True)
class Size:
    """The size of one forward: samples, latent frames x height x width, and text tokens."""

    batch: int
    latents: Grid
    text: int


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


# Class -> (configuration, size, dtype) -> keyword arguments that replace or join the common ones.
SPECIAL_INPUTS: dict[str, Callable[[Any, Size, torch.dtype], dict[str, Any]]] = {
    "WanTransformer3DModel": _wan,
    "WanVACETransformer3DModel": _wan_vace,
    "SkyReelsV2Transformer3DModel": _wan,
    "HunyuanVideo15Transformer3DModel": _hunyuan15,
    "CogVideoXTransformer3DModel": _cogvideox,
    "LTXVideoTransformer3DModel": _ltx,
    "LTX2VideoTransformer3DModel": _ltx2,
    "AllegroTransformer3DModel": _allegro,
    "CosmosTransformer3DModel": _cosmos,
    "Kandinsky5Transformer3DModel": _kandinsky,
    "LatteTransformer3DModel": _latte,
}
