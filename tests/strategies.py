"""Hypothesis strategies for attention problems: they draw shapes, strides and one seed, never elements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from svg_compile.layout import HeadKind, VideoLayout

STRIDES = ("contiguous", "bshd", "fused_qkv", "expanded_heads", "offset", "spread")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Problem:
    """An attention problem; key_mask "none", "text" (some text hidden), "some" or "most" (of all tokens)."""

    layout: VideoLayout
    batch: int
    heads: int
    head_dim: int
    strides: tuple[str, str, str]
    key_mask: str
    seed: int

    def tensors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, H, N, D], each in its own strides."""
        torch.manual_seed(self.seed)
        shape = (self.batch, self.heads, self.layout.tokens, self.head_dim)
        query, key, value = (strided(torch.randn(shape).to(dtype), name) for name in self.strides)
        return query, key, value

    def plan(self) -> Tensor:
        """int32 [B, H, 2]: each head with its own kind and half-width, 0 and the full one included."""
        generator = torch.Generator().manual_seed(self.seed)
        full = self.layout.full_half_width
        kind = torch.randint(0, len(HeadKind), (self.batch, self.heads), generator=generator)
        width = torch.randint(0, full + 2, (self.batch, self.heads), generator=generator)
        narrow = torch.randint(0, 2, (self.batch, self.heads), generator=generator).bool()
        return torch.stack((kind, torch.where(narrow, width // 4, width)), dim=-1).to(torch.int32)

    def mask(self) -> Tensor | None:
        """The key mask, bool [B, N], or None."""
        generator = torch.Generator().manual_seed(self.seed)
        layout = self.layout
        if self.key_mask == "none":
            return None
        if self.key_mask == "text":
            mask = torch.ones(self.batch, layout.tokens, dtype=torch.bool)
            for row in mask:
                hidden = int(torch.randint(0, layout.text_len + 1, (), generator=generator))
                row[layout.text_start + layout.text_len - hidden : layout.text_start + layout.text_len] = False
            return mask
        share = {"some": 0.8, "most": 0.05}[self.key_mask]
        return torch.rand(self.batch, layout.tokens, generator=generator) < share


def strided(tensor: Tensor, strides: str) -> Tensor:
    """The values of `tensor` [B, H, N, D] in other storage; "expanded_heads" repeats head 0 with stride 0."""
    batch, heads, tokens, width = tensor.shape
    if strides == "contiguous":
        return tensor.contiguous()
    if strides == "bshd":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if strides == "fused_qkv":
        fused = tensor.new_full((batch, tokens, 3, heads, width), float("nan"))
        view = fused[:, :, 1].transpose(1, 2)
    elif strides == "expanded_heads":
        return tensor[:, :1].contiguous().expand(tensor.shape)
    elif strides == "offset":
        view = tensor.new_full((tensor.numel() + 7,), float("nan"))[7:].view(tensor.shape)
    elif strides == "spread":
        view = tensor.new_full((batch, heads, tokens, width, 2), float("nan"))[..., 1]
    else:
        raise ValueError(strides)
    return view.copy_(tensor)


@st.composite
def layouts(draw: st.DrawFn, blocks: tuple[int, ...] = (1, 2, 8, 16, 64, 128), max_tokens: int = 1200) -> VideoLayout:
    """Grids of one frame to many, ragged and exact in blocks, with text on either side or none."""
    block = draw(st.sampled_from(blocks))
    frames = draw(st.integers(1, 9))
    height = draw(st.integers(1, 12))
    width = draw(st.integers(1, max(1, min(16, max_tokens // (frames * height)))))
    text_len = draw(st.sampled_from((0, 0, 1, 7, 33)))
    return VideoLayout(frames, height, width, text_len, draw(st.booleans()), block)


@st.composite
def problems(draw: st.DrawFn, key_masks: tuple[str, ...] = ("none", "text", "some", "most")) -> Problem:
    """Whole problems; q, k and v have their own strides."""
    names = st.sampled_from(STRIDES)
    return Problem(
        layout=draw(layouts()),
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 4)),
        head_dim=draw(st.sampled_from((1, 8, 64, 72, 96))),
        strides=(draw(names), draw(names), draw(names)),
        key_mask=draw(st.sampled_from(key_masks)),
        seed=draw(st.integers(0, 2**31 - 1)),
    )
