"""The transformers that `bench block` and `bench forward` build, with random weights, at the size of a usual video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from svg_compile.targets.recipes import Grid


@dataclass(frozen=True)
class Model:
    """A diffusers class and its configuration; the rest are the class' defaults: the released model.

    blocks: kind -> (settings of a model that has one such block alone, how many the whole model has). ffn: inner width
    of the MLPs, also of a product that an MLP shares with a projection and has most of. calls: forwards a denoising
    step (2: guided).
    """

    name: str
    cls: str
    latents: Grid
    text: int
    ffn: tuple[int, ...]
    blocks: Mapping[str, tuple[Mapping[str, Any], int]]
    steps: int = 50
    calls: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)


_COGVIDEOX = {
    "num_attention_heads": 48,
    "num_layers": 42,
    "patch_size_t": 2,
    "patch_bias": False,
    "use_rotary_positional_embeddings": True,
    "sample_height": 300,
    "sample_width": 300,
    "sample_frames": 81,
}
_SMALL = {"num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 4, "ffn_dim": 1024, "in_channels": 4}
MODELS = {
    model.name: model
    for model in (
        Model(
            "hunyuanvideo", "HunyuanVideoTransformer3DModel", (33, 90, 160), 256, (12288, 15360),
            {
                "dual stream": ({"num_layers": 1, "num_single_layers": 0}, 20),
                "single stream": ({"num_layers": 0, "num_single_layers": 1}, 40),
            },
        ),
        Model(
            "wan-14b", "WanTransformer3DModel", (21, 90, 160), 512, (13824,),
            {"block": ({"num_layers": 1}, 40)}, calls=2,
        ),
        Model(
            "cogvideox1.5", "CogVideoXTransformer3DModel", (22, 96, 170), 226, (12288,),
            {"block": ({"num_layers": 1}, 42)}, calls=2, config=_COGVIDEOX,
        ),
        # For machines without a GPU: 8,192 tokens.
        Model(
            "small", "WanTransformer3DModel", (8, 64, 64), 32, (1024,),
            {"block": ({"num_layers": 1}, 4)},
            config={**_SMALL, "out_channels": 4, "text_dim": 64, "freq_dim": 64},
        ),
    )
}  # fmt: skip
