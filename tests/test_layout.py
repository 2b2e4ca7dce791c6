"""The layout: its sizes, its errors, and that its densities are those of the mask."""

from __future__ import annotations

import math
import time

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


@pytest.mark.parametrize("half_width", [1.0, True, None, "1"])
def test_half_widths_are_integers(half_width: object) -> None:
    with pytest.raises(LayoutError, match="integer of at least 0"):
        VideoLayout(2, 2, 2).density(half_width, HeadKind.SPATIAL)


@pytest.mark.parametrize("kind", [3, -1, None, "spatial", 0.5])
def test_kinds_are_named_where_one_is_wrong(kind: object) -> None:
    for call in (lambda: VideoLayout(2, 2, 2).density(0, kind), lambda: VideoLayout(2, 2, 2).half_width_for(0.5, kind)):
        with pytest.raises(LayoutError, match=r"one of 0 \(SPATIAL\), 1 \(TEMPORAL\), 2 \(DENSE\)"):
            call()


@pytest.mark.parametrize("density", [None, "0.3", True, (0.3,)])
def test_densities_are_numbers(density: object) -> None:
    with pytest.raises(LayoutError, match="density must lie in"):
        VideoLayout(2, 2, 2).half_width_for(density, HeadKind.SPATIAL)


@pytest.mark.parametrize("sizes", [(121, 10**5, 10**5), (2, 2, 2, 2**31), (2, 2, 2, 0, False, 2**31)])
def test_more_tokens_than_kernels_can_count_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match="in pixels"):
        VideoLayout(*sizes)


@given(
    layout=st.builds(
        VideoLayout,
        frames=st.integers(1, 200), height=st.integers(1, 2000), width=st.integers(1, 2000),
        text_len=st.integers(0, 1000), block=st.sampled_from((1, 2, 128, 4096)),
    ),
    kind=KINDS,
    share=st.floats(0, 1),
)  # fmt: skip
def test_the_density_of_any_size_is_found_at_once_and_rises(layout: VideoLayout, kind: HeadKind, share: float) -> None:
    half_width = layout.half_width_for(max(share, 0.01), kind)
    widths = (0, half_width, half_width + 1, layout.full_half_width)
    densities = [layout.density(width, kind) for width in sorted(widths)]
    assert densities == sorted(densities)
    assert 0 < densities[0] <= densities[-1] == 1.0


def test_a_layout_of_pixels_takes_no_time() -> None:
    begin = time.perf_counter()
    for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL):
        VideoLayout(121, 1080, 1920).half_width_for(0.3, kind)
    assert time.perf_counter() - begin < 0.5
