"""From profiled errors to a plan."""

from __future__ import annotations

import torch
from torch import Tensor

from svg_compile.layout import HeadKind, VideoLayout


def plan_from_errors(errors: Tensor, layout: VideoLayout, density: float) -> Tensor:
    """The plan, int32 [B, H, 2], for errors [B, H, 2] of (spatial, temporal): the smaller wins, a tie is spatial.

    An error that is not finite never wins; where neither is finite the head stays dense.
    """
    errors = torch.where(torch.isfinite(errors), errors, float("inf"))
    kind = torch.where(errors[..., 1] < errors[..., 0], int(HeadKind.TEMPORAL), int(HeadKind.SPATIAL))
    kind = torch.where(torch.isinf(errors).all(-1), int(HeadKind.DENSE), kind)
    widths = [layout.half_width_for(density, k) for k in (HeadKind.SPATIAL, HeadKind.TEMPORAL)]
    widths.append(layout.full_half_width)
    return torch.stack((kind, torch.tensor(widths, device=errors.device)[kind]), dim=-1).to(torch.int32)
