"""Queries that are a part of the keys' tokens: video that attends to text too, frames that attend to earlier frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import svg_compile
from svg_compile import VideoLayout
from svg_compile.kernels import reference, reference_repair
from svg_compile.passes.grid_marker import Marker, entries_of, grids_of, marker_of
from test_models import Planned, recorded_plans
from traced import Recorder, sites_of, verdict

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

B, H, D, VIDEO, TEXT, AREA, TOKENS = 2, 2, 8, (5, 7, 3), 11, 21, 105
Attend = Callable[..., Tensor]


def heads(x: Tensor, count: int = H) -> Tensor:
    return x.unflatten(1, (count, D)).transpose(2, 3)


def text_in_front(video: Tensor, text: Tensor, attend: Attend, mask: Tensor | None) -> Tensor:
    keys = heads(torch.cat([text, video.flatten(2)], 2))
    return attend(heads(video.flatten(2)) * 2, keys, keys + 1, attn_mask=mask)


def text_behind(video: Tensor, text: Tensor, attend: Attend, mask: Tensor | None) -> Tensor:
    keys = heads(torch.cat([video.flatten(2), text], 2))
    return attend(heads(video.flatten(2)) * 2, keys, keys + 1, attn_mask=mask)


def text_on_both_sides(video: Tensor, text: Tensor, attend: Attend, mask: Tensor | None) -> Tensor:
    # The words behind ask as well.
    keys = heads(torch.cat([text[..., :4], video.flatten(2), text[..., 4:]], 2))
    return attend(keys[:, :, 4:] * 2, keys, keys + 1, attn_mask=mask)


def frames_to_come(video: Tensor, text: Tensor, attend: Attend, mask: Tensor | None) -> Tensor:
    keys = heads(video.flatten(2))
    return attend(keys[:, :, AREA:].contiguous() * 2, keys, keys + 1, attn_mask=mask)


# The queries, their expected grid, and the keys in front of and behind them.
CASES: dict[str, tuple[Callable[..., Tensor], str, tuple[int, int]]] = {
    "text in front": (text_in_front, "11+5*7*3", (11, 0)),
    "text behind": (text_behind, "5*7*3+11", (0, 11)),
    "text on both sides": (text_on_both_sides, "4+5*7*3+7", (4, 0)),
    "frames to come": (frames_to_come, "21+4*7*3", (21, 0)),
}


def inputs(masked: bool, keys: int) -> tuple[Tensor, Tensor, Tensor | None]:
    draw = torch.Generator().manual_seed(0)
    video, text = torch.randn(B, H * D, *VIDEO, generator=draw), torch.randn(B, H * D, TEXT, generator=draw)
    mask = torch.ones(B, 1, 1, keys, dtype=torch.bool)
    mask[0, ..., -3:] = mask[1, ..., 2:5] = mask[1, ..., 50:53] = False
    return video, text, mask if masked else None


def model(name: str, attend: Attend = F.scaled_dot_product_attention) -> Callable[..., Tensor]:
    ask = CASES[name][0]

    def forward(video: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        return ask(video, text, attend, mask).transpose(1, 2) * 2

    return forward


def of_case(name: str, masked: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    return inputs(masked, TOKENS if name == "frames to come" else TOKENS + TEXT)


def compiled(name: str, density: float, **more: object) -> tuple[Recorder, Callable[..., Tensor]]:
    options = {"min_tokens": 1, "dense_layers": 0, "dense_steps": 0, "block": 8, "density": density}
    recorder = Recorder(svg_compile.config.SvgConfig(**options), rewrite=True)  # type: ignore[arg-type]
    return recorder, torch.compile(model(name), backend=recorder, fullgraph=True, **more)  # type: ignore[call-overload]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_at_density_one_it_is_dense_attention(name: str, dynamic: bool, masked: bool) -> None:
    recorder, run = compiled(name, 1.0, dynamic=dynamic)
    given = of_case(name, masked)
    actual, (site,) = run(*given), recorder.sites
    assert (verdict(site), site.unasked) == CASES[name][1:]
    video, text, mask = given
    torch.testing.assert_close(actual, model(name)(video.double(), text.double(), mask).float())
    assert actual.stride() == model(name)(*given).stride()


def oracle(planned: list[Planned], layout: VideoLayout, before: int, unasked: tuple[int, int]) -> Attend:
    """The oracle over the keys' whole sequence, without the rows that are not queries."""

    def sdpa(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        (found,) = planned
        order = torch.cat([torch.arange(before, layout.tokens), torch.arange(before)])
        asked = torch.zeros_like(key)
        asked[:, :, unasked[0] : layout.tokens - unasked[1]] = query
        moved = (tensor[:, :, order] for tensor in (asked, key, value))
        key_mask = None if attn_mask is None else attn_mask[:, 0, 0].expand(B, -1)[:, order]
        out = reference.sparse_attention(*moved, found.plan, layout, key_mask=key_mask)
        out = reference_repair.repaired(out, found.exact, found.fit, layout)
        back = torch.empty_like(out)
        back[:, :, order] = out
        return back[:, :, unasked[0] : layout.tokens - unasked[1]].to(query.dtype)

    return sdpa


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_sparse_one_is_the_oracles(name: str, masked: bool) -> None:
    recorder, run = compiled(name, 0.3)
    given = of_case(name, masked)
    with pytest.MonkeyPatch.context() as patch, recorded_plans(patch) as plans:
        actual = run(*given)
    (site,) = recorder.sites
    assert site.layout is not None
    expected = model(name, oracle(plans, site.layout, site.before, site.unasked))(*given)
    torch.testing.assert_close(actual, expected)
    assert float((actual - model(name)(*given)).abs().max()) > 1e-3, "the plan changed nothing: the test is blind"


@pytest.mark.parametrize("name", CASES)
def test_only_rows_that_were_asked_are_profiled(name: str) -> None:
    recorder, _ = compiled(name, 0.3)
    torch.compile(model(name), backend=recorder)(*of_case(name, False))
    (site,) = recorder.sites
    layout = site.layout
    assert layout is not None
    # Where the rows stood before tokens on both sides were brought together.
    rows = (reference.sampled_positions(layout, 64) + site.before) % layout.tokens
    assert int(rows.min()) >= site.unasked[0]
    assert int(rows.max()) < layout.tokens - site.unasked[1]


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_heads_that_share_keys(density: float) -> None:
    def attention(video: Tensor, text: Tensor) -> Tensor:
        keys = heads(torch.cat([text, video.flatten(2)], 2))
        query = F.linear(video.flatten(2).mT, wide).mT
        return F.scaled_dot_product_attention(heads(query, 2 * H), keys, keys + 1, enable_gqa=True)

    (video, text, _), wide = inputs(False, TOKENS), torch.randn(2 * H * D, H * D, generator=torch.manual_seed(0))
    config = svg_compile.config.SvgConfig(min_tokens=1, dense_layers=0, dense_steps=0, block=8, density=density)
    recorder = Recorder(config, rewrite=True)
    with pytest.MonkeyPatch.context() as patch, recorded_plans(patch) as plans:
        actual = torch.compile(attention, backend=recorder, fullgraph=True)(video, text)
    (site,) = recorder.sites
    assert (verdict(site), site.heads, site.unasked) == ("11+5*7*3", 2 * H, (11, 0))
    dense = attention(video, text)
    if density == 1.0:
        return torch.testing.assert_close(actual, dense)
    assert site.layout is not None
    keys = heads(torch.cat([text, video.flatten(2)], 2)).repeat_interleave(2, 1)
    query = heads(F.linear(video.flatten(2).mT, wide).mT, 2 * H)
    expected = oracle(plans, site.layout, 0, site.unasked)(query, keys, keys + 1)
    torch.testing.assert_close(actual, expected)
    assert float((actual - dense).abs().max()) > 1e-3


def test_the_report_says_what_is_attended_in_full_and_counts_its_rows() -> None:
    video, text, _ = inputs(False, TOKENS)
    options = {"min_tokens": 0, "dense_layers": 0, "block": 8, "sampled_rows": 16}
    report = svg_compile.explain(lambda v, t: model("text in front")(v, t, None), video, text, options=options)
    (site,), cost = report.sites, report.cost
    assert cost is not None
    assert site.decision == "sparse: 11 keys that are no queries are attended in full, 9% of the keys"
    assert cost.attention == 4 * B * H * D * 105 * 116
    assert site.layout is not None
    widths = [
        site.layout.density(site.layout.half_width_for(0.3, kind), kind)
        for kind in (svg_compile.HeadKind.SPATIAL, svg_compile.HeadKind.TEMPORAL)
    ]
    # All 116 rows are computed, and 16 of the video's are profiled.
    assert cost.stages[0].attention == round(min(widths) * 4 * B * H * D * 116 * 116) + 4 * B * H * D * 16 * 116


@pytest.mark.parametrize("name", CASES)
def test_a_marker_carries_the_part(name: str) -> None:
    video, text, mask = of_case(name, False)
    (site,) = sites_of(model(name), video, text, mask)
    marker = marker_of([site, site])
    assert all(text.endswith(" of keys") for text, _ in entries_of(marker))
    for grid in grids_of(Marker(marker.text, marker.sizes)):
        assert not isinstance(grid, svg_compile.Reason)
        assert (grid.unasked, grid.before, grid.text_first) == (site.unasked, site.before, site.layout.text_first)  # type: ignore[union-attr]
        assert (grid.tokens, grid.queries) == (site.key_tokens, site.tokens)
