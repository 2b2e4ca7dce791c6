"""The ops of the repair in a rewritten graph, next to `svg::attention` of kernels/ops.py.

    svg::profile_and_fit(q, k, v, key_mask, grid, densities, sampled_rows, adaptive, scale, engine, abi, when,
                         previous, previous_fit, share, group, rank, ranks) -> plan, errors, exact, fit, missing
    svg::repair_(out, exact, fit, grid, engine, abi), in place

The first replaces `svg::profile`, the second follows `svg::attention`. plan, missing, share and group are those of
`svg::profile`. errors are float32 [B, H, 3]: those of the profile for (spatial, temporal), then the leave-one-out error
of the head's repair (without a repair, the error of its kind). exact is float32 [B, H, R, D], the dense output of the R
sampled rows; fit is float32 [B, H, D + 2, D], the affine map of each head (kernels/repair.py). exact is NaN and fit is
0 in heads that run dense or whose mask has no error, so they stay unchanged; fit alone is 0 in heads that the repair
does not improve on left-out rows.

Where a plan is kept, fits are `previous_fit` in heads whose plan is the profiled one, else 0, and exact is NaN, as the
exact rows were those of another step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from svg_compile._compat.gpu import triton_op
from svg_compile.errors import LayoutError
from svg_compile.kernels.ops import ANY_STRIDES, check_stages, engine_for, profile_rows_for
from svg_compile.kernels.plan import kept_plan
from svg_compile.kernels.repair import inverts_rows, kept_fit, repair_of
from svg_compile.kernels.spread import spread_of
from svg_compile.kernels.widths import LADDER
from svg_compile.layout import VideoLayout

Profiled = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("svg::profile_and_fit_host", mutates_args=(), tags=ANY_STRIDES)
def _profile_and_fit_host(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Optional[Tensor],
    grid: Sequence[int],
    densities: Sequence[float],
    sampled_rows: int,
    adaptive: bool,
    scale: Optional[float],
    engine: str,
    abi: int,
    when: Optional[Tensor],
    previous: Optional[Tensor],
    previous_fit: Optional[Tensor],
    share: Optional[Tensor],
    group: Optional[str] = None,
    rank: int = 0,
    ranks: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`svg::profile_and_fit` by ATen calls: the CPU engine, or the oracle. Opaque to Inductor."""
    layout = VideoLayout.of(grid)
    index, anew = (0, 1) if when is None else when.tolist()
    if not 0 <= index < len(densities):
        raise LayoutError(f"`when` asks for density {index} of {len(densities)}.")
    density = densities[index]
    if previous is not None and previous_fit is not None and not anew:
        plan = kept_plan(previous, layout, density, adaptive)
        exact = _nan(query, min(sampled_rows, layout.video), value.shape[3])
        missing = _nan(query, 2, len(LADDER) if adaptive else 0)
        return plan, _nan(query, 3), exact, kept_fit(previous_fit, previous, plan), missing
    options: dict[str, Any] = dict(density=density, sampled_rows=sampled_rows, adaptive=adaptive, share=share)
    options |= dict(key_mask=key_mask, scale=scale, spread=spread_of(group, rank, ranks))
    if engine == "reference":
        from svg_compile.kernels import reference_repair

        plan, *found = reference_repair.profile_and_fit(query, key, value, layout, **options)
        errors, exact, fit, missing = (part.float() for part in found)
        return plan, errors, exact, fit, missing
    rows = profile_rows_for(engine)(query, key, value, layout, **options)
    exact, fit, left = repair_of(rows.dense, rows.sparse, by_rows=inverts_rows(sampled_rows, value.shape[3]))
    return rows.plan, torch.cat((rows.errors, left[..., None]), dim=-1), exact, fit, rows.missing


def _nan(like: Tensor, *sizes: int) -> Tensor:
    """float32 [B, H, *sizes] of NaN."""
    return like.new_full((*like.shape[:2], *sizes), float("nan"), dtype=torch.float32)


@_profile_and_fit_host.register_fake
def _(query, key, value, key_mask, grid, densities, sampled_rows, adaptive, *constants):  # type: ignore[no-untyped-def]
    heads, channels = (query.shape[0], query.shape[1]), value.shape[3]
    count = torch.sym_min(sampled_rows, math.prod(grid[:3]))
    shapes = (3,), (count, channels), (channels + 2, channels), (2, len(LADDER) if adaptive else 0)
    plan = query.new_empty((*heads, 2), dtype=torch.int32)
    return plan, *(query.new_empty((*heads, *shape), dtype=torch.float32) for shape in shapes)


@torch.library.custom_op("svg::repair_host_", mutates_args=("out",), tags=ANY_STRIDES)
def _repair_host(
    out: Tensor,
    exact: Tensor,
    fit: Tensor,
    grid: Sequence[int],
    engine: str,
    abi: int,
) -> None:
    """`svg::repair_` by ATen calls: the CPU engine, or the oracle. Opaque to Inductor."""
    layout = VideoLayout.of(grid)
    if engine == "reference":
        from svg_compile.kernels import reference_repair

        out.copy_(reference_repair.repaired(out, exact, fit, layout))
        return
    from svg_compile.kernels.cpu.repair import repair_

    repair_(out, exact, fit, layout)


@_repair_host.register_fake
def _(out, *rest):  # type: ignore[no-untyped-def]
    return None


@triton_op("svg::profile_and_fit")
def profile_and_fit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Optional[Tensor],
    grid: Sequence[int],
    densities: Sequence[float],
    sampled_rows: int,
    adaptive: bool,
    scale: Optional[float],
    engine: str,
    abi: int,
    when: Optional[Tensor],
    previous: Optional[Tensor],
    previous_fit: Optional[Tensor],
    share: Optional[Tensor],
    group: Optional[str] = None,
    rank: int = 0,
    ranks: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Profile the heads and fit their repairs, or keep both: q, k, v [B, H, N, D], key_mask bool [B, N], when int32
    [2], previous int32 [B, H, 2], previous_fit float32 [B, H, D + 2, D] -> plan int32 [B, H, 2], errors float32
    [B, H, 3], exact float32 [B, H, R, D], fit float32 [B, H, D + 2, D], missing float32 [B, H, 2, rungs].
    """
    check_stages(query, densities, adaptive, when, previous, share)
    if (previous is None) != (previous_fit is None):
        raise LayoutError("svg::profile_and_fit takes previous and previous_fit together.")
    options = (densities, sampled_rows, adaptive, scale)
    if engine_for(query, engine) != "triton":
        stages = (engine, abi, when, previous, previous_fit, share, group, rank, ranks)
        host: Profiled = torch.ops.svg.profile_and_fit_host(query, key, value, key_mask, grid, *options, *stages)
        return host
    from svg_compile.kernels.triton.fit import profile_and_fit

    spread = spread_of(group, rank, ranks)
    return profile_and_fit(query, key, value, key_mask, grid, *options, when, previous, previous_fit, share, spread)


@triton_op("svg::repair_", mutates_args=("out",))
def repair_(
    out: Tensor,
    exact: Tensor,
    fit: Tensor,
    grid: Sequence[int],
    engine: str,
    abi: int,
) -> None:
    """Repair a result of `svg::attention` in place: out [B, H, N, D], exact float32 [B, H, R, D], fit float32
    [B, H, D + 2, D].
    """
    if engine_for(out, engine) != "triton":
        torch.ops.svg.repair_host_(out, exact, fit, grid, engine, abi)
        return
    from svg_compile.kernels.triton.repair import repair_

    repair_(out, exact, fit, grid)


PROFILE = torch.ops.svg.profile_and_fit.default
REPAIR = torch.ops.svg.repair_.default
