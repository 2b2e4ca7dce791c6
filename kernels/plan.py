"""From profiled errors to kinds, and from kinds to a plan."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from svg_compile.errors import LayoutError
from svg_compile.layout import HeadKind, VideoLayout


class ProfiledRows(NamedTuple):
    """The result of a profile.

    plan: int32 [B, H, 2]. errors: [B, H, 2], the mean squared error of (spatial, temporal) attention on the sampled
    rows, at the uniform half-widths of the density. missing: [B, H, 2, rungs], the mass that each half-width leaves out
    (kernels/widths.py); no rungs with uniform half-widths. dense, sparse: [B, H, R, D], the rows' output by dense
    attention and by the plan.
    """

    plan: Tensor
    errors: Tensor
    missing: Tensor
    dense: Tensor
    sparse: Tensor


def plan_from_errors(errors: Tensor, layout: VideoLayout, density: float) -> Tensor:
    """The plan, int32 [B, H, 2], for errors [B, H, 2] of (spatial, temporal): the smaller wins, a tie is spatial.

    An error that is not finite never wins; where neither is finite the head stays dense.
    """
    errors = torch.where(torch.isfinite(errors), errors, float("inf"))
    kind = torch.where(errors[..., 1] < errors[..., 0], int(HeadKind.TEMPORAL), int(HeadKind.SPATIAL))
    kind = torch.where(torch.isinf(errors).all(-1), int(HeadKind.DENSE), kind)
    return plan_from_kinds(kind, layout, density)


def plan_from_kinds(kind: Tensor, layout: VideoLayout, density: float) -> Tensor:
    """The plan, int32 [B, H, 2], of heads of these kinds, integers [B, H], at the half-widths of `density`.

    Any other number than spatial or temporal means dense.
    """
    sparse = (kind == HeadKind.SPATIAL) | (kind == HeadKind.TEMPORAL)
    kind = torch.where(sparse, kind, int(HeadKind.DENSE)).long()
    widths = [layout.half_width_for(density, k) for k in (HeadKind.SPATIAL, HeadKind.TEMPORAL)]
    widths.append(layout.full_half_width)
    return torch.stack((kind, torch.tensor(widths, device=kind.device)[kind]), dim=-1).to(torch.int32)


def kept_plan(previous: Tensor, layout: VideoLayout, density: float, adaptive: bool) -> Tensor:
    """The plan, int32 [B, H, 2], of a step without a profile: `previous` itself with half-widths by need (`adaptive`),
    otherwise its kinds at the half-widths of `density`.
    """
    return previous.contiguous().clone() if adaptive else plan_from_kinds(previous[..., 0], layout, density)


def check_plan(plan: Tensor) -> None:
    """Raise LayoutError if a plan [B, H, 2] on the CPU has an unknown kind or a negative half-width."""
    kinds, half_widths = plan.unbind(-1)
    wrong = ((kinds < 0) | (kinds >= len(HeadKind)) | (half_widths < 0)).nonzero().tolist()
    if wrong:
        batch, head = wrong[0]
        known = ", ".join(f"{kind.value} ({kind.name})" for kind in HeadKind)
        more = f", and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
        raise LayoutError(
            f"plan[{batch}, {head}] is {plan[batch, head].tolist()}{more}: expected (kind, half-width), a kind of "
            f"{known} and a half-width of at least 0 blocks, as svg_compile.profile_heads gives them."
        )
