"""Real diffusers transformers at toy size: what axis inference and the rewrite are tested on.

Every case names how many SDPA calls one forward makes over the video's own tokens (`video_sites`, the only ones
that may be rewritten) and how many it makes over anything else (`other_sites`). The arguments are those that the
class' pipeline passes, in the same dtypes and layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

Grid = tuple[int, int, int]
# No size of a latent (5, 14, 6) or a text (11) is a channel count of its model: with dynamic shapes Dynamo gives
# equal sizes one symbol, and a channel count would then freeze a token axis.
GRID: Grid = (5, 7, 3)
TEXT = 11


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


def _build(cls: str, **config: Any) -> torch.nn.Module:
    """Seeded weights; what diffusers initialises to zero (gates, modulation, positions) is filled, lest it hide
    the attention."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(diffusers, cls)(**config).eval()
        with torch.no_grad():
            for p in model.parameters():
                if not p.any():
                    p.normal_(std=0.3)
    return model


class _Draw:
    """Normal tensors from a generator of their own."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)


def _inputs(
    batch: int,
    grid: Grid,
    *,
    channels: int = 4,
    patch: int = 2,
    text: int = TEXT,
    text_dim: int = 12,
    time: torch.dtype = torch.int64,
    mask: torch.dtype | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What all of them take. `mask`: of padded text; sample i sees all but its last 3 + 2i tokens."""
    draw, (f, h, w) = _Draw(1), grid
    kwargs: dict[str, Any] = {
        "hidden_states": draw(batch, channels, f, patch * h, patch * w),
        "encoder_hidden_states": draw(batch, text, text_dim),
        "timestep": torch.full((batch,), 500, dtype=time),
        "return_dict": False,
    }
    if mask is not None:
        kwargs["encoder_attention_mask"] = _text_mask(batch, text).to(mask)
    return kwargs | more


def _text_mask(batch: int, length: int) -> torch.Tensor:
    return (torch.arange(length) < length - 3 - 2 * torch.arange(batch)[:, None]).to(torch.int64)


_WAN = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 12,
        "freq_dim": 16, "ffn_dim": 48, "num_layers": 2, "rope_max_seq_len": 32}  # fmt: skip


def _wan_i2v(batch: int, grid: Grid) -> dict[str, Any]:
    # The attention takes all but the last 512 tokens for image tokens: the text must be 512 long.
    image = _Draw(2)(batch, 17, 10)
    return _inputs(batch, grid, channels=9, text=512, encoder_hidden_states_image=image)


def _wan_ti2v(batch: int, grid: Grid) -> dict[str, Any]:
    times = torch.full(grid, 500.0)  # one a token; the conditioning first frame is clean
    times[0] = 0
    return _inputs(batch, grid, timestep=times.flatten().expand(batch, -1))


def _wan_vace(batch: int, grid: Grid) -> dict[str, Any]:
    control = _Draw(2)(batch, 12, grid[0], 2 * grid[1], 2 * grid[2])
    scale = torch.tensor([1.0, 0.5])
    return _inputs(batch, grid, control_hidden_states=control, control_hidden_states_scale=scale)


def _hunyuan(batch: int, grid: Grid) -> dict[str, Any]:
    guidance = torch.full((batch,), 6000.0)
    return _inputs(batch, grid, mask=torch.int64, pooled_projections=_Draw(2)(batch, 8), guidance=guidance)


def _hunyuan15(batch: int, grid: Grid) -> dict[str, Any]:
    return _inputs(  # latents, condition latents and their mask; the image of text-to-video is all zeros
        batch, grid, channels=9, patch=1, time=torch.float32, mask=torch.int64,
        encoder_hidden_states_2=_Draw(2)(batch, 13, 22), encoder_attention_mask_2=_text_mask(batch, 13),
        image_embeds=torch.zeros(batch, 17, 10),
    )  # fmt: skip


def _wan_animate(batch: int, grid: Grid) -> dict[str, Any]:
    f, h, w = grid  # the first latent frame is of the reference; the face video has four frames for each other one
    draw = _Draw(2)
    pose, face = draw(batch, 4, f - 1, 2 * h, 2 * w), draw(batch, 3, 4 * (f - 2) + 1, 16, 16)
    return _inputs(batch, grid, channels=12, pose_hidden_states=pose, face_pixel_values=face)


def _helios(batch: int, grid: Grid, history: bool = False) -> dict[str, Any]:
    f, h, w = grid
    kwargs = _inputs(batch, grid, indices_hidden_states=torch.arange(20, 20 + f).expand(batch, -1))
    if history:  # of the video so far: the nearest frames as they are, those before ever coarser
        draw = _Draw(2)
        for name, start, frames in (("long", 0, 16), ("mid", 16, 2), ("short", 18, 2)):
            kwargs[f"latents_history_{name}"] = draw(batch, 4, frames, 2 * h, 2 * w)
            kwargs[f"indices_latents_history_{name}"] = torch.arange(start, start + frames).expand(batch, -1)
    return kwargs


def _anyflow(batch: int, grid: Grid) -> dict[str, Any]:
    times = {"timestep": torch.full((batch, grid[0]), 500.0), "r_timestep": torch.full((batch, grid[0]), 400.0)}
    kwargs = _inputs(batch, grid, **times)
    return kwargs | {"hidden_states": kwargs["hidden_states"].transpose(1, 2).contiguous()}  # frames before channels


_COG = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 16,
        "text_embed_dim": 12, "num_layers": 2, "max_text_seq_length": TEXT, "sample_frames": 4 * (GRID[0] - 1) + 1,
        "sample_height": 2 * GRID[1], "sample_width": 2 * GRID[2]}  # fmt: skip


def _cogvideox(batch: int, grid: Grid, rope: str, channels: int = 4) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    f, h, w = grid
    rotary = None
    if rope == "crop":
        crops = get_resize_crop_region_for_grid((h, w), GRID[2], GRID[1])
        rotary = get_3d_rotary_pos_embed(16, crops, (h, w), f)
    elif rope == "slice":
        rotary = get_3d_rotary_pos_embed(16, None, (h, w), f, grid_type="slice", max_size=(16, 16))
    latents = _Draw(2)(batch, 2 * f if rope == "slice" else f, channels, 2 * h, 2 * w)  # frames before channels
    return _inputs(batch, grid, hidden_states=latents, image_rotary_emb=rotary)


def _ltx(batch: int, grid: Grid, **more: Any) -> dict[str, Any]:
    f, h, w = grid
    kwargs = _inputs(batch, grid, patch=1, time=torch.float32, mask=torch.int64, num_frames=f, height=h, width=w)
    kwargs["hidden_states"] = kwargs["hidden_states"].flatten(2).transpose(1, 2).contiguous()  # packed
    return kwargs | more


def _ltx2(batch: int, grid: Grid, coords: bool = False) -> dict[str, Any]:
    draw, frames = _Draw(2), 13
    kwargs = _ltx(batch, grid, fps=24.0, audio_num_frames=frames, audio_hidden_states=draw(batch, frames, 10),
                  audio_encoder_hidden_states=draw(batch, TEXT, 12))  # fmt: skip
    kwargs["sigma"] = kwargs["timestep"]
    kwargs["audio_encoder_attention_mask"] = kwargs["encoder_attention_mask"]
    if coords:  # the pipeline computes them before its loop: no graph sees frames, height and width
        from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed as Rope

        cpu = torch.device("cpu")
        kwargs["video_coords"] = Rope(dim=32).prepare_video_coords(batch, *grid, cpu, fps=24.0)
        kwargs["audio_coords"] = Rope(dim=16, modality="audio", scale_factors=(4,)).prepare_audio_coords(
            batch, frames, cpu
        )
    return kwargs


_LTX2 = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
         "cross_attention_dim": 32, "audio_in_channels": 10, "audio_out_channels": 10, "audio_num_attention_heads": 2,
         "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16, "num_layers": 2, "caption_channels": 12,
         "rope_type": "split"}  # fmt: skip


def _allegro(batch: int, grid: Grid) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    f, h, w = grid
    rope: Any = get_3d_rotary_pos_embed_allegro(
        embed_dim=24, crops_coords=((0, 0), (h, w)), grid_size=(h, w), temporal_size=f,
        interpolation_scale=(2.2, 2.0, 2.0), device=torch.device("cpu"),
    )  # fmt: skip
    *freqs, at_f, at_h, at_w = rope
    positions = torch.cartesian_prod(at_f.long(), at_h.long(), at_w.long())
    positions = positions.transpose(0, 1).reshape(3, 1, -1).contiguous()
    return _inputs(batch, grid, mask=torch.int64, image_rotary_emb=(tuple(freqs), tuple(positions)))


def _kandinsky(batch: int, grid: Grid) -> dict[str, Any]:
    f, h, w = grid
    return _inputs(  # channels last: latents, visual condition and its mask
        batch, grid, time=torch.float32, hidden_states=_Draw(2)(batch, f, 2 * h, 2 * w, 9),
        pooled_projections=_Draw(3)(batch, 8), visual_rope_pos=[torch.arange(f), torch.arange(h), torch.arange(w)],
        text_rope_pos=torch.arange(TEXT), scale_factor=(1.0, 2.0, 2.0),
    )  # fmt: skip


def _kandinsky6(batch: int, grid: Grid) -> dict[str, Any]:
    kwargs = _kandinsky(batch, grid)
    del kwargs["text_rope_pos"], kwargs["scale_factor"]
    return kwargs


def _flux(batch: int, grid: Grid) -> dict[str, Any]:
    draw, (_, h, w) = _Draw(2), grid
    return _inputs(
        batch, grid, hidden_states=draw(batch, h * w, 16), pooled_projections=draw(batch, 8),
        timestep=torch.full((batch,), 0.5), guidance=torch.full((batch,), 3.5), txt_ids=torch.zeros(TEXT, 3),
        img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(float(h)), torch.arange(float(w))),
    )  # fmt: skip


def _sd3(batch: int, grid: Grid) -> dict[str, Any]:
    draw, (_, h, w) = _Draw(2), grid
    latents, pooled = draw(batch, 4, 2 * h, 2 * w), draw(batch, 8)
    return _inputs(batch, grid, time=torch.float32, hidden_states=latents, pooled_projections=pooled)


_TWO = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2}
_float_time = partial(_inputs, time=torch.float32)


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
    return Case(name, partial(_build, cls, **config), inputs, grid, text, first, video, other, **more)


CASES: tuple[Case, ...] = (
    _case("wan", "WanTransformer3DModel", _WAN, _inputs, 2, {"cross": 2}),
    _case("wan_i2v", "WanTransformer3DModel", _WAN | {"in_channels": 9, "image_dim": 10, "added_kv_proj_dim": 32},
          _wan_i2v, 2, {"cross": 2, "image cross": 2}),
    _case("wan_ti2v", "WanTransformer3DModel", _WAN, _wan_ti2v, 2, {"cross": 2}),
    _case("wan_vace", "WanVACETransformer3DModel", _WAN | {"vace_layers": [0, 1], "vace_in_channels": 12},
          _wan_vace, 4, {"cross": 4}),
    _case("skyreels_v2", "SkyReelsV2Transformer3DModel", _WAN, _inputs, 2, {"cross": 2}),
    _case("hunyuan_video", "HunyuanVideoTransformer3DModel",  # one two-stream and one single-stream block
          _TWO | {"num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 12,
                  "pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6)},
          _hunyuan, 2, {"text": 1}, text=TEXT),
    # 1.0: sinusoidal positions (2b), rotary (5b), rotary and learned (5b image-to-video); 1.5: frames in pairs.
    _case("cogvideox_2b", "CogVideoXTransformer3DModel", _COG,
          partial(_cogvideox, rope="none"), 2, {}, text=TEXT, first=True),
    _case("cogvideox_5b", "CogVideoXTransformer3DModel", _COG | {"use_rotary_positional_embeddings": True},
          partial(_cogvideox, rope="crop"), 2, {}, text=TEXT, first=True),
    _case("cogvideox_5b_i2v", "CogVideoXTransformer3DModel",
          _COG | {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True,
                  "in_channels": 8},
          partial(_cogvideox, rope="crop", channels=8), 2, {}, text=TEXT, first=True, any_grid=False),
    _case("cogvideox_1_5", "CogVideoXTransformer3DModel",
          _COG | {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False,
                  "sample_height": 32, "sample_width": 32},
          partial(_cogvideox, rope="slice"), 2, {}, text=TEXT, first=True),
    _case("ltx_video", "LTXVideoTransformer3DModel", _TWO | {"cross_attention_dim": 32, "caption_channels": 12},
          partial(_ltx, rope_interpolation_scale=(8 / 25, 32, 32)), 2, {"cross": 2}),
    _case("allegro", "AllegroTransformer3DModel",
          _TWO | {"attention_head_dim": 24, "cross_attention_dim": 48, "caption_channels": 12, "sample_frames": 5,
                  "sample_height": 14, "sample_width": 6},
          _allegro, 2, {"cross": 2}),
    _case("easyanimate", "EasyAnimateTransformer3DModel",  # one two-stream and one single-stream block
          _TWO | {"patch_size": 2, "mmdit_layers": 1, "time_embed_dim": 16, "text_embed_dim": 12,
                  "add_norm_text_encoder": True},
          _float_time, 2, {}, text=TEXT, first=True),
    # Padded text is cut off by `nonzero`: 8 of 11 tokens are left in sample 0. Only fullgraph=True captures that; else
    # the graph breaks in every attention and SDPA runs outside of all graphs.
    _case("mochi", "MochiTransformer3DModel",
          _TWO | {"pooled_projection_dim": 24, "text_embed_dim": 16, "time_embed_dim": 16, "max_sequence_length": TEXT},
          partial(_float_time, text_dim=16, mask=torch.bool), 2, {"text pool": 1}, text=TEXT - 3, per_sample=True),
    _case("cosmos", "CosmosTransformer3DModel",  # the padding mask is an input channel, resized by torchvision
          _TWO | {"text_embed_dim": 12, "adaln_lora_dim": 8, "max_size": (16, 32, 32), "concat_padding_mask": False},
          partial(_float_time, fps=24), 2, {"cross": 2}),
    _case("sana_video", "SanaVideoTransformer3DModel",  # self-attention is linear: nothing to rewrite
          _TWO | {"num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32,
                  "caption_channels": 12, "rope_max_seq_len": 32},
          partial(_inputs, mask=torch.int64), 0, {"cross": 2}),
    _case("ltx2", "LTX2VideoTransformer3DModel", _LTX2, _ltx2, 2, {"audio": 2, "cross": 4, "audio video cross": 4}),
    _case("ltx2_coords", "LTX2VideoTransformer3DModel", _LTX2, partial(_ltx2, coords=True), 2,
          {"audio": 2, "cross": 4, "audio video cross": 4}, grid_in_graph=False),
    _case("hunyuan_video_1_5", "HunyuanVideo15Transformer3DModel",
          _TWO | {"in_channels": 9, "num_refiner_layers": 1, "text_embed_dim": 12, "text_embed_2_dim": 22,
                  "image_embed_dim": 10, "rope_axes_dim": (4, 6, 6)},
          # Branches on data before the blocks: Dynamo compiles each block as a graph of its own, without a grid.
          _hunyuan15, 2, {"text": 1}, text=TEXT + 13 + 17, fullgraph=False, grid_in_graph=False),
    # Never looked at while the passes were written.
    _case("wan_animate", "WanAnimateTransformer3DModel",
          _WAN | {"in_channels": 12, "latent_channels": 4, "image_dim": None, "inject_face_latents_blocks": 2,
                  "motion_encoder_size": 16, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 8,
                  "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2,
                  "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}},
          _wan_animate, 2, {"cross": 3}),
    _case("chronoedit", "ChronoEditTransformer3DModel", _WAN | {"rope_temporal_skip_len": 4}, _inputs, 2, {"cross": 2}),
    _case("anyflow", "AnyFlowTransformer3DModel", _WAN, _anyflow, 2, {"cross": 2}),
    _case("helios", "HeliosTransformer3DModel",
          {key: _WAN[key] for key in _WAN if key != "rope_max_seq_len"}
          | {"rope_dim": (4, 6, 6), "has_multi_term_memory_patch": False, "guidance_cross_attn": False,
             "zero_history_timestep": False},
          _helios, 2, {"cross": 2}),
    _case("helios_history", "HeliosTransformer3DModel",
          {key: _WAN[key] for key in _WAN if key != "rope_max_seq_len"} | {"rope_dim": (4, 6, 6)},
          partial(_helios, history=True), 0, {"several": 2, "cross": 2}),
    _case("consisid", "ConsisIDTransformer3DModel",
          _COG | {"use_rotary_positional_embeddings": True, "is_train_face": False},
          partial(_cogvideox, rope="crop"), 2, {}, text=TEXT, first=True),
    _case("motif_video", "MotifVideoTransformer3DModel",  # two-stream and single-stream blocks
          _TWO | {"num_layers": 1, "num_single_layers": 1, "text_embed_dim": 12, "rope_axes_dim": (4, 6, 6)},
          partial(_inputs, mask=torch.int64), 2, {}, text=TEXT),
    _case("kandinsky6", "Kandinsky6Transformer3DModel",
          {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 8, "time_dim": 16,
           "model_dim": 32, "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
           "visual_cond": True},
          _kandinsky6, 2, {"cross": 2, "text": 2}),
    _case("kandinsky5", "Kandinsky5Transformer3DModel",
          {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 8, "time_dim": 16,
           "model_dim": 32, "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
           "visual_cond": True},
          _kandinsky, 2, {"cross": 2, "text": 1}),
    _case("latte", "LatteTransformer3DModel",  # attention within frames and along time, never over both
          _TWO | {"cross_attention_dim": 32, "caption_channels": 12, "patch_size": 2, "sample_size": 14,
                  "video_length": GRID[0], "attention_bias": True, "norm_type": "ada_norm_single",
                  "norm_elementwise_affine": False, "norm_eps": 1e-6, "num_embeds_ada_norm": 1000,
                  "activation_fn": "gelu-approximate"},
          partial(_inputs, enable_temporal_attentions=True), 0, {"spatial": 2, "temporal": 2, "cross": 2},
          any_grid=False),
    _case("flux", "FluxTransformer2DModel",
          {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
           "num_attention_heads": 2, "joint_attention_dim": 12, "pooled_projection_dim": 8, "guidance_embeds": True,
           "axes_dims_rope": (4, 6, 6)},
          _flux, 0, {"image": 2}, grid=(1, 7, 3)),
    _case("sd3", "SD3Transformer2DModel",
          _TWO | {"sample_size": 32, "patch_size": 2, "joint_attention_dim": 12, "caption_projection_dim": 32,
                  "pooled_projection_dim": 8, "pos_embed_max_size": 16},
          _sd3, 0, {"image": 2}, grid=(1, 7, 3)),
)  # fmt: skip


def case(name: str) -> Case:
    return next(c for c in CASES if c.name == name)
