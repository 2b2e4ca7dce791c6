"""The Hopper kernel without a GPU: its tiles against the mask, and its source, run in Python, against the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strategies import Problem, layouts, problems, strided
from svg_compile.errors import LayoutError
from svg_compile.kernels.reference import attention_mask
from svg_compile.layout import VideoLayout
from tolerances import assert_matches_oracle

REASON = "this Triton has no Gluon for Hopper"
hopper_attention = pytest.importorskip("svg_compile.kernels.hopper.attention", reason=REASON, exc_type=ImportError)

from gluon_in_python import Machine  # noqa: E402
from svg_compile.kernels.hopper import kernel as hopper_kernel  # noqa: E402
from svg_compile.kernels.hopper import schedule  # noqa: E402
from svg_compile.kernels.triton import runs  # noqa: E402
from svg_compile.kernels.triton.tiles import body_offset  # noqa: E402


class Int32(int):
    """An integer as on a GPU: no value leaves 32 bits, and no negative value is divided."""

    def __new__(cls, value: int) -> Int32:
        assert -(2**31) <= value < 2**31, f"{value} does not fit"
        return super().__new__(cls, value)

    def __add__(self, other: int) -> Int32:
        return Int32(int(self) + int(other))

    def __sub__(self, other: int) -> Int32:
        return Int32(int(self) - int(other))

    def __mul__(self, other: int) -> Int32:
        return Int32(int(self) * int(other))

    def __floordiv__(self, other: int) -> Int32:
        assert self >= 0
        assert other > 0
        return Int32(int(self) // int(other))

    def __mod__(self, other: int) -> Int32:
        assert self >= 0
        assert other > 0
        return Int32(int(self) % int(other))

    def __neg__(self) -> Int32:
        return Int32(-int(self))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: int) -> Int32:
        return Int32(other) - self


MACHINE = Machine(late_products=True)
BLOCK = 128


def python(function: Any) -> Any:
    return MACHINE.in_python(function)


def tile_tokens(
    layout: VideoLayout, in_band: bool, start: int, frame: int, temporal: bool, box: int
) -> list[int | None]:
    """Tokens of a tile's keys, None where the copy engine writes zeros: an independent computation of the copies."""
    keys = []
    for key in range(BLOCK):
        if in_band and temporal:
            place = start + key % (BLOCK // box)
            token = layout.video_start + (1 + frame + key // (BLOCK // box)) * layout.area + place
            keys.append(token if place < layout.area else None)
        else:
            token = start + key + (layout.video_start + layout.area if in_band else 0)
            keys.append(token if token < layout.tokens else None)
    return keys


def check_tile_of_queries(
    layout: VideoLayout, kind: int, half_width: int, is_text: bool, tile: int, mask: Tensor
) -> None:
    """The tiles of one tile of queries show every query each key of its mask once."""
    box = schedule.box_frames(layout.frames, BLOCK)
    number = Int32
    frames, area, text_len = number(layout.frames), number(layout.area), number(layout.text_len)
    body = (frames - 1) * area
    temporal, sees_all = kind == 1, is_text or kind == 2
    width = python(runs.clamped_width)(number(half_width), area, body, layout.block)
    run = python(runs.query_run)(
        number(tile), is_text, area, body, text_len, number(layout.text_start), number(layout.video_start), BLOCK
    )
    is_body, begin, length, start = run
    total, band_end, tiles = python(schedule.tile_list)(
        begin, length, is_body, sees_all, temporal, width, frames, area, text_len, layout.text_first, layout.block, box,
        BLOCK, BLOCK,
    )  # fmt: skip
    assert total > 0
    count = min(BLOCK, length - begin)
    indices = [begin + row for row in range(count)]
    offset = python(body_offset)
    queries = [int(start + offset(index, frames, area, is_body and temporal)) for index in indices]
    ranks = [
        python(schedule.seen_ranks)(index, is_body, temporal, width, frames, area, band_end, layout.block)
        for index in indices
    ]
    firsts, ends = (torch.tensor([int(rank[which]) for rank in ranks]) for which in (0, 1))
    seen = torch.zeros(count, layout.tokens, dtype=torch.int32)
    for turn in range(total):
        in_band, first, frame = python(schedule.tile_at)(number(turn), tiles, temporal, box, BLOCK)
        in_box = in_band and temporal
        positions = torch.tensor(
            [
                int(python(schedule.key_position)(number(key), first, frame, in_box, frames, box, BLOCK))
                for key in range(BLOCK)
            ]
        )
        end = ends[:, None] if in_band else int(tiles[1] if first < tiles[1] else tiles[3])
        shown = (positions >= (firsts[:, None] if in_band else 0)) & (positions < end)
        shown = shown.expand(count, BLOCK)
        tokens = tile_tokens(layout, in_band, int(first), int(frame), temporal, box)
        there = torch.tensor([token is not None for token in tokens])
        assert not (shown & ~there).any(), "a query sees a key that is not there"
        assert turn < tiles[0] or shown.all(), "a tile that is not masked has a hidden key"
        for key in there.nonzero().flatten().tolist():
            seen[:, tokens[key]] += shown[:, key]
    assert torch.equal(seen, mask[queries].int())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tiles_show_the_mask(data: st.DataObject) -> None:
    """Every pair of the mask once, no other pair, and no hidden key in a tile that goes without the mask."""
    layout = data.draw(layouts(max_tokens=1500))
    layout = replace(layout, text_len=data.draw(st.sampled_from((0, 1, 33, 128, 200))))
    kind = data.draw(st.sampled_from((0, 1, 2)))
    half_width = data.draw(st.integers(-1, layout.full_half_width + 2))
    full = torch.ones(layout.tokens, layout.tokens, dtype=torch.bool)
    mask = full if kind == 2 else attention_mask(layout, half_width, kind)
    video_tiles = -(-layout.area // BLOCK) + -(-layout.body // BLOCK)
    for tile in sorted({data.draw(st.integers(0, video_tiles - 1)) for _ in range(3)}):
        check_tile_of_queries(layout, kind, half_width, False, tile, mask)
    if layout.text_len:
        check_tile_of_queries(layout, kind, half_width, True, 0, mask)


@pytest.mark.parametrize(
    ("layout", "most"),
    [(VideoLayout(33, 45, 80, 256), 0.02), (VideoLayout(21, 45, 80), 0.04), (VideoLayout(11, 48, 85, 226, True), 0.06)],
    ids=["HunyuanVideo", "Wan", "CogVideoX1.5"],
)
def test_boxes_waste_little(layout: VideoLayout, most: float) -> None:
    """At model sizes a temporal head's rectangles hold few keys that nobody sees; whole numbers stay in 32 bits."""
    number = Int32
    half_width = layout.half_width_for(0.3, 1)
    begin = number(layout.body // 2 // BLOCK * BLOCK)
    frames, area, body = number(layout.frames), number(layout.area), number(layout.body)
    ranks = python(runs.query_ranks)(begin, body, True, 1, frames, area, BLOCK)
    low, high, *_ = python(runs.band_ranks)(*ranks, False, number(half_width), area, body, layout.block)
    total, _, tiles = python(schedule.tile_list)(
        begin, number(layout.body), True, False, True, number(half_width), number(layout.frames), number(layout.area),
        number(layout.text_len), layout.text_first, layout.block, schedule.box_frames(layout.frames, BLOCK), BLOCK,
        BLOCK,
    )  # fmt: skip
    keys = int(high - low + layout.text_len + layout.area)
    assert keys <= total * BLOCK <= keys * (1 + most)
    assert tiles[0] <= 0.1 * total


@pytest.mark.parametrize(
    ("frames", "box"), [(1, 1), (2, 1), (3, 2), (6, 1), (21, 4), (33, 32), (129, 128), (1025, 128)]
)
def test_frames_of_a_box(frames: int, box: int) -> None:
    assert schedule.box_frames(frames, BLOCK) == box


class Launches:
    """Replaces the kernel in `kernel[grid](...)`."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def __getitem__(self, grid: tuple[int]) -> Any:
        return lambda *args, **constants: self.run(grid[0], *args, **constants)


def order_heads(_: int, plan: Tensor, order: Tensor, *strides: int, BLOCK: int) -> None:
    cost = torch.where(plan[:, 0] < 2, plan[:, 1], 2**31 - 1)
    order[:-1] = cost.sort(descending=True, stable=True).indices.int()


def emulated(late_products: bool, *args: Any) -> Tensor:
    """`hopper_attention` itself, its launches run by the emulator."""
    machine = Machine(late_products)

    def run(programs: int, *args: Any, num_warps: int, **constants: Any) -> None:
        machine.launch(hopper_kernel.hopper_attention_fwd_kernel, programs, *args, **constants)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hopper_attention, "hopper_attention_fwd_kernel", Launches(run))
        patch.setattr(hopper_attention, "head_order_fwd_kernel", Launches(order_heads))
        patch.setattr(hopper_attention, "supports", hopper_attention.unsupported)
        return hopper_attention.hopper_attention(*args)


@settings(max_examples=12, deadline=None)
@given(
    problem=problems(key_masks=("none",)),
    head_dim=st.sampled_from((64, 128)),
    query_strides=st.sampled_from(("contiguous", "spread")),
    strides=st.tuples(*[st.sampled_from(("contiguous", "bshd", "fused_qkv"))] * 2),
    text_len=st.sampled_from((0, 1, 33, 130)),
    scale=st.sampled_from((None, 0.3, -0.2, 0.0)),
    late_products=st.booleans(),
)
def test_the_source_matches_the_oracle(
    problem: Problem,
    head_dim: int,
    query_strides: str,
    strides: tuple[str, str],
    text_len: int,
    scale: float | None,
    late_products: bool,
) -> None:
    """The kernel's own source: addresses, tiles, masks, barriers, softmax. Not layouts, registers or fences."""
    layout = replace(problem.layout, text_len=text_len)
    problem = replace(problem, layout=layout, head_dim=head_dim, strides=(query_strides, *strides))
    tensors, plan = problem.tensors(torch.float16), problem.plan()
    out = emulated(late_products, *tensors, plan, None, layout.grid, scale)
    assert_matches_oracle(out, *tensors, plan, layout, scale=scale)


@pytest.mark.parametrize("late_products", [False, True])
@pytest.mark.parametrize(
    "layout",
    [VideoLayout(5, 16, 17, 130), VideoLayout(9, 10, 13, 40, True, 64), VideoLayout(8, 9, 20, block=1)],
    ids=["boxes of 4", "boxes of 8", "boxes of 1"],
)
def test_many_tiles(layout: VideoLayout, late_products: bool) -> None:
    """More tiles than slots, heads of each kind, tiles with the mask and without."""
    torch.manual_seed(0)
    tensors = [torch.randn(1, layout.tokens, 3, 128).half().transpose(1, 2) for _ in range(3)]
    widths = [layout.half_width_for(0.6, kind) for kind in (0, 1)]
    plan = torch.tensor([[[0, widths[0]], [1, widths[1]], [2, 0]]], dtype=torch.int32)
    out = emulated(late_products, *tensors, plan, None, layout.grid, None)
    assert_matches_oracle(out, *tensors, plan, layout)


def test_what_is_not_supported_is_said() -> None:
    shape = (1, 12, 2, 64)
    rows = [torch.zeros(shape, dtype=torch.float16).transpose(1, 2) for _ in range(3)]
    assert hopper_attention.unsupported(*rows, None) is None
    mask = torch.ones(1, 12, dtype=torch.bool)
    odd = torch.zeros(1, 2, 12, 72, dtype=torch.float16)
    cases = {
        "compute capability 9.0": (hopper_attention.supports, [*rows, None]),
        "no key mask": (hopper_attention.unsupported, [*rows, mask]),
        "bfloat16 or float16": (hopper_attention.unsupported, [*(row.float() for row in rows), None]),
        "one head dim of": (hopper_attention.unsupported, [odd, odd, odd, None]),
        "key has strides": (hopper_attention.unsupported, [rows[0], strided(rows[1], "spread"), rows[2], None]),
        "value has strides": (hopper_attention.unsupported, [*rows[:2], strided(rows[2], "expanded_heads"), None]),
    }
    for reason, (supports, args) in cases.items():
        assert reason in supports(*args)
    with pytest.raises(LayoutError, match=r"compute capability 9\.0"):
        hopper_attention.hopper_attention(
            *rows, torch.zeros(1, 2, 2, dtype=torch.int32), None, [3, 2, 2, 0, 0, 128], None
        )
