"""Half-widths by need: the heads of a layer share the pairs that a density pays for, so that they lose least together.

The profile tells for each head, kind and rung of a ladder of half-widths what share of its dense attention weights
falls outside of the band: m_i(w) on sampled row i. It also knows the squared error e of both kinds at the half-width u
that the density buys, the one all heads have with `widths="uniform"`. The error at another half-width is estimated as

    e(w) = e(u) * sum_i m_i(w)^2 / sum_i m_i(u)^2

as an output is off by the mass that is missing times how far the missing values lie from the mean. (The errors of all
rungs could be measured instead; the pictures came out worse by it, see docs/fidelity.md.) Each head then takes the kind
and rung that make e(w) + price * pairs(w) least, at one price for all heads of a sample, found by bisection so that
their mean density is at most the one asked. What is left of the pairs goes to the heads that gain most for them. If the
estimates do not add up to less than those of the uniform half-widths, these are kept, where the pairs pay for them or
for no other choice either.

A layer may be given more or fewer pairs than the density asks for: its `share`, a multiple of that density, one for
each sample. `shares_of_layers` gives the layers of a model theirs by the same rule, from what each estimated in the
step before: one price for the heads of all layers, so that the mean over layers is the density.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from svg_compile.kernels.plan import plan_from_errors
from svg_compile.layout import HeadKind, VideoLayout

# Densities of the rungs as multiples of the one asked, at most 1; the rung of 1.0 is the uniform half-width.
LADDER = (0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.3, 3.2)
UNIFORM = LADDER.index(1.0)
# Steps of the search for the price, in powers of two between these of the largest error.
STEPS = 24
LEAST_PRICE, MOST_PRICE = -40.0, 20.0
# What a budget may be exceeded by, for rounding.
SLACK = 1 + 1e-6
# Heads at most that are given what the search leaves over.
FILLS = 8


def ladder(layout: VideoLayout, density: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The half-widths, in blocks, of the rungs of a spatial and of a temporal head."""
    kinds = (HeadKind.SPATIAL, HeadKind.TEMPORAL)
    spatial, temporal = (
        tuple(layout.half_width_for(min(1.0, factor * density), kind) for factor in LADDER) for kind in kinds
    )
    return spatial, temporal


def ladder_cost(layout: VideoLayout, density: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The densities that the half-widths of `ladder` reach."""
    spatial, temporal = (
        tuple(layout.density(half_width, kind) for half_width in rungs)
        for kind, rungs in enumerate(ladder(layout, density))
    )
    return spatial, temporal


def plan_by_need(
    errors: Tensor, missing: Tensor, layout: VideoLayout, density: float, share: Tensor | None = None
) -> Tensor:
    """The plan, int32 [B, H, 2], for errors [B, H, 2] of (spatial, temporal) at the uniform half-widths.

    missing: [B, H, 2, rungs], the sampled rows' mean square of the mass that the half-widths of `ladder` leave out.
    share: float32 [B], the mean density of each sample's heads as a multiple of `density`; 1 by default.
    A head neither of whose errors is finite is dense, as with uniform half-widths, and outside of the count.
    """
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
    # A share is a quotient of costs: its product may fall short of them by rounding.
    most = budget * SLACK
    better = (spent(rung) <= most) & ((total < before) | (spent(first) > most))
    chosen = torch.stack((rung // rungs, widths[rung]), dim=-1).to(torch.int32)
    return torch.where((better[:, None] & counted)[..., None], chosen, uniform)


@lru_cache(maxsize=256)
def _costs(layout: VideoLayout, density: float, device: torch.device) -> Tensor:
    """`ladder_cost`, float32 [2 * rungs], on a device; made once, since a copy to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(ladder_cost(layout, density), device=device, dtype=torch.float32).flatten()


def _scaled_needs(need: Tensor, counted: Tensor) -> Tensor:
    """Estimates [B, H, 2 * rungs] over the largest finite one of the sample, 0 in heads that do not count [B, H]."""
    need = torch.where(counted[..., None], need, 0.0)
    known = torch.where(need.isfinite(), need, 0.0)
    return need / known.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _at_one_price(need: Tensor, cost: Tensor, counted: Tensor, budget: Tensor) -> Tensor:
    """The rung [B, H] of each head at the least price for which the counted ones [B, H] cost at most the budget [B].

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

    The heads of all layers of a sample pay one price; a layer's share is the mean density of its heads then, as a
    multiple of the mean over all. So the shares, weighted by the layers' heads, have a mean of 1. A layer without heads
    that count has a share of 1. Nothing waits for the device.
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

    Infinite where nothing can be said: for a kind whose error is not finite, and below a rung that misses nothing.
    """
    at_uniform = missing[..., UNIFORM : UNIFORM + 1]
    ratio = torch.where(missing > 0, missing / at_uniform, 0.0)
    need = torch.where(ratio > 0, errors[..., None] * ratio, 0.0)
    need = torch.where(ratio.isinf() | ~errors.isfinite()[..., None], float("inf"), need)
    return need.flatten(2)


def _filled(rung: Tensor, need: Tensor, cost: Tensor, rest: Tensor) -> Tensor:
    """`rung` [B, H] with one head of each sample moved to where it gains most for its pairs, within the rest [B]."""
    gain = need.gather(-1, rung[..., None]) - need
    more = cost - cost[rung][..., None]
    worth = (gain > 0) & (more > 0) & (more <= rest[:, None, None])
    rate = torch.where(worth, gain / more, 0.0).flatten(1)
    best = rate.argmax(1)
    head, target = best // len(cost), best % len(cost)
    moved = rung.scatter(1, head[:, None], target[:, None])
    return torch.where((rate.amax(1) > 0)[:, None], moved, rung)
