"""The three half-widths that each density buys (spatial, temporal, everything), as a table on the device.

With constant sizes they are constants of the graph. With symbolic sizes an opaque op works them out on the host when
the sizes are known. Either way fill kernels write them: nothing is copied from the host and nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from svg_compile.layout import HeadKind, VideoLayout


def half_widths(
    frames: int,
    height: int,
    width: int,
    text_len: int,
    text_first: bool,
    block: int,
    densities: Sequence[float],
    device: torch.device,
) -> Tensor:
    """int32 [n, 3] on `device`: a row for each of n densities, indexed by HeadKind; the sizes may be SymInts."""
    grid = (frames, height, width, text_len, text_first, block)
    if any(isinstance(size, torch.SymInt) for size in grid):
        return torch.ops.svg.half_widths(*grid, densities, device)
    return _filled(VideoLayout(*grid), densities, device)


@torch.library.custom_op("svg::half_widths", mutates_args=())
def _half_widths(
    frames: int,
    height: int,
    width: int,
    text_len: int,
    text_first: bool,
    block: int,
    densities: Sequence[float],
    device: torch.device,
) -> Tensor:
    """`half_widths` at run time. Opaque to Inductor."""
    return _filled(VideoLayout(frames, height, width, text_len, text_first, block), densities, device)


@_half_widths.register_fake
def _(frames, height, width, text_len, text_first, block, densities, device):  # type: ignore[no-untyped-def]
    return torch.empty(len(densities), 3, dtype=torch.int32, device=device)


def _filled(layout: VideoLayout, densities: Sequence[float], device: torch.device) -> Tensor:
    bands = (HeadKind.SPATIAL, HeadKind.TEMPORAL)
    full = layout.full_half_width
    rows = [[*(layout.half_width_for(density, kind) for kind in bands), full] for density in densities]
    # torch.tensor(widths, device=...) would copy from the host, which waits, and cannot be captured.
    cells = [torch.full((1,), width, dtype=torch.int32, device=device) for row in rows for width in row]
    return torch.cat(cells).view(-1, 3)
