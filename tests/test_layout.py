"""The layout: its sizes, its errors, and that its densities are those of the mask."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import layouts
from svg_compile.errors import LayoutError
from svg_compile.kernels.reference import attention_mask
from svg_compile.layout import HeadKind, VideoLayout

KINDS = st.sampled_from((HeadKind.SPATIAL, HeadKind.TEMPORAL))


@given(layout=layouts(), kind=KINDS, share=st.floats(0, 1))
def test_density_counts_the_mask(layout: VideoLayout, kind: HeadKind, share: float) -> None:
    half_width = round(share * layout.full_half_width)
    pairs = int(attention_mask(layout, half_width, kind).sum())
    assert layout.density(half_width, kind) == pairs / layout.tokens**2


@given(layout=layouts(), kind=KINDS, density=st.floats(0.01, 1))
def test_half_width_is_the_largest_within_the_density(layout: VideoLayout, kind: HeadKind, density: float) -> None:
    half_width = layout.half_width_for(density, kind)
    assert 0 <= half_width <= layout.full_half_width
    assert half_width == 0 or layout.density(half_width, kind) <= density
    if half_width < layout.full_half_width:
        assert layout.density(half_width + 1, kind) > density


@given(layout=layouts(), kind=KINDS)
def test_full_half_width_is_dense(layout: VideoLayout, kind: HeadKind) -> None:
    assert layout.density(layout.full_half_width, kind) == 1.0
    assert attention_mask(layout, layout.full_half_width, kind).all()
    assert layout.half_width_for(1.0, kind) == layout.full_half_width


def test_dense_heads_have_density_one() -> None:
    assert VideoLayout(3, 4, 5, 6).density(0, HeadKind.DENSE) == 1.0


@pytest.mark.parametrize("text_first", [False, True])
def test_positions(text_first: bool) -> None:
    layout = VideoLayout(3, 4, 5, text_len=7, text_first=text_first)
    assert (layout.area, layout.body, layout.video, layout.tokens) == (20, 40, 60, 67)
    assert (layout.text_start, layout.video_start) == ((0, 7) if text_first else (60, 0))


def test_one_token_a_block_gives_a_band_by_token() -> None:
    layout = VideoLayout(3, 1, 4, block=1)
    mask = attention_mask(layout, 2, HeadKind.SPATIAL)
    assert mask[5].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert mask[11].nonzero().flatten().tolist() == [0, 1, 2, 3, 9, 10, 11]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"frames": 0}, "frames"),
        ({"height": -1}, "height"),
        ({"width": 2.0}, "width"),
        ({"width": True}, "width"),
        ({"text_len": -1}, "text_len"),
        ({"block": 0}, "block"),
        ({"block": 96}, "block"),
        ({"text_first": 1}, "text_first"),
    ],
)
def test_bad_layouts_are_named(change: dict[str, object], name: str) -> None:
    fields: dict[str, object] = {"frames": 2, "height": 2, "width": 2, **change}
    with pytest.raises(LayoutError, match=name):
        VideoLayout(**fields)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_bad_densities_are_refused(density: float) -> None:
    with pytest.raises(LayoutError, match="density"):
        VideoLayout(2, 2, 2).half_width_for(density, HeadKind.SPATIAL)


def test_negative_half_widths_are_refused() -> None:
    with pytest.raises(LayoutError, match="half_width"):
        VideoLayout(2, 2, 2).density(-1, HeadKind.SPATIAL)
