"""What the demo shows: two clips side by side, a contact sheet, and which kind each head was at each step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from moving_shapes import contact_sheet
from quality import frames_of

BAR = 18


def side_by_side(clips: dict[str, Tensor], path: Path, *, frames_per_second: int = 8, height: int = 288) -> None:
    """Write a GIF that repeats: the clips [3, F, H, W] side by side under their names."""
    arrays = {name: frames_of(clip) for name, clip in clips.items()}
    pages = []
    for index in range(len(next(iter(arrays.values())))):
        columns = [labelled(name, frames[index], height) for name, frames in arrays.items()]
        page = Image.fromarray(np.concatenate(columns, axis=1))
        # A palette of each frame's own; dithering would make still parts flicker.
        pages.append(page.quantize(256, dither=Image.Dither.NONE))
    path.parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=1000 // frames_per_second, loop=0)


def sheet(clips: dict[str, Tensor], path: Path, *, columns: int = 8, difference: float = 4.0) -> None:
    """Write a PNG with a row of frames for each clip, and one of the first two clips' difference, enlarged."""
    first, second = list(clips.values())[:2]
    rows = {**clips, f"difference x {difference:g}": ((second - first).abs() * difference - 1).clamp(-1, 1)}
    strips = [labelled(name, contact_sheet([clip.float().cpu()], columns)) for name, clip in rows.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(strips)).save(path)


def head_map(kinds: Tensor, path: Path) -> None:
    """Write a PNG of head kinds, int [steps, layers, heads]: one column a step, one row a head, grouped by layer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    steps, layers, heads = kinds.shape
    colours = {"spatial": "#3b76c4", "temporal": "#e8893b", "dense": "#d9d9d9"}
    figure, axes = plt.subplots(figsize=(2.2 + 0.32 * steps, 1.2 + 0.17 * layers * heads))
    rows = kinds.permute(1, 2, 0).reshape(layers * heads, steps)
    axes.pcolormesh(rows.numpy(), cmap=ListedColormap(list(colours.values())), vmin=0, vmax=2, edgecolors="white")
    axes.set(xlabel="denoising step", ylabel="layer (a row a head)", title="What each head was")
    axes.set_xticks(np.arange(steps) + 0.5, [str(step) for step in range(steps)])
    axes.set_yticks(np.arange(layers) * heads + heads / 2, [str(layer) for layer in range(layers)])
    axes.invert_yaxis()
    for layer in range(1, layers):
        axes.axhline(layer * heads, color="black", linewidth=0.6)
    handles = [Patch(color=colour, label=kind) for kind, colour in colours.items()]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def labelled(name: str, picture: np.ndarray, height: int | None = None) -> np.ndarray:
    """The picture, enlarged by whole numbers to about `height`, under a bar with its name."""
    factor = 1 if height is None else max(1, round(height / picture.shape[0]))
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    bar = Image.new("RGB", (large.shape[1], BAR), "white")
    ImageDraw.Draw(bar).text((4, 3), name, fill="black")
    return np.concatenate([np.asarray(bar), large])
