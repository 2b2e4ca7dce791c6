"""What the pipelines pass to their transformers: one function a family, (batch, token grid) -> keyword arguments.

Dtypes and layouts are those of the class' own pipeline.
"""

from __future__ import annotations

from typing import Any

import torch

Grid = tuple[int, int, int]
# No size of a latent (5, 14, 6) or a text (11) is a channel count of its model: with dynamic shapes Dynamo gives
# equal sizes one symbol, and a channel count would then freeze a token axis.
GRID: Grid = (5, 7, 3)
TEXT = 11


class Draw:
    """Normal tensors from a generator of their own."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)


def inputs_of(
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
    draw, (f, h, w) = Draw(1), grid
    kwargs: dict[str, Any] = {
        "hidden_states": draw(batch, channels, f, patch * h, patch * w),
        "encoder_hidden_states": draw(batch, text, text_dim),
        "timestep": torch.full((batch,), 500, dtype=time),
        "return_dict": False,
    }
    if mask is not None:
        kwargs["encoder_attention_mask"] = text_mask(batch, text).to(mask)
    return kwargs | more


def text_mask(batch: int, length: int) -> torch.Tensor:
    return (torch.arange(length) < length - 3 - 2 * torch.arange(batch)[:, None]).to(torch.int64)


def wan_i2v(batch: int, grid: Grid) -> dict[str, Any]:
    # The attention takes all but the last 512 tokens for image tokens: the text must be 512 long.
    image = Draw(2)(batch, 17, 10)
    return inputs_of(batch, grid, channels=9, text=512, encoder_hidden_states_image=image)


def wan_ti2v(batch: int, grid: Grid) -> dict[str, Any]:
    times = torch.full(grid, 500.0)  # one a token; the conditioning first frame is clean
    times[0] = 0
    return inputs_of(batch, grid, timestep=times.flatten().expand(batch, -1))


def wan_vace(batch: int, grid: Grid) -> dict[str, Any]:
    control = Draw(2)(batch, 12, grid[0], 2 * grid[1], 2 * grid[2])
    scale = torch.tensor([1.0, 0.5])
    return inputs_of(batch, grid, control_hidden_states=control, control_hidden_states_scale=scale)


def hunyuan(batch: int, grid: Grid) -> dict[str, Any]:
    guidance = torch.full((batch,), 6000.0)
    return inputs_of(batch, grid, mask=torch.int64, pooled_projections=Draw(2)(batch, 8), guidance=guidance)


def hunyuan15(batch: int, grid: Grid) -> dict[str, Any]:
    return inputs_of(  # latents, condition latents and their mask; the image of text-to-video is all zeros
        batch, grid, channels=9, patch=1, time=torch.float32, mask=torch.int64,
        encoder_hidden_states_2=Draw(2)(batch, 13, 22), encoder_attention_mask_2=text_mask(batch, 13),
        image_embeds=torch.zeros(batch, 17, 10),
    )  # fmt: skip


def cosmos(batch: int, grid: Grid) -> dict[str, Any]:
    _, h, w = grid
    return inputs_of(batch, grid, time=torch.float32, fps=24, padding_mask=torch.zeros(1, 1, 16 * h, 16 * w))


def wan_animate(batch: int, grid: Grid) -> dict[str, Any]:
    f, h, w = grid  # the first latent frame is of the reference; the face video has four frames for each other one
    draw = Draw(2)
    pose, face = draw(batch, 4, f - 1, 2 * h, 2 * w), draw(batch, 3, 4 * (f - 2) + 1, 16, 16)
    return inputs_of(batch, grid, channels=12, pose_hidden_states=pose, face_pixel_values=face)


def helios(batch: int, grid: Grid, history: bool = False) -> dict[str, Any]:
    f, h, w = grid
    kwargs = inputs_of(batch, grid, indices_hidden_states=torch.arange(20, 20 + f).expand(batch, -1))
    if history:  # of the video so far: the nearest frames as they are, those before ever coarser
        draw = Draw(2)
        for name, start, frames in (("long", 0, 16), ("mid", 16, 2), ("short", 18, 2)):
            kwargs[f"latents_history_{name}"] = draw(batch, 4, frames, 2 * h, 2 * w)
            kwargs[f"indices_latents_history_{name}"] = torch.arange(start, start + frames).expand(batch, -1)
    return kwargs


def anyflow(batch: int, grid: Grid) -> dict[str, Any]:
    times = {"timestep": torch.full((batch, grid[0]), 500.0), "r_timestep": torch.full((batch, grid[0]), 400.0)}
    kwargs = inputs_of(batch, grid, **times)
    return kwargs | {"hidden_states": kwargs["hidden_states"].transpose(1, 2).contiguous()}  # frames before channels


def cogvideox(batch: int, grid: Grid, rope: str, channels: int = 4) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    f, h, w = grid
    rotary = None
    if rope == "crop":
        crops = get_resize_crop_region_for_grid((h, w), GRID[2], GRID[1])
        rotary = get_3d_rotary_pos_embed(16, crops, (h, w), f)
    elif rope == "slice":
        rotary = get_3d_rotary_pos_embed(16, None, (h, w), f, grid_type="slice", max_size=(16, 16))
    latents = Draw(2)(batch, 2 * f if rope == "slice" else f, channels, 2 * h, 2 * w)  # frames before channels
    return inputs_of(batch, grid, hidden_states=latents, image_rotary_emb=rotary)


def ltx(batch: int, grid: Grid, **more: Any) -> dict[str, Any]:
    f, h, w = grid
    kwargs = inputs_of(batch, grid, patch=1, time=torch.float32, mask=torch.int64, num_frames=f, height=h, width=w)
    kwargs["hidden_states"] = kwargs["hidden_states"].flatten(2).transpose(1, 2).contiguous()  # packed
    return kwargs | more


def ltx2(batch: int, grid: Grid, coords: bool = False) -> dict[str, Any]:
    draw, frames = Draw(2), 13
    kwargs = ltx(batch, grid, fps=24.0, audio_num_frames=frames, audio_hidden_states=draw(batch, frames, 10),
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


def allegro(batch: int, grid: Grid) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    f, h, w = grid
    rope: Any = get_3d_rotary_pos_embed_allegro(
        embed_dim=24, crops_coords=((0, 0), (h, w)), grid_size=(h, w), temporal_size=f,
        interpolation_scale=(2.2, 2.0, 2.0), device=torch.device("cpu"),
    )  # fmt: skip
    *freqs, at_f, at_h, at_w = rope
    positions = torch.cartesian_prod(at_f.long(), at_h.long(), at_w.long())
    positions = positions.transpose(0, 1).reshape(3, 1, -1).contiguous()
    return inputs_of(batch, grid, mask=torch.int64, image_rotary_emb=(tuple(freqs), tuple(positions)))


def kandinsky(batch: int, grid: Grid) -> dict[str, Any]:
    f, h, w = grid
    return inputs_of(  # channels last: latents, visual condition and its mask
        batch, grid, time=torch.float32, hidden_states=Draw(2)(batch, f, 2 * h, 2 * w, 9),
        pooled_projections=Draw(3)(batch, 8), visual_rope_pos=[torch.arange(f), torch.arange(h), torch.arange(w)],
        text_rope_pos=torch.arange(TEXT), scale_factor=(1.0, 2.0, 2.0),
    )  # fmt: skip


def kandinsky6(batch: int, grid: Grid) -> dict[str, Any]:
    kwargs = kandinsky(batch, grid)
    del kwargs["text_rope_pos"], kwargs["scale_factor"]
    return kwargs


def flux(batch: int, grid: Grid) -> dict[str, Any]:
    draw, (_, h, w) = Draw(2), grid
    return inputs_of(
        batch, grid, hidden_states=draw(batch, h * w, 16), pooled_projections=draw(batch, 8),
        timestep=torch.full((batch,), 0.5), guidance=torch.full((batch,), 3.5), txt_ids=torch.zeros(TEXT, 3),
        img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(float(h)), torch.arange(float(w))),
    )  # fmt: skip


def sd3(batch: int, grid: Grid) -> dict[str, Any]:
    draw, (_, h, w) = Draw(2), grid
    latents, pooled = draw(batch, 4, 2 * h, 2 * w), draw(batch, 8)
    return inputs_of(batch, grid, time=torch.float32, hidden_states=latents, pooled_projections=pooled)
