"""Real diffusers transformers: every decision is correct, and the rewritten model computes the correct result.

At density 1 the model must equal `backend="inductor"`; at density 0.3 it must equal the eager model whose attention
over the video is replaced by the float64 oracle with the plans and the fits that the compiled model used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import models
import svg_compile
from svg_compile import Reason, VideoLayout
from svg_compile.kernels import reference, reference_repair, repair_ops
from svg_compile.kernels.plan import ProfiledRows

BLOCK = 8
OPTIONS = {"min_tokens": 0, "dense_layers": 0, "dense_steps": 0, "block": BLOCK, "on_error": "raise", "strict": True}
REASONS = {
    "cross": {Reason.CROSS_ATTENTION},
    "image cross": {Reason.CROSS_ATTENTION},
    "audio video cross": {Reason.CROSS_ATTENTION},
    "text": {Reason.NOT_VIDEO},
    "text pool": {Reason.CROSS_ATTENTION},
    "audio": {Reason.NOT_VIDEO},
    "image": {Reason.NOT_VIDEO, Reason.UNKNOWN_GRID, Reason.SINGLE_FRAME},
    "several": {Reason.SEVERAL_GRIDS, Reason.UNKNOWN_GRID},
    "spatial": {Reason.UNKNOWN_GRID, Reason.NOT_VIDEO},
    "temporal": {Reason.UNKNOWN_GRID, Reason.NOT_VIDEO},
}
# Each takes half a minute of Inductor: the large families here, their relatives among the slow tests.
COMPILED = (
    *("wan", "hunyuan_video", "cogvideox_5b"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            *("ltx_video", "wan_ti2v", "wan_vace", "wan_animate", "skyreels_v2", "cogvideox_1_5"),
            *("allegro", "easyanimate", "motif_video"),
        )
    ),
)
# One graph of the forward holds every attention, and the grid with it.
WHOLE = [case for case in models.CASES if case.fullgraph and case.grid_in_graph and not case.per_sample]


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


# Another video than the one that a model was configured for; positions are often computed anew for it.
OTHER_GRID: models.Grid = (4, 6, 8)


def layout_of(case: models.Case, grid: models.Grid | None = None) -> VideoLayout:
    return VideoLayout(*(grid or case.grid), case.text_len, case.text_first, BLOCK)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_every_attention_is_decided_rightly(case: models.Case, batch: int) -> None:
    check_decisions(case, batch, case.grid)


@pytest.mark.parametrize("case", [case for case in WHOLE if case.any_grid and case.video_sites], ids=lambda c: c.name)
def test_every_attention_of_another_grid_is_decided_rightly(case: models.Case) -> None:
    check_decisions(case, 1, OTHER_GRID)


def check_decisions(case: models.Case, batch: int, grid: models.Grid) -> None:
    model = case.build()
    with torch.no_grad():
        options = {"min_tokens": 0, "dense_layers": 0, "block": BLOCK}
        report = svg_compile.explain(model, options=options, **case.inputs(batch, grid))
    assert report.graphs == 1
    rewritten = [site for site in report.sites if site.rewritten]
    assert len(rewritten) == case.video_sites
    assert {site.layout for site in rewritten} <= {layout_of(case, grid)}
    assert all(site.batch == batch and site.tokens == layout_of(case, grid).tokens for site in rewritten)
    refused = Counter(site.reason for site in report.sites if not site.rewritten)
    for kind, count in case.other_sites.items():
        found = sum(refused[reason] for reason in REASONS[kind])
        assert found >= count, f"{kind}: {refused}"
    assert sum(refused.values()) == sum(case.other_sites.values())


@dataclass(frozen=True)
class Planned:
    """What a compiled model found for one attention: its plan, the exact rows and the fit of its repair."""

    plan: Tensor
    exact: Tensor
    fit: Tensor


@contextmanager
def recorded_plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Planned]]:
    found: list[Planned] = []
    plans: list[Tensor] = []
    profile_rows_for, repair_of = repair_ops.profile_rows_for, repair_ops.repair_of

    def record_plan(engine: str) -> Callable[..., ProfiledRows]:
        def profile_rows(*args: Any, **kwargs: Any) -> ProfiledRows:
            rows = profile_rows_for(engine)(*args, **kwargs)
            plans.append(rows.plan)
            return rows

        return profile_rows

    def record_repair(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        exact, fit, left = repair_of(*args, **kwargs)
        found.append(Planned(plans[-1], exact, fit))
        return exact, fit, left

    with monkeypatch.context() as patch:
        patch.setattr(repair_ops, "profile_rows_for", record_plan)
        patch.setattr(repair_ops, "repair_of", record_repair)
        yield found


def oracle_sdpa(plans: list[Planned], layout: VideoLayout, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
    remaining = iter(plans)

    def sdpa(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kw: Any
    ) -> Tensor:
        if query.shape[2] != layout.tokens or key.shape[2] != layout.tokens:
            return real(query, key, value, attn_mask, *args, **kw)
        # A key may be seen if any query sees it; a query that sees no key gives 0.
        key_mask = None if attn_mask is None else attn_mask.any(2)[:, 0].expand(query.shape[0], -1)
        planned = next(remaining)
        out = reference.sparse_attention(query, key, value, planned.plan, layout, key_mask=key_mask)
        out = reference_repair.repaired(out, planned.exact, planned.fit, layout)
        out = out if attn_mask is None else out * attn_mask.any(3, keepdim=True)
        return out.to(query.dtype)

    return sdpa


def assert_near(actual: Tensor, expected: Tensor, noise: float) -> None:
    """float32: at most ten times the noise of compiling itself plus ten roundings of the largest value."""
    bound = 10 * (noise + torch.finfo(torch.float32).eps * float(expected.abs().max()))
    assert float((actual - expected).abs().max()) <= bound


def assert_equals_inductor_when_full_and_the_oracle_when_sparse(
    case: models.Case, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], *, fullgraph: bool
) -> None:
    model, inputs, layout = case.build(), case.inputs(2, case.grid), layout_of(case)
    with torch.no_grad():
        eager = models.output(model(**inputs))
        dense = models.output(torch.compile(model, backend="inductor")(**inputs))
        noise = float((dense - eager).abs().max())

        torch._dynamo.reset()
        full = torch.compile(model, backend="svg", fullgraph=fullgraph, options={**options, "density": 1.0})
        assert_near(models.output(full(**inputs)), dense, noise)

        torch._dynamo.reset()
        compiled = torch.compile(model, backend="svg", fullgraph=fullgraph, options={**options, "density": 0.3})
        with recorded_plans(monkeypatch) as plans:
            sparse = models.output(compiled(**inputs))
        assert len(plans) == case.video_sites
        with monkeypatch.context() as patch:
            sdpa = oracle_sdpa(plans, layout, F.scaled_dot_product_attention)
            patch.setattr(F, "scaled_dot_product_attention", sdpa)
            expected = models.output(model(**inputs))
    assert_near(sparse, expected, noise)
    assert float((expected - eager).abs().max()) > 100 * noise, "the plan changed nothing: the test is blind"


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_model_equals_inductor_when_full_and_the_oracle_when_sparse(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = models.case(name)
    assert_equals_inductor_when_full_and_the_oracle_when_sparse(case, monkeypatch, OPTIONS, fullgraph=True)


@pytest.mark.slow
def test_a_model_in_many_graphs_does_so_with_its_grid_given(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each block is a graph of its own, and other graphs hold no video attention.
    case = models.case("hunyuan_video_1_5")
    options = {**OPTIONS, "strict": False, "layout": case.grid}
    assert_equals_inductor_when_full_and_the_oracle_when_sparse(case, monkeypatch, options, fullgraph=False)
