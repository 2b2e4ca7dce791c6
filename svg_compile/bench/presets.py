"""The attention of known models: token grid, text and heads of one layer."""

from __future__ import annotations

from dataclasses import dataclass

from svg_compile.layout import VideoLayout


@dataclass(frozen=True)
class Shape:
    """Self-attention of one layer: q, k and v are [batch, heads, layout.tokens, head_dim]."""

    name: str
    layout: VideoLayout
    heads: int
    head_dim: int
    batch: int = 1


# Sizes: the models' own configurations at the resolution named; text as their pipelines pad it.
PRESETS = {
    shape.name: shape
    for shape in (
        # 720 x 1280, 129 frames.
        Shape("hunyuanvideo-720p", VideoLayout(33, 45, 80, text_len=256), 24, 128),
        # Wan 2.1 14B, 720 x 1280, 81 frames.
        Shape("wan-720p", VideoLayout(21, 45, 80), 40, 128),
        # CogVideoX 1.5 5B, 768 x 1360, 81 frames.
        Shape("cogvideox1.5", VideoLayout(11, 48, 85, text_len=226, text_first=True), 48, 64),
        # Cosmos 1.0 7B, 704 x 1280, 121 frames.
        Shape("cosmos", VideoLayout(16, 44, 80), 32, 128),
        # For machines without a GPU.
        Shape("small", VideoLayout(8, 32, 32), 4, 64),
    )
}
