"""How much of a head's attention its mask keeps: mask and probabilities of some query rows, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from svg_compile.errors import LayoutError
from svg_compile.inspection.pictures import attended_colours, new_figure
from svg_compile.kernels.sampling import sampled_video_token
from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.mask import mask_of, tokens_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Columns of a picture: more keys share one, for it has no more pixels.
_CELLS = 512


@dataclass(frozen=True, eq=False)
class SampledAttention:
    """Some query rows of one head. queries: their positions, [M]; probabilities: float32 [M, N]; seen: bool [M, N],
    what the head's mask lets through; kept: the share of the rows' probability that it does, a mean.
    """

    queries: Tensor
    probabilities: Tensor
    seen: Tensor

    @property
    def kept(self) -> float:
        return float((self.probabilities * self.seen).sum(-1).mean())


def sample_attention(
    query: Tensor,
    key: Tensor,
    layout: VideoLayout,
    plan: Tensor,
    *,
    batch: int = 0,
    head: int = 0,
    rows: int = 256,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> SampledAttention:
    """Dense attention of `rows` video queries of one head, spread evenly as the profile's are, and its mask there.

    query, key: [B, H, N, D]; plan: int [B, H, 2]; key_mask: bool [B, N]; scale: default D ** -0.5. All may be on any
    device; what is returned is on the CPU.
    """
    if query.dim() != 4 or query.shape != key.shape or query.shape[2] != layout.tokens:
        got = f"{list(query.shape)} and {list(key.shape)}"
        raise LayoutError(f"query and key must be [B, H, {layout.tokens}, D] for {layout}, got {got}.")
    if tuple(plan.shape) != (query.shape[0], query.shape[1], 2):
        raise LayoutError(f"plan must be {[query.shape[0], query.shape[1], 2]}, got {list(plan.shape)}.")
    count = min(rows, layout.video)
    queries = layout.video_start + sampled_video_token(torch.arange(count), count, layout.video).sort().values
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query[batch, head].index_select(0, queries.to(query.device)).float() @ key[batch, head].float().T * scale
    kind, half_width = plan[batch, head].tolist()
    seen = mask_of(layout, kind, half_width, queries, torch.arange(layout.tokens))
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[batch], float("-inf"))
        seen = seen & key_mask[batch].cpu()
    return SampledAttention(queries, scores.softmax(-1).nan_to_num(0.0).cpu(), seen)


def draw_attention(query: Tensor, key: Tensor, layout: VideoLayout, plan: Tensor, **more: Any) -> Figure:
    """A head's mask next to its dense attention on the same rows, and how much of it the mask keeps.

    Arguments are those of `sample_attention`. Queries and keys stand in the head's own order, in which its mask is a
    band: frame by frame, or for a temporal head place by place through all frames but the first. Shades of the
    attention are logarithmic, over four decades.
    """
    from matplotlib.colors import LogNorm

    sampled = sample_attention(query, key, layout, plan, **more)
    kind, half_width = plan[more.get("batch", 0), more.get("head", 0)].tolist()
    order = _order(layout, kind)
    rows = tokens_at(layout, kind, sampled.queries).rank.argsort()
    count, tokens = sampled.seen.shape
    extent = (0, tokens, count, 0)
    figure = new_figure(figsize=(10.5, 4.9))
    left, right = figure.subplots(1, 2, sharey=True)
    shares = adaptive_avg_pool1d(sampled.seen[rows][:, order].float(), min(tokens, _CELLS))
    drawn = {"extent": extent, "aspect": "auto", "interpolation": "nearest"}
    left.imshow(shares.numpy(), cmap=attended_colours(), vmin=0, vmax=1, **drawn)
    # The mean probability of a cell's keys, 1 being that of keys all alike.
    shades = adaptive_avg_pool1d(sampled.probabilities[rows][:, order], min(tokens, _CELLS)) * tokens
    most = float(shades.max())
    image = right.imshow(
        shades.clamp_min(most / 1e4).numpy(), cmap="magma", norm=LogNorm(most / 1e4, most), extent=extent,
        aspect="auto", interpolation="nearest",
    )  # fmt: skip
    bar = figure.colorbar(image, ax=right, fraction=0.05, pad=0.02)
    bar.set_label("probability, in units of 1 / keys", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    width = "" if kind == HeadKind.DENSE else f", half-width {half_width}"
    density = layout.density(half_width, kind)
    left.set_title(f"mask: {HeadKind(kind).name.lower()}{width}, density {density:.3f}", fontsize=10)
    right.set_title(f"attention: the mask keeps {sampled.kept:.1%} of it", fontsize=10)
    ticks = _ticks(layout, kind)
    for axes in (left, right):
        axes.set_xticks([place for place, _ in ticks], [name for _, name in ticks], rotation=90, fontsize=8)
        axes.set_xlabel("keys, in the order of the head", fontsize=9)
        axes.tick_params(axis="y", left=False, labelleft=False)
    left.set_ylabel(f"{count} sampled queries, in the same order", fontsize=9)
    return figure


def _order(layout: VideoLayout, kind: int) -> Tensor:
    """All positions: text at its side, frame 0, then the body by rank."""
    video = layout.video_start + torch.arange(layout.video)
    first, body = video.split((layout.area, layout.body))
    video = torch.cat([first, body[tokens_at(layout, kind, body).rank.argsort()]])
    text = layout.text_start + torch.arange(layout.text_len)
    return torch.cat([text, video] if layout.text_first else [video, text])


def _ticks(layout: VideoLayout, kind: int) -> list[tuple[int, str]]:
    """Where in that order the text, frame 0 and some frames, or rows of a picture, begin."""
    start = layout.video_start
    ticks = [(start, "frame 0")]
    if kind == HeadKind.TEMPORAL:
        every = max(1, -(-layout.height // 8))
        rows = range(0, layout.height, every)
        ticks += [(start + layout.area + row * layout.width * (layout.frames - 1), f"row {row}") for row in rows]
    else:
        every = max(1, -(-layout.frames // 8))
        ticks += [(start + frame * layout.area, f"frame {frame}") for frame in range(every, layout.frames, every)]
    if layout.text_len:
        ticks = [tick for tick in ticks if abs(tick[0] - layout.text_start) > layout.tokens / 40]
        ticks.append((layout.text_start, "text"))
    return ticks
