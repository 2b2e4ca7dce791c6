"""What attention costs in FLOPs, dense and sparse, and the speedup that this allows at best.

    dense attention     4 * B * H * Nq * Nk * D     two products of 2 * B * H * Nq * Nk * D, as
                                                    torch.utils.flop_counter.sdpa_flop_count counts them
    svg::attention      density * dense             pairs that the mask lets through, VideoLayout.density
    svg::profile        4 * B * H * R * N * D       R sampled rows attended densely; the rest of it costs less
    svg::repair_        not counted: 2 * D * D a token and head, below 1% of the attention at the lengths of real videos
    the model           torch.utils.flop_counter over the traced graphs: products, convolutions and attention

Two kinds of heads reach slightly different densities, as widths come in whole blocks. Which kind a head will be is not
known before it runs, so the smaller one counts. All of it is arithmetic alone: memory, launches and softmax are not in
it, so a speedup read from it is a bound from above and no forecast.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from svg_compile._compat.fake_runs import FakeRun, example_inputs, symbolic_run
from svg_compile._compat.graphs import CPU_FLASH_ATTENTION, fake_mode_of
from svg_compile._compat.operators import parameters_of
from svg_compile.config import SvgConfig
from svg_compile.layout import HeadKind
from svg_compile.passes.attention_operators import AttentionOperator, defined_operators

if TYPE_CHECKING:
    from svg_compile.decisions import Site


@dataclass(frozen=True)
class Band:
    """The band of one kind of head at the requested density: its half-width in blocks, and the density reached."""

    half_width: int
    density: float


@dataclass(frozen=True)
class SiteCost:
    """FLOPs of one attention in one forward.

    sparse, spatial, temporal: at each of the run's densities. Where it stays dense, sparse repeats dense and there are
    no bands.
    """

    dense: int
    sparse: tuple[int, ...]
    spatial: tuple[Band, ...] = ()
    temporal: tuple[Band, ...] = ()


@dataclass(frozen=True)
class Stage:
    """The sparse steps of a run that share a density: how many they are, and all attention's FLOPs in one of them."""

    density: float
    steps: int
    attention: int


@dataclass(frozen=True)
class Cost:
    """FLOPs of one forward, and of a run of `steps` steps, the first `dense_steps` of them dense.

    sites: one entry an attention, in the report's order. model: all of the model, dense; None where it could not be
    counted. stages: the sparse steps, by density. adaptive_widths: the half-widths of `sites` are those of a mean head.
    """

    sites: tuple[SiteCost, ...]
    model: int | None
    stages: tuple[Stage, ...]
    steps: int
    dense_steps: int
    adaptive_widths: bool = False

    @property
    def attention(self) -> int:
        """All attention, dense."""
        return sum(site.dense for site in self.sites)

    def model_at(self, stage: Stage) -> int | None:
        """The model in a sparse step."""
        return None if self.model is None else self.model - self.attention + stage.attention

    def attention_bound(self, stage: Stage) -> float:
        """How many times faster all attention of a sparse step can be, by FLOPs."""
        return self.attention / stage.attention if stage.attention else 1.0

    def model_bound(self, stage: Stage) -> float | None:
        """How many times faster a sparse step of the model can be, by FLOPs (Amdahl)."""
        sparse = self.model_at(stage)
        return self.model / sparse if self.model and sparse else None

    @property
    def run_bound(self) -> float | None:
        """How many times faster a whole run can be, its dense steps included."""
        if not self.model:
            return None
        sparse = sum(stage.steps * (self.model_at(stage) or 0) for stage in self.stages)
        return self.steps * self.model / (self.dense_steps * self.model + sparse)


def cost_of(sites: Sequence[Site], model: int | None, config: SvgConfig) -> Cost:
    """The cost of a model's attentions; `model` is the FLOPs of all of it."""
    steps = config.num_inference_steps
    dense = min(config.dense_until(steps), steps)
    at = Counter(config.stage(step, steps) for step in range(dense, steps))
    each = tuple(site_cost(site, config) for site in sites)
    stages = tuple(
        Stage(density, at[index], sum(cost.sparse[index] for cost in each))
        for index, density in enumerate(config.densities)
    )
    return Cost(each, model, stages, steps, dense, config.adaptive_widths)


def site_cost(site: Site, config: SvgConfig) -> SiteCost:
    """The cost of one attention, over all its calls in a forward; a profile counts for the steps that share it."""
    pairs = 4 * site.batch * site.heads * site.head_dim * site.calls
    dense = pairs * site.tokens * site.key_tokens
    if not site.rewritten or site.layout is None:
        return SiteCost(dense, (dense,) * len(config.densities))
    spatial, temporal = (
        tuple(band_for(site, density, kind) for density in config.densities)
        for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL)
    )
    # Keys that are no queries are computed as if they were.
    full = pairs * site.layout.tokens**2
    profile = pairs * min(config.sampled_rows, site.layout.video) * site.layout.tokens // config.profile_every
    least = (min(bands, key=lambda band: band.density).density for bands in zip(spatial, temporal))
    return SiteCost(dense, tuple(round(share * full) + profile for share in least), spatial, temporal)


def band_for(site: Site, density: float, kind: HeadKind) -> Band:
    """The band that a density buys heads of a kind."""
    assert site.layout is not None
    half_width = site.layout.half_width_for(density, kind)
    return Band(half_width, site.layout.density(half_width, kind))


def count_flops(graph_module: fx.GraphModule) -> int | None:
    """FLOPs of a traced graph, counted on its fake tensors; None where it cannot be run on them."""
    fake_mode = fake_mode_of(graph_module)
    if fake_mode is None:
        return 0
    inputs = example_inputs(graph_module, detached=True).values()
    counter = _counter()
    try:
        with symbolic_run(fake_mode), counter:
            FakeRun(graph_module, fake_mode).run(*inputs)
        return int(counter.get_total_flops())
    except Exception:
        # An operator without a fake form, a size that depends on data: the report says "unknown".
        return None


def counting_flops(call: Callable[[], Any]) -> tuple[Any, int]:
    """(what a call returns, the FLOPs of the operators that it calls)."""
    counter = _counter()
    with counter:
        out = call()
    return out, int(counter.get_total_flops())


def _counter() -> FlopCounterMode:
    # torch counts the fused attention of GPUs, and neither that of CPUs nor that of other libraries.
    others = {each: partial(_operator_flops, each, how) for each, how in defined_operators().items()}
    return FlopCounterMode(display=False, custom_mapping={CPU_FLASH_ATTENTION: _attention_flops, **others})


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The formula above, from shapes [B, H, N, D]."""
    return int(2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _operator_flops(operator: Any, how: AttentionOperator, *args: Any, **kwargs: Any) -> int:
    """The same of another library's operator, from shapes as it takes them."""
    passed = dict(zip(parameters_of(operator) or (), args)) | kwargs
    query, key, value = (list(passed[name]) for name in (how.query, how.key, how.value))
    if how.layout == "BNHD":
        # [B, N, H, D], or [N, H, D] of sequences one behind another.
        query, key, value = ([*each[:-3], each[-2], each[-3], each[-1]] for each in (query, key, value))
    return _attention_flops(query, key, value)
