"""FLOPs and the bounds on speedup: against torch's own counter, and against the mask counted pair by pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models
import svg_compile
from svg_compile import HeadKind, VideoLayout
from svg_compile.config import SvgConfig
from svg_compile.decisions import Site
from svg_compile.inspection.cost import band_for, cost_of
from svg_compile.inspection.pictures import mask_shares
from toy import ToyVideoDiT, latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise"}


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def site(**more: Any) -> Site:
    layout = VideoLayout(5, 7, 3, block=8)
    return Site(**{"rewritten": True, "reason": None, "layer": "", "layout": layout, "batch": 2, "heads": 3,
                   "head_dim": 16, "tokens": 105, "key_tokens": 105, **more})  # fmt: skip


@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "cogvideox_5b", "sana_video"])
def test_the_models_flops_are_those_that_torch_counts_when_it_runs(name: str) -> None:
    case = models.case(name)
    model, inputs = case.build(), case.inputs(2, case.grid)
    cost = svg_compile.explain(model, options=OPTIONS, **inputs).cost
    assert cost is not None
    # The fused attention of CPUs is unknown to torch's counter: let it run the products.
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(**inputs)
    assert cost.model == counter.get_total_flops()


def test_attentions_flops_are_the_formulas() -> None:
    cost = svg_compile.explain(ToyVideoDiT(), latents(batch=2), options=OPTIONS).cost
    assert cost is not None
    assert cost.attention == 2 * (4 * 2 * 2 * 105 * 105 * 16)
    layout = VideoLayout(5, 7, 3, block=8)
    pairs = min(
        int(mask_shares(layout, kind, layout.half_width_for(0.3, kind)).sum())
        for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL)
    )
    assert cost.stages[0].attention == 2 * (4 * 2 * 2 * pairs * 16 + 4 * 2 * 2 * 64 * 105 * 16)


def test_bounds_are_amdahls() -> None:
    config = SvgConfig(block=8, dense_steps=2, num_inference_steps=8, sampled_rows=1)
    sites = (site(), site(rewritten=False, layout=None))
    cost = cost_of(sites, 10 * cost_of(sites, 0, config).attention, config)
    (stage,) = cost.stages
    assert (stage.steps, cost.dense_steps) == (6, 2)
    saved = cost.attention - stage.attention
    assert cost.attention_bound(stage) == cost.attention / (cost.attention - saved)
    assert cost.model_bound(stage) == cost.model / (cost.model - saved)
    assert cost.run_bound == pytest.approx(8 * cost.model / (8 * cost.model - 6 * saved))
    assert 1 < cost.run_bound < cost.model_bound(stage) < cost.attention_bound(stage)


def test_every_density_of_a_run_has_a_stage() -> None:
    config = SvgConfig(density=((0.0, 0.8), (0.5, 0.4)), dense_steps=0.25, num_inference_steps=20, block=8)
    cost = cost_of((site(),), 10**9, config)
    assert [(stage.density, stage.steps) for stage in cost.stages] == [(0.8, 5), (0.4, 10)]
    assert cost.stages[0].attention > cost.stages[1].attention
    assert cost.sites[0].spatial == tuple(band_for(site(), density, HeadKind.SPATIAL) for density in (0.8, 0.4))


def test_a_profile_that_is_kept_counts_for_the_steps_that_share_it() -> None:
    each, fourth = (cost_of((site(),), None, SvgConfig(block=8, profile_every=every)).stages[0] for every in (1, 4))
    profile = 4 * 2 * 3 * 16 * 64 * 105
    assert each.attention - fourth.attention == profile - profile // 4


def test_what_stays_dense_saves_nothing() -> None:
    cost = cost_of((site(rewritten=False, layout=None),), 10**9, SvgConfig())
    assert cost.attention_bound(cost.stages[0]) == cost.model_bound(cost.stages[0]) == cost.run_bound == 1
    dense = cost_of((site(),), None, SvgConfig(dense_steps=1.0))
    assert (dense.stages[0].steps, dense.run_bound, dense.model_at(dense.stages[0])) == (0, None, None)


def test_a_forward_that_calls_a_graph_twice_pays_twice() -> None:
    case = models.case("hunyuan_video_1_5")
    report = svg_compile.explain(case.build(), **case.inputs(1, case.grid), options=OPTIONS)
    assert report.cost is not None
    assert [cost.dense for cost in report.cost.sites] == [4 * 2 * 16 * 11**2, *2 * [4 * 2 * 16 * 146**2]]
