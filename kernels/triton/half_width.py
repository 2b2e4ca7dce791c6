"""The half-widths of each density (spatial, temporal, dense), and the ladder, as tables on the device.

With constant sizes they are constants of the graph. With symbolic sizes an opaque op computes them on the host at run
time. In both cases fill kernels write them: no copy from the host, no sync.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from svg_compile.kernels.widths import LADDER, ladder, ladder_cost
from svg_compile.layout import HeadKind, VideoLayout


def half_widths(
    grid: Sequence[int],
    densities: Sequence[float],
    device: torch.device,
) -> Tensor:
    """int32 [n, 3] on `device`: a row for each of n densities, indexed by HeadKind; the sizes may be SymInts."""
    if any(isinstance(size, torch.SymInt) for size in grid):
        return torch.ops.svg.half_widths(grid, densities, device)
    return _filled(VideoLayout.of(grid), densities, device)


@torch.library.custom_op("svg::half_widths", mutates_args=())
def _half_widths(
    grid: Sequence[int],
    densities: Sequence[float],
    device: torch.device,
) -> Tensor:
    """`half_widths` at run time. Opaque to Inductor."""
    return _filled(VideoLayout.of(grid), densities, device)


@_half_widths.register_fake
def _(grid, densities, device):  # type: ignore[no-untyped-def]
    return torch.empty(len(densities), 3, dtype=torch.int32, device=device)


def _filled(layout: VideoLayout, densities: Sequence[float], device: torch.device) -> Tensor:
    bands = (HeadKind.SPATIAL, HeadKind.TEMPORAL)
    full = layout.full_half_width
    rows = [[*(layout.half_width_for(density, kind) for kind in bands), full] for density in densities]
    return _cells([width for row in rows for width in row], torch.int32, device).view(-1, 3)


def ladders(
    grid: Sequence[int],
    densities: Sequence[float],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(half-widths int32 [n, 2 * rungs], costs float32 [n, 2 * rungs + 1]) of `kernels.widths.ladder`, spatial first.

    A row for each of n densities; the last cost is the density itself. The sizes may be SymInts.
    """
    if any(isinstance(size, torch.SymInt) for size in grid):
        found: tuple[Tensor, Tensor] = torch.ops.svg.ladders(grid, densities, device)
        return found
    return _filled_ladders(VideoLayout.of(grid), densities, device)


@torch.library.custom_op("svg::ladders", mutates_args=())
def _ladders(
    grid: Sequence[int],
    densities: Sequence[float],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """`ladders` at run time. Opaque to Inductor."""
    return _filled_ladders(VideoLayout.of(grid), densities, device)


@_ladders.register_fake
def _(grid, densities, device):  # type: ignore[no-untyped-def]
    rungs = 2 * len(LADDER)
    return (
        torch.empty(len(densities), rungs, dtype=torch.int32, device=device),
        torch.empty(len(densities), rungs + 1, dtype=torch.float32, device=device),
    )


def _filled_ladders(layout: VideoLayout, densities: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    widths: list[float] = []
    costs: list[float] = []
    for density in densities:
        for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL):
            widths += ladder(layout, density)[kind]
            costs += ladder_cost(layout, density)[kind]
        costs.append(density)
    shape = (len(densities), -1)
    return _cells(widths, torch.int32, device).view(shape), _cells(costs, torch.float32, device).view(shape)


def _cells(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[n] on `device`, by fills: torch.tensor(values, device=...) copies from the host: a sync, not capturable."""
    return torch.cat([torch.full((1,), value, dtype=dtype, device=device) for value in values])
