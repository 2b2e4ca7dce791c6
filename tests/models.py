"""Real diffusers transformers at toy size: what axis inference and the rewrite are tested on.

Every case names how many SDPA calls one forward makes over the video's own tokens (`video_sites`, the only ones
that may be rewritten) and how many it makes over anything else (`other_sites`). The arguments are those that the
class' pipeline passes (`model_inputs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch

import model_inputs as given
from model_inputs import GRID, TEXT, Grid


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], torch.nn.Module]
    inputs: Callable[[int, Grid], dict[str, Any]]  # (batch, token grid) -> keyword arguments of forward
    grid: Grid  # the default token grid: frames, height, width
    text_len: int  # text tokens in the video self-attention's sequence
    text_first: bool
    video_sites: int
    other_sites: Mapping[str, int]
    fullgraph: bool = True  # can be compiled with fullgraph=True
    any_grid: bool = True  # accepts grids other than its default
    per_sample: bool = False  # video sites are called once per sample: `video_sites` is for batch 1
    grid_in_graph: bool = True  # the graph that holds a video site also sees frames, height and width apart


def output(result: Any) -> torch.Tensor:
    """The (video) prediction out of what a forward with `return_dict=False` returned."""
    return result if isinstance(result, torch.Tensor) else result[0]


def build(cls: str, **config: Any) -> torch.nn.Module:
    """A diffusers class with seeded weights; what it initialises to zero (gates, modulation, positions) is filled, lest
    it hide the attention.
    """
    import diffusers

    if not hasattr(diffusers, cls):
        pytest.skip(f"diffusers {diffusers.__version__} has no {cls}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(diffusers, cls)(**config).eval()
        with torch.no_grad():
            for p in model.parameters():
                if not p.any():
                    p.normal_(std=0.3)
    return model


def resize_without_torchvision() -> None:
    """Cosmos resizes its padding mask by torchvision; where that is not installed, by what it calls for it."""
    from diffusers.models.controlnets import controlnet_cosmos
    from diffusers.models.transformers import transformer_cosmos

    for module in (transformer_cosmos, controlnet_cosmos):
        if not hasattr(module, "transforms"):
            vars(module)["transforms"] = _Transforms


def _cosmos() -> torch.nn.Module:
    resize_without_torchvision()
    return build("CosmosTransformer3DModel", **_TWO, text_embed_dim=12, adaln_lora_dim=8, max_size=(16, 32, 32))


class _Transforms:
    """`torchvision.transforms`, as far as Cosmos uses it."""

    class InterpolationMode:
        NEAREST = "nearest"

    class functional:
        @staticmethod
        def resize(image: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
            return torch.nn.functional.interpolate(image, size=size, mode=interpolation)


WAN = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 12,
        "freq_dim": 16, "ffn_dim": 48, "num_layers": 2, "rope_max_seq_len": 32}  # fmt: skip

_COG = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 16,
        "text_embed_dim": 12, "num_layers": 2, "max_text_seq_length": TEXT, "sample_frames": 4 * (GRID[0] - 1) + 1,
        "sample_height": 2 * GRID[1], "sample_width": 2 * GRID[2]}  # fmt: skip

_LTX2 = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
         "cross_attention_dim": 32, "audio_in_channels": 10, "audio_out_channels": 10, "audio_num_attention_heads": 2,
         "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16, "num_layers": 2, "caption_channels": 12,
         "rope_type": "split"}  # fmt: skip

_TWO = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2}
_float_time = partial(given.inputs_of, time=torch.float32)


def _case(
    name: str,
    cls: str,
    config: Mapping[str, Any],
    inputs: Callable[[int, Grid], dict[str, Any]],
    video: int,
    other: Mapping[str, int],
    *,
    text: int = 0,
    first: bool = False,
    grid: Grid = GRID,
    **more: Any,
) -> Case:
    return Case(name, partial(build, cls, **config), inputs, grid, text, first, video, other, **more)


CASES: tuple[Case, ...] = (
    _case("wan", "WanTransformer3DModel", WAN, given.inputs_of, 2, {"cross": 2}),
    _case("wan_i2v", "WanTransformer3DModel", WAN | {"in_channels": 9, "image_dim": 10, "added_kv_proj_dim": 32},
          given.wan_i2v, 2, {"cross": 2, "image cross": 2}),
    _case("wan_ti2v", "WanTransformer3DModel", WAN, given.wan_ti2v, 2, {"cross": 2}),
    _case("wan_vace", "WanVACETransformer3DModel", WAN | {"vace_layers": [0, 1], "vace_in_channels": 12},
          given.wan_vace, 4, {"cross": 4}),
    _case("skyreels_v2", "SkyReelsV2Transformer3DModel", WAN, given.inputs_of, 2, {"cross": 2}),
    _case("hunyuan_video", "HunyuanVideoTransformer3DModel",  # one two-stream and one single-stream block
          _TWO | {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 12,
                  "pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6)},
          given.hunyuan, 2, {"text": 1}, text=TEXT),
    # 1.0: sinusoidal positions (2b), rotary (5b), rotary and learned (5b image-to-video); 1.5: frames in pairs.
    _case("cogvideox_2b", "CogVideoXTransformer3DModel", _COG,
          partial(given.cogvideox, rope="none"), 2, {}, text=TEXT, first=True),
    _case("cogvideox_5b", "CogVideoXTransformer3DModel", _COG | {"use_rotary_positional_embeddings": True},
          partial(given.cogvideox, rope="crop"), 2, {}, text=TEXT, first=True),
    _case("cogvideox_5b_i2v", "CogVideoXTransformer3DModel",
          _COG | {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True,
                  "in_channels": 8},
          partial(given.cogvideox, rope="crop", channels=8), 2, {}, text=TEXT, first=True, any_grid=False),
    _case("cogvideox_1_5", "CogVideoXTransformer3DModel",
          _COG | {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False,
                  "sample_height": 32, "sample_width": 32},
          partial(given.cogvideox, rope="slice"), 2, {}, text=TEXT, first=True),
    _case("ltx_video", "LTXVideoTransformer3DModel", _TWO | {"cross_attention_dim": 32, "caption_channels": 12},
          partial(given.ltx, rope_interpolation_scale=(8 / 25, 32, 32)), 2, {"cross": 2}),
    _case("allegro", "AllegroTransformer3DModel",
          _TWO | {"attention_head_dim": 24, "cross_attention_dim": 48, "caption_channels": 12, "sample_frames": 5,
                  "sample_height": 14, "sample_width": 6},
          given.allegro, 2, {"cross": 2}),
    _case("easyanimate", "EasyAnimateTransformer3DModel",  # one two-stream and one single-stream block
          _TWO | {"patch_size": 2, "mmdit_layers": 1, "time_embed_dim": 16, "text_embed_dim": 12,
                  "add_norm_text_encoder": True},
          _float_time, 2, {}, text=TEXT, first=True),
    # Padded text is cut off by `nonzero`: 8 of 11 tokens are left in sample 0. Only fullgraph=True captures that; else
    # the graph breaks in every attention and SDPA runs outside of all graphs.
    _case("mochi", "MochiTransformer3DModel",
          _TWO | {"pooled_projection_dim": 24, "text_embed_dim": 16, "time_embed_dim": 16, "max_sequence_length": TEXT},
          partial(_float_time, text_dim=16, mask=torch.bool), 2, {"text pool": 1}, text=TEXT - 3, per_sample=True),
    _case("cosmos", "CosmosTransformer3DModel",
          _TWO | {"text_embed_dim": 12, "adaln_lora_dim": 8, "max_size": (16, 32, 32), "concat_padding_mask": False},
          partial(_float_time, fps=24), 2, {"cross": 2}),
    # As its pipelines call it: the padding mask [1, 1, height, width] of the pixels is resized to an input channel.
    replace(_case("cosmos_padding_mask", "CosmosTransformer3DModel", {}, given.cosmos, 2, {"cross": 2}), build=_cosmos),
    _case("sana_video", "SanaVideoTransformer3DModel",  # self-attention is linear: nothing to rewrite
          _TWO | {"num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32,
                  "caption_channels": 12, "rope_max_seq_len": 32},
          partial(given.inputs_of, mask=torch.int64), 0, {"cross": 2}),
    _case("ltx2", "LTX2VideoTransformer3DModel", _LTX2, given.ltx2, 2,
          {"audio": 2, "cross": 4, "audio video cross": 4}),
    _case("ltx2_coords", "LTX2VideoTransformer3DModel", _LTX2, partial(given.ltx2, coords=True), 2,
          {"audio": 2, "cross": 4, "audio video cross": 4}),
    _case("hunyuan_video_1_5", "HunyuanVideo15Transformer3DModel",
          _TWO | {"in_channels": 9, "num_refiner_layers": 1, "text_embed_dim": 12, "text_embed_2_dim": 22,
                  "image_embed_dim": 10, "rope_axes_dim": (4, 6, 6)},
          # Branches on data before the blocks: Dynamo compiles each block as a graph of its own, without a grid.
          given.hunyuan15, 2, {"text": 1}, text=TEXT + 13 + 17, fullgraph=False, grid_in_graph=False),
    # Never looked at while the passes were written.
    _case("wan_animate", "WanAnimateTransformer3DModel",
          WAN | {"in_channels": 12, "latent_channels": 4, "image_dim": None, "inject_face_latents_blocks": 2,
                  "motion_encoder_size": 16, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 8,
                  "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2,
                  "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}},
          given.wan_animate, 2, {"cross": 3}),
    _case("chronoedit", "ChronoEditTransformer3DModel", WAN | {"rope_temporal_skip_len": 4},
          given.inputs_of, 2, {"cross": 2}),
    _case("anyflow", "AnyFlowTransformer3DModel", WAN, given.anyflow, 2, {"cross": 2}),
    _case("helios", "HeliosTransformer3DModel",
          {key: WAN[key] for key in WAN if key != "rope_max_seq_len"}
          | {"rope_dim": (4, 6, 6), "has_multi_term_memory_patch": False, "guidance_cross_attn": False,
             "zero_history_timestep": False},
          given.helios, 2, {"cross": 2}),
    _case("helios_history", "HeliosTransformer3DModel",
          {key: WAN[key] for key in WAN if key != "rope_max_seq_len"} | {"rope_dim": (4, 6, 6)},
          partial(given.helios, history=True), 0, {"several": 2, "cross": 2}),
    _case("helios_long", "HeliosTransformer3DModel",
          {key: WAN[key] for key in WAN if key != "rope_max_seq_len"} | {"rope_dim": (4, 6, 6)},
          partial(given.helios, history=True), 2, {"cross": 2}, text=124, first=True, grid=(12, 6, 8), any_grid=False),
    _case("consisid", "ConsisIDTransformer3DModel",
          _COG | {"use_rotary_positional_embeddings": True, "is_train_face": False},
          partial(given.cogvideox, rope="crop"), 2, {}, text=TEXT, first=True),
    _case("motif_video", "MotifVideoTransformer3DModel",  # two-stream and single-stream blocks
          _TWO | {"num_layers": 1, "num_single_layers": 1, "text_embed_dim": 12, "rope_axes_dim": (4, 6, 6)},
          partial(given.inputs_of, mask=torch.int64), 2, {}, text=TEXT),
    _case("kandinsky6", "Kandinsky6Transformer3DModel",
          {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 8, "time_dim": 16,
           "model_dim": 32, "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
           "visual_cond": True},
          given.kandinsky6, 2, {"cross": 2, "text": 2}),
    _case("kandinsky5", "Kandinsky5Transformer3DModel",
          {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 8, "time_dim": 16,
           "model_dim": 32, "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
           "visual_cond": True},
          given.kandinsky, 2, {"cross": 2, "text": 1}),
    _case("latte", "LatteTransformer3DModel",  # attention within frames and along time, never over both
          _TWO | {"cross_attention_dim": 32, "caption_channels": 12, "patch_size": 2, "sample_size": 14,
                  "video_length": GRID[0], "attention_bias": True, "norm_type": "ada_norm_single",
                  "norm_elementwise_affine": False, "norm_eps": 1e-6, "num_embeds_ada_norm": 1000,
                  "activation_fn": "gelu-approximate"},
          partial(given.inputs_of, enable_temporal_attentions=True), 0, {"spatial": 2, "temporal": 2, "cross": 2},
          any_grid=False),
    _case("flux", "FluxTransformer2DModel",
          {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
           "num_attention_heads": 2, "joint_attention_dim": 12, "pooled_projection_dim": 8, "guidance_embeds": True,
           "axes_dims_rope": (4, 6, 6)},
          given.flux, 0, {"image": 2}, grid=(1, 7, 3)),
    _case("sd3", "SD3Transformer2DModel",
          _TWO | {"sample_size": 32, "patch_size": 2, "joint_attention_dim": 12, "caption_projection_dim": 32,
                  "pooled_projection_dim": 8, "pos_embed_max_size": 16},
          given.sd3, 0, {"image": 2}, grid=(1, 7, 3)),
)  # fmt: skip


def case(name: str) -> Case:
    return next(c for c in CASES if c.name == name)
