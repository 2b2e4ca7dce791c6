"""The mask against its sentence: text, frame 0, text queries, and a band in one of two orders."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies import layouts
from svg_compile.kernels.reference import attention_mask
from svg_compile.kernels.sampling import sampled_video_token
from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.mask import attends, band_block, band_rank


def token(layout: VideoLayout, position: int) -> tuple[bool, int, int]:
    """(is text, frame, place) of a position; frame and place are 0 for text."""
    video = position - layout.video_start
    if not 0 <= video < layout.video:
        return True, 0, 0
    return False, video // layout.area, video % layout.area


def attends_by_the_sentence(layout: VideoLayout, kind: HeadKind, half_width: int, query: int, key: int) -> bool:
    """The mask in exact Python arithmetic, without the shared functions."""
    query_text, query_frame, query_place = token(layout, query)
    key_text, key_frame, key_place = token(layout, key)
    if query_text or key_text or key_frame == 0:
        return True

    def rank(frame: int, place: int) -> int:
        if kind is HeadKind.TEMPORAL:
            return place * (layout.frames - 1) + max(frame - 1, 0)
        return (frame - 1) * layout.area + place

    blocks = (math.floor(rank(*place) / layout.block) for place in ((query_frame, query_place), (key_frame, key_place)))
    return abs(next(blocks) - next(blocks)) <= half_width


@given(
    layout=layouts(blocks=(1, 2, 8, 16), max_tokens=40),
    kind=st.sampled_from((HeadKind.SPATIAL, HeadKind.TEMPORAL)),
    half_width=st.integers(0, 6),
)
def test_mask_is_its_sentence(layout: VideoLayout, kind: HeadKind, half_width: int) -> None:
    mask = attention_mask(layout, half_width, kind)
    positions = range(layout.tokens)
    expected = [[attends_by_the_sentence(layout, kind, half_width, q, k) for k in positions] for q in positions]
    assert torch.equal(mask, torch.tensor(expected))


@given(layout=layouts(), temporal=st.integers(0, 1))
def test_ranks_of_the_body_are_a_permutation(layout: VideoLayout, temporal: int) -> None:
    video = torch.arange(layout.area, layout.video)
    rank = band_rank(video // layout.area, video % layout.area, layout.frames, layout.area, temporal)
    assert torch.equal(rank.sort().values, torch.arange(layout.body))


@given(layout=layouts(), temporal=st.integers(0, 1))
def test_python_ints_and_tensors_agree(layout: VideoLayout, temporal: int) -> None:
    video = torch.arange(layout.video)
    rank = band_rank(video // layout.area, video % layout.area, layout.frames, layout.area, temporal)
    block = band_block(rank, layout.area, layout.block)
    for index in range(0, layout.video, max(1, layout.video // 20)):
        single = band_rank(index // layout.area, index % layout.area, layout.frames, layout.area, temporal)
        assert single == rank[index]
        assert band_block(single, layout.area, layout.block) == block[index] == single // layout.block


def test_a_pair_attends_on_either_side_of_the_band() -> None:
    near = [bool(attends(False, False, 1, 5, other, 2)) for other in range(10)]
    assert near == [False, False, False, True, True, True, True, True, False, False]


@pytest.mark.parametrize(("count", "video"), [(1, 1), (1, 97), (64, 64), (64, 8192), (63, 119_056), (7, 10)])
def test_sampled_rows_are_stratified(count: int, video: int) -> None:
    tokens = sampled_video_token(torch.arange(count), count, video)
    assert tokens.tolist() == [sampled_video_token(index, count, video) for index in range(count)]
    strata = torch.arange(count + 1) * video // count
    assert (tokens >= strata[:-1]).all()
    assert (tokens * count < (torch.arange(count) + 1) * video).all()
    assert (tokens.diff() >= 0).all()
