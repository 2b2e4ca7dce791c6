"""The oracle of the repair (kernels/repair.py): ridge regression, refitted for every left-out row, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svg_compile.kernels.reference import profile_rows, sampled_positions
from svg_compile.kernels.repair import RIDGES
from svg_compile.layout import VideoLayout


def ridge(sparse: Tensor, off: Tensor, penalty: float, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """(W [D, D], mean x [D], mean y [D]) for rows x and y [R, D], each of weight `share`."""
    mean_x, mean_y = sparse.mean(0), off.mean(0)
    x, y = (sparse - mean_x) * share**0.5, (off - mean_y) * share**0.5
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(x.mT @ x + penalty * eye, x.mT @ y), mean_x, mean_y


def left_out_error(sparse: Tensor, off: Tensor, penalty: float) -> float:
    """The mean over rows of a row's |error|^2 under the fit to all other rows; inf for a single row."""
    rows = len(sparse)
    if rows == 1:
        return float("inf")
    total = 0.0
    for row in range(rows):
        others = torch.arange(rows) != row
        matrix, mean_x, mean_y = ridge(sparse[others], off[others], penalty, 1.0 / rows)
        total += float((off[row] - mean_y - (sparse[row] - mean_x) @ matrix).square().sum()) / rows
    return total


def fit_head(dense: Tensor, sparse: Tensor) -> tuple[Tensor, float]:
    """(fit [D + 2, D], mean squared error left) of one head's sampled rows [R, D]."""
    dense, sparse = dense.double(), sparse.double()
    off, channels = dense - sparse, sparse.shape[1]
    nothing = sparse.new_zeros(channels + 2, channels)
    if not bool(off.isfinite().all()):
        return nothing, float("nan")
    square = float((sparse - sparse.mean(0)).square().sum()) / len(sparse) ** 2 or 1.0
    errors = [left_out_error(sparse, off, factor * square) for factor in RIDGES]
    before, least = float(off.square().sum()) / len(off), min(errors)
    if not least < before:
        return nothing, before / channels
    matrix, mean_x, mean_y = ridge(sparse, off, RIDGES[errors.index(least)] * square, 1.0 / len(sparse))
    return torch.cat((matrix, mean_x[None], mean_y[None])), least / channels


def profile_and_fit(
    query: Tensor, key: Tensor, value: Tensor, layout: VideoLayout, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The results of `svg::profile_and_fit` in float64: plan, errors, exact, fit, missing. Options: `profile_rows`."""
    plan, errors, missing, dense, sparse = profile_rows(query, key, value, layout, **options)
    exact, channels = dense.clone(), value.shape[3]
    fit = exact.new_zeros(*plan.shape[:2], channels + 2, channels)
    left = exact.new_zeros(plan.shape[:2])
    for batch in range(plan.shape[0]):
        for head in range(plan.shape[1]):
            fit[batch, head], left[batch, head] = fit_head(dense[batch, head], sparse[batch, head])
            if not bool((dense[batch, head] - sparse[batch, head]).abs().max() > 0):
                exact[batch, head] = float("nan")
    return plan, torch.cat((errors, left[..., None]), dim=-1), exact, fit, missing


def repaired(out: Tensor, exact: Tensor, fit: Tensor, layout: VideoLayout) -> Tensor:
    """`out` [B, H, N, D] repaired, float64: the result of `svg::repair_` on sparse attention."""
    channels = out.shape[3]
    matrix, mean_x, mean_y = fit.double().split((channels, 1, 1), dim=2)
    result = out.double().clone()
    video = result[:, :, layout.video_start : layout.video_start + layout.video]
    on = (fit != 0).any(-1).any(-1)[..., None, None]
    video.copy_(torch.where(on, video + mean_y + (video - mean_x) @ matrix, video))
    rows = sampled_positions(layout, exact.shape[2], out.device)
    result[:, :, rows] = torch.where(exact.isnan(), result[:, :, rows], exact.double())
    return result
