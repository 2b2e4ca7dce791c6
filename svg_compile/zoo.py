"""Video transformers that the command line and the benchmarks know by name: diffusers' classes, and released models.

Of each the usual size and what no configuration says; all else is read from the class. The backend asks nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from svg_compile.layout import VideoLayout

# Frames x height x width, of latents.
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class VideoClass:
    """A diffusers class: the usual size of its latents and text, and settings without which it makes no valid model.

    float_time: its pipeline passes the timestep in float32.
    """

    latents: Grid
    text: int
    float_time: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)


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

CLASSES: dict[str, VideoClass] = {
    "WanTransformer3DModel": VideoClass((21, 60, 104), 512),
    "WanVACETransformer3DModel": VideoClass((21, 60, 104), 512),
    "SkyReelsV2Transformer3DModel": VideoClass((25, 68, 120), 512),
    "HunyuanVideoTransformer3DModel": VideoClass((33, 90, 160), 256),
    "HunyuanVideo15Transformer3DModel": VideoClass((31, 30, 52), 1000),
    "CogVideoXTransformer3DModel": VideoClass((13, 60, 90), 226),
    "LTXVideoTransformer3DModel": VideoClass((21, 16, 22), 128, float_time=True),
    "LTX2VideoTransformer3DModel": VideoClass((16, 16, 24), 1024, float_time=True),
    "AllegroTransformer3DModel": VideoClass((22, 90, 160), 512),
    "EasyAnimateTransformer3DModel": VideoClass((13, 48, 84), 512, float_time=True, config=_EASYANIMATE),
    "MochiTransformer3DModel": VideoClass((15, 60, 106), 256, float_time=True),
    # The padding mask is a channel more, resized by torchvision; attention is the same without.
    "CosmosTransformer3DModel": VideoClass((16, 88, 160), 512, float_time=True, config={"concat_padding_mask": False}),
    "SanaVideoTransformer3DModel": VideoClass((21, 60, 104), 300),
    "Kandinsky5Transformer3DModel": VideoClass((31, 64, 96), 256, float_time=True),
    "LatteTransformer3DModel": VideoClass((16, 64, 64), 120, config=_LATTE),
}


@dataclass(frozen=True)
class Shape:
    """Self-attention of one layer: q, k and v are [batch, heads, layout.tokens, head_dim]."""

    name: str
    layout: VideoLayout
    heads: int
    head_dim: int
    batch: int = 1


@dataclass(frozen=True)
class Model:
    """A released model: a class of diffusers and the settings in which it differs from the class' defaults.

    preset: the name of its attention. latents, text: None for the class' usual. text_first: where the text stands in
    the attended sequence; None where it is attended apart. blocks: kind -> (the setting that counts such blocks, how
    many there are). ffn: inner width of the MLPs, also of a product that an MLP shares with a projection and has most
    of. calls: forwards a denoising step (2: guided).
    """

    name: str
    preset: str
    cls: str
    heads: int
    head_dim: int
    ffn: tuple[int, ...] = ()
    blocks: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    latents: Grid | None = None
    text: int | None = None
    text_first: bool | None = None
    steps: int = 50
    calls: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[Grid, int]:
        """(latents, text) of its usual video."""
        usual = CLASSES[self.cls]
        return self.latents or usual.latents, usual.text if self.text is None else self.text

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the whole model."""
        heads = {"num_attention_heads": self.heads, "attention_head_dim": self.head_dim}
        return {**heads, **dict(self.blocks.values()), **self.settings}

    def one_block(self, kind: str) -> dict[str, Any]:
        """The configuration of a model that has one block of this kind, and no others."""
        return {**self.config, **{setting: int(each == kind) for each, (setting, _) in self.blocks.items()}}

    @property
    def shape(self) -> Shape:
        """Its self-attention; patches are of 2 x 2 latents, and of one frame if the settings do not say otherwise."""
        (frames, height, width), text = self.size
        grid = frames // self.settings.get("patch_size_t", 1), height // 2, width // 2
        apart = self.text_first is None
        layout = VideoLayout(*grid, text_len=0 if apart else text, text_first=bool(self.text_first))
        return Shape(self.preset, layout, self.heads, self.head_dim)


_COGVIDEOX = {
    "patch_size_t": 2,
    "patch_bias": False,
    "use_rotary_positional_embeddings": True,
    "sample_height": 300,
    "sample_width": 300,
    "sample_frames": 81,
}
_SMALL = {"in_channels": 4, "out_channels": 4, "text_dim": 64, "freq_dim": 64, "ffn_dim": 1024}
_RELEASED = (
    # 720 x 1280, 129 frames.
    Model(
        "hunyuanvideo", "hunyuanvideo-720p", "HunyuanVideoTransformer3DModel", 24, 128, (12288, 15360),
        {"dual stream": ("num_layers", 20), "single stream": ("num_single_layers", 40)}, text_first=False,
    ),
    # Wan 2.1 14B, 720 x 1280, 81 frames.
    Model(
        "wan-14b", "wan-720p", "WanTransformer3DModel", 40, 128, (13824,), {"block": ("num_layers", 40)},
        latents=(21, 90, 160), calls=2,
    ),
    # CogVideoX 1.5 5B, 768 x 1360, 81 frames.
    Model(
        "cogvideox1.5", "cogvideox1.5", "CogVideoXTransformer3DModel", 48, 64, (12288,), {"block": ("num_layers", 42)},
        latents=(22, 96, 170), text_first=True, calls=2, settings=_COGVIDEOX,
    ),
    # Cosmos 1.0 7B, 704 x 1280, 121 frames: its attention alone.
    Model("cosmos", "cosmos", "CosmosTransformer3DModel", 32, 128),
    # For machines without a GPU: 8,192 tokens.
    Model(
        "small", "small", "WanTransformer3DModel", 4, 64, (1024,), {"block": ("num_layers", 4)},
        latents=(8, 64, 64), text=32, settings=_SMALL,
    ),
)  # fmt: skip
# What `bench block` and `bench forward` build, with random weights, and the attentions of `bench attention`.
MODELS = {model.name: model for model in _RELEASED if model.blocks}
PRESETS = {model.preset: model.shape for model in _RELEASED}
