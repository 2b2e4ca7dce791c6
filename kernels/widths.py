"""Half-widths by need: the heads of a layer share the pairs of its density so that their total error is least.

For each head, kind and rung of a ladder of half-widths the profile measures the fraction of the dense attention weights
outside of the band: m_i(w) on sampled row i. It also measures the squared error e of both kinds at the uniform
half-width u of the density, the one of all heads with `widths="uniform"`. The error at another half-width is estimated
as

    e(w) = e(u) * sum_i m_i(w)^2 / sum_i m_i(u)^2

because an output's error is the missing mass times the distance of the missing values from the mean. (Measuring the
errors of all rungs instead gave worse pictures, see docs/fidelity.md.) Each head then takes the kind and rung that
minimise e(w) + price * pairs(w), at one price for all heads of a sample, found by bisection so that their mean density
is at most the requested one. Remaining pairs go to the heads that gain most per pair. If the estimates do not add up to
less than those of the uniform half-widths, the uniform half-widths are kept, provided that they are within the budget
or that the choice is not either.

A layer may get more or fewer pairs than the density: its `share` is a multiple of the density, one for each sample.
`shares_of_layers` computes the shares of a model's layers by the same rule, from the estimates of the previous step:
one price for the heads of all layers, so that the mean over layers is the density.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from svg_compile.kernels.plan import plan_from_errors
from svg_compile.kernels.spread import Spread, of_all_processes, of_this_process
from svg_compile.layout import HeadKind, VideoLayout

# Densities of the rungs as multiples of the requested one, clipped to 1; the rung of 1.0 is the uniform half-width.
LADDER = (0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.3, 3.2)
UNIFORM = LADDER.index(1.0)
# Bisection steps for the price, whose log2, relative to the largest error, is between these bounds.
STEPS = 24
LEAST_PRICE, MOST_PRICE = -40.0, 20.0
# Factor by which a budget may be exceeded by rounding.
SLACK = 1 + 1e-6
# Maximum number of heads that get the pairs left over by the search.
FILLS = 8


def ladder(layout: VideoLayout, density: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The half-widths, in blocks, of the rungs of a spatial and of a temporal head."""
    kinds = (HeadKind.SPATIAL, HeadKind.TEMPORAL)
    spatial, temporal = (
        tuple(layout.half_width_for(min(1.0, factor * density), kind) for factor in LADDER) for kind in kinds
    )
    return spatial, temporal


def ladder_cost(layout: VideoLayout, density: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The densities of the half-widths of `ladder`."""
    spatial, temporal = (
        tuple(layout.density(half_width, kind) for half_width in rungs)
        for kind, rungs in enumerate(ladder(layout, density))
    )
    return spatial, temporal


def plan_by_need(
    errors: Tensor,
    missing: Tensor,
    layout: VideoLayout,
    density: float,
    share: Tensor | None = None,
    spread: Spread | None = None,
) -> Tensor:
    """The plan, int32 [B, H, 2], for errors [B, H, 2] of (spatial, temporal) at the uniform half-widths.

    missing: [B, H, 2, rungs], the sampled rows' mean square of the mass that the half-widths of `ladder` leave out.
    share: float32 [B], the mean density of each sample's heads as a multiple of `density`; 1 by default.
    spread: the processes whose heads share the pairs with those of this one; each gets the plan of its own heads.
    A head neither of whose errors is finite is dense, as with uniform half-widths, and not counted in the budget.
    """
    if spread is not None:
        errors, missing = everywhere(errors, missing, spread)
        return of_this_process(plan_by_need(errors, missing, layout, density, share), spread)
    uniform = plan_from_errors(errors, layout, density)
    counted = uniform[..., 0] != HeadKind.DENSE
    widths = torch.tensor(ladder(layout, density), device=errors.device).flatten()
    cost, rungs = _costs(layout, density, errors.device), len(LADDER)
    need = _scaled_needs(estimated_errors(errors.float(), missing.float()), counted)
    # float32, whatever torch's default is.
    budget = density * counted.sum(1, dtype=torch.float32)
    if share is not None:
        budget = budget * share

    def spent(rung: Tensor) -> Tensor:
        return torch.where(counted, cost[rung], 0.0).sum(1)

    rung = _at_one_price(need, cost, counted, budget)
    for _ in range(FILLS):
        rung = _filled(rung, need, cost, budget - spent(rung))
    first = torch.where(uniform[..., 0] == HeadKind.TEMPORAL, rungs + UNIFORM, UNIFORM).long()
    total, before = (need.gather(-1, choice[..., None]).sum((1, 2)) for choice in (rung, first))
    # A share is a quotient of costs: budget = density * share may be below the cost by rounding.
    most = budget * SLACK
    better = (spent(rung) <= most) & ((total < before) | (spent(first) > most))
    chosen = torch.stack((rung // rungs, widths[rung]), dim=-1).to(torch.int32)
    return torch.where((better[:, None] & counted)[..., None], chosen, uniform)


def everywhere(errors: Tensor, missing: Tensor, spread: Spread) -> tuple[Tensor, Tensor]:
    """The errors [B, ranks * H, 2] and the missing mass [B, ranks * H, 2, rungs] of the heads of all processes."""
    every = of_all_processes(torch.cat((errors[..., None].to(missing.dtype), missing), dim=-1), spread)
    return every[..., 0], every[..., 1:]


@lru_cache(maxsize=256)
def _costs(layout: VideoLayout, density: float, device: torch.device) -> Tensor:
    """`ladder_cost`, float32 [2 * rungs], on a device; cached, since a copy to a GPU synchronises."""
    with torch.inference_mode(False):
        return torch.tensor(ladder_cost(layout, density), device=device, dtype=torch.float32).flatten()


def _scaled_needs(need: Tensor, counted: Tensor) -> Tensor:
    """Estimates [B, H, 2 * rungs] divided by the largest finite one of the sample; 0 in heads not `counted` [B, H]."""
    need = torch.where(counted[..., None], need, 0.0)
    known = torch.where(need.isfinite(), need, 0.0)
    return need / known.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _at_one_price(need: Tensor, cost: Tensor, counted: Tensor, budget: Tensor) -> Tensor:
    """The rung [B, H] of each head, at the lowest price for which the `counted` heads [B, H] cost at most `budget` [B].

    need [B, H, rungs], at most 1 where it is finite; cost [rungs].
    """
    low = torch.full_like(budget, LEAST_PRICE)
    high = torch.full_like(low, MOST_PRICE)
    for _ in range(STEPS):
        middle = (low + high) / 2
        rung = (need + middle.exp2()[:, None, None] * cost).argmin(-1)
        fits = torch.where(counted, cost[rung], 0.0).sum(1) <= budget
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    return (need + high.exp2()[:, None, None] * cost).argmin(-1)


def shares_of_layers(
    errors: Sequence[Tensor], missing: Sequence[Tensor], layout: VideoLayout, density: float
) -> Tensor:
    """The share of each layer, float32 [layers, B], from the errors [B, H, 2] and missing mass [B, H, 2, rungs] of all.

    All heads of all layers of a sample have one price; a layer's share is the mean density of its heads at this price,
    divided by the mean over all heads. So the shares, weighted by the layers' heads, have a mean of 1. A layer without
    counted heads has a share of 1. No sync with the device.
    """
    needs = [estimated_errors(e.float(), m.float()) for e, m in zip(errors, missing, strict=True)]
    counted = torch.cat([e.isfinite().any(-1) for e in errors], dim=1)
    need = _scaled_needs(torch.cat(needs, dim=1), counted)
    cost = _costs(layout, density, need.device)
    rung = _at_one_price(need, cost, counted, density * counted.sum(1, dtype=torch.float32))
    paid = torch.where(counted, cost[rung], 0.0)
    mean = paid.sum(1) / counted.sum(1).clamp_min(1)
    shares, heads_of = [], [e.shape[1] for e in errors]
    for heads, some in zip(paid.split(heads_of, dim=1), counted.split(heads_of, dim=1), strict=True):
        share = heads.sum(1) / (some.sum(1).clamp_min(1) * mean)
        shares.append(torch.where(some.any(1), share, 1.0))
    return torch.stack(shares)


def estimated_errors(errors: Tensor, missing: Tensor) -> Tensor:
    """Estimates [B, H, 2 * rungs] for errors [B, H, 2] at the uniform rung and missing mass [B, H, 2, rungs].

    Infinite where no estimate exists: for a kind whose error is not finite, and for a rung that misses mass where the
    uniform one misses none.
    """
    at_uniform = missing[..., UNIFORM : UNIFORM + 1]
    ratio = torch.where(missing > 0, missing / at_uniform, 0.0)
    need = torch.where(ratio > 0, errors[..., None] * ratio, 0.0)
    need = torch.where(ratio.isinf() | ~errors.isfinite()[..., None], float("inf"), need)
    return need.flatten(2)


def _filled(rung: Tensor, need: Tensor, cost: Tensor, rest: Tensor) -> Tensor:
    """`rung` [B, H] with one head of each sample moved to the rung of highest gain per pair, within `rest` [B]."""
    gain = need.gather(-1, rung[..., None]) - need
    more = cost - cost[rung][..., None]
    worth = (gain > 0) & (more > 0) & (more <= rest[:, None, None])
    rate = torch.where(worth, gain / more, 0.0).flatten(1)
    best = rate.argmax(1)
    head, target = best // len(cost), best % len(cost)
    moved = rung.scatter(1, head[:, None], target[:, None])
    return torch.where((rate.amax(1) > 0)[:, None], moved, rung)
