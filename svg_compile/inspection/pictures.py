"""Pictures of masks: which keys the queries of a spatial and of a temporal head attend, for a layout and a density."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from svg_compile.errors import SvgError
from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.mask import mask_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Cells a side, and samples a cell and side: a long sequence has more pairs than a picture can show.
_CELLS, _SAMPLES = 512, 4
_COLOUR = "#0b5cad"


def mask_shares(layout: VideoLayout, kind: HeadKind, half_width: int, cells: int = _CELLS) -> Tensor:
    """The mask as a square picture: the share of each cell's (query, key) pairs that is attended."""
    if layout.tokens <= cells * _SAMPLES:
        every = torch.arange(layout.tokens)
        attended = mask_of(layout, kind, half_width, every, every).float()
        return attended if layout.tokens <= cells else _reduced(attended, cells)
    step = layout.tokens / (cells * _SAMPLES)
    at = ((torch.arange(cells * _SAMPLES) + 0.5) * step).long()
    attended = mask_of(layout, kind, half_width, at, at).float()
    return attended.unflatten(0, (cells, -1)).unflatten(2, (cells, -1)).mean((1, 3))


def _reduced(attended: Tensor, cells: int) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(attended[None], cells)[0]


def draw_masks(layout: VideoLayout, density: float = 0.3) -> Figure:
    """Both masks side by side, as a matplotlib figure; rows are queries, columns keys, in the model's token order."""
    figure = new_figure(figsize=(10.5, 5.6))
    size = f"{layout.frames} x {layout.height} x {layout.width} tokens"
    text = f", {layout.text_len} of text {'before' if layout.text_first else 'after'}" if layout.text_len else ""
    figure.suptitle(f"{size}{text}; density {density:g} asked, in blocks of {layout.block}", fontsize=12)
    for axes, kind in zip(figure.subplots(1, 2), (HeadKind.SPATIAL, HeadKind.TEMPORAL)):
        half_width = layout.half_width_for(density, kind)
        shares = mask_shares(layout, kind, half_width)
        extent = (0, layout.tokens, layout.tokens, 0)
        axes.imshow(shares.numpy(), cmap=attended_colours(), vmin=0, vmax=1, extent=extent, interpolation="nearest")
        reached = layout.density(half_width, kind)
        blocks = "1 block" if half_width == 1 else f"{half_width} blocks"
        axes.set_title(f"{kind.name.lower()} head: {reached:.3f} reached, half-width {blocks}", fontsize=10, pad=9)
        _label(axes, layout)
    figure.supxlabel("keys", fontsize=10)
    figure.supylabel("queries", fontsize=10)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure; the ending of the name says which format, SvgError where it is none."""
    if Path(path).suffix.lower().removeprefix(".") not in formats():
        raise SvgError(f"{path}: the ending says the format, one of {', '.join(formats())}.")
    figure.savefig(path, dpi=130)


def formats() -> tuple[str, ...]:
    """The formats that pictures can be written in."""
    return tuple(sorted(new_figure().canvas.get_supported_filetypes()))


def new_figure(**more: Any) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SvgError("pictures need matplotlib: pip install matplotlib") from error
    # No pyplot: nothing global is made or changed.
    return Figure(layout="constrained", **more)


def attended_colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("attended", ["#f7f7f5", _COLOUR])


def _label(axes: Any, layout: VideoLayout) -> None:
    """Ticks where frames begin, every few of them where there are many, and where the text does."""
    step = max(1, -(-layout.frames // 8))
    ticks = [(layout.video_start + frame * layout.area, f"frame {frame}") for frame in range(0, layout.frames, step)]
    if layout.text_len:
        # Leave out a frame's tick where it would overlap the text's.
        apart = [tick for tick in ticks if abs(tick[0] - layout.text_start) > layout.tokens / 40]
        ticks = [*apart, (layout.text_start, "text")]
    axes.set_xticks([place for place, _ in ticks], [name for _, name in ticks], rotation=90, fontsize=8)
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks], fontsize=8)
