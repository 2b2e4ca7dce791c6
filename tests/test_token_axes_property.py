"""Random chains of data movement: whenever the analysis claims a grid, the tokens are exactly in its raster order.

The truth comes from the values: every element carries the number of the token it was, through the same operations.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from svg_compile.layout import VideoLayout
from svg_compile.passes.axes.axis import Kind, Origin
from svg_compile.passes.axes.grid import grid_of
from svg_compile.passes.axes.new_axes import axis_of
from svg_compile.passes.axes.read_grid import Grid
from svg_compile.passes.axes.tracker import AttentionAxes, AxisTracker
from token_calls import CALLS, layer
from token_pieces import NOBODY
from token_programs import GRIDS, TEXT, inputs_of, programs, sequence
from token_steps import Step
from traced import CONFIG, sites_of


def check(
    grid: tuple[int, int, int],
    steps: list[Step],
    order: list[int],
    cuts: tuple[int, int, int],
    side: str,
    dynamic: bool,
    call: str = "plain",
    unasked: tuple[int, int] = (0, 0),
) -> bool:
    """True if the grid was claimed; fails if the claim is wrong.

    call: the form of the attention call, of `token_calls.CALLS`. unasked: the number of keys at the beginning and at
    the end that are not queries.
    """

    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        k = sequence(*inputs, steps, order, cuts, side)
        front, end = part_asked(k, *unasked)
        return CALLS[call](k[:, :, front:end], k, k, 0.5)

    inputs = inputs_of(grid)
    torch._dynamo.mark_static(inputs[0], 4)
    # The last one: before it there may be a layer.
    *_, site = sites_of(attend, *inputs, dynamic=dynamic)
    if not site.rewritten:
        return False
    assert site.layout is not None
    key = sequence(*inputs, steps, order, cuts, side)
    front, end = part_asked(key, *unasked)
    assert site.unasked == (front, key.shape[2] - end)
    assert_raster(together(key, site.before), grid, site.layout)
    return True


def part_asked(key: torch.Tensor, front: int, end: int) -> tuple[int, int]:
    """Where the queries begin and end among keys [B, H, N, D]: less than half of the keys are cut off on each side."""
    most = (key.shape[2] - 1) // 2
    return min(front, most), key.shape[2] - min(end, most)


def together(query: torch.Tensor, before: int) -> torch.Tensor:
    """A query whose first tokens stand behind the others, as attention has them."""
    return query.roll(-before, 2)


def assert_raster(query: torch.Tensor, grid: tuple[int, int, int], layout: VideoLayout) -> None:
    """Fails unless the tokens of a query [B, H, N, D], each its number, stand in the raster order of the layout.

    Tokens outside of the video are attended in full whatever they are, so they are not checked.
    """
    start = layout.video_start
    assert query.shape[2] == layout.tokens
    tokens = query[:, :, start : start + layout.video].long()
    claimed = (layout.frames, layout.height, layout.width)
    # Where tokens were folded into channels the claimed grid is coarser, and the places of whole patches are compared;
    # where it was padded it is wider, and stands for as many places as there are; some frames may have been cut out.
    assert all(size % part == 0 or part > size for size, part in zip(grid[1:], claimed[1:])), f"{claimed} of {grid}"
    height, width = (size // part if size % part == 0 else 1 for size, part in zip(grid[1:], claimed[1:]))
    row, column = tokens // grid[2] % grid[1] // height, tokens % grid[2] // width
    expected = torch.arange(layout.video)[None, None, :, None].expand_as(tokens)
    real = tokens != NOBODY
    wrong = []
    for frames in range(1, max(grid[0] // claimed[0], 1) + 1):
        found = (tokens // (grid[1] * grid[2]) // frames * claimed[1] + row) * claimed[2] + column
        skipped = (found - expected)[real][:1].clamp(min=0)
        wrong.append(bool(((found - skipped != expected) & real).any()) if len(skipped) else False)
    assert not all(wrong), f"claimed {claimed}, the tokens are in another order"


PLAIN = ([0, 1, 2, 3, 4], (1, 1, 4))
# How many keys at the beginning and at the end, at most, are no queries.
PARTS = (st.sampled_from([0, 0, 2, 4, 5, 8, 10, 12, 16]), st.sampled_from([0, 0, 5, 16]))


@settings(max_examples=150)
@example(((4, 4, 4), [("singles", 1, False, False), ("residual", True)], *PLAIN, "none"))
@example(((4, 4, 4), [("singles", 2, False, True), ("mask", False)], *PLAIN, "none"))
@example(((4, 4, 4), [("permute", (0, 1, 3, 2, 4)), ("mask", True)], *PLAIN, "none"))
@example(((4, 4, 4), [("permute", (0, 3, 2, 1, 4)), ("copy", True)], *PLAIN, "none"))
@example(((4, 2, 6), [("spread", 1, 1), ("residual", False)], *PLAIN, "none"))
@example(((4, 4, 4), [("write", 1, False)], *PLAIN, "none"))
@example(((4, 4, 4), [("write", 1, True)], *PLAIN, "none"))
@example(((4, 4, 4), [("unbind", 2, False)], *PLAIN, "none"))
@example(((4, 4, 4), [("permute", (0, 2, 1, 3, 4))], *PLAIN, "none"))
@example(((4, 4, 4), [("place", 1, False, True)], *PLAIN, "none"))
@example(((4, 4, 4), [("place", 2, False, False)], *PLAIN, "none"))
@example(((4, 4, 4), [("rewrite", 1, 1)], *PLAIN, "none"))
@example(((4, 4, 4), [("rewrite", 3, 2)], *PLAIN, "none"))
@example(((4, 4, 4), [("fill", 1, False)], *PLAIN, "first"))
@example(((4, 4, 4), [("fill", 3, False)], *PLAIN, "none"))
@example(((4, 4, 4), [("split", 1, 2, True), ("merge", 1)], *PLAIN, "none"))
@given(programs())
def test_a_claimed_grid_is_the_order_of_the_tokens(program: Any) -> None:
    check(*program, dynamic=False)


@settings(max_examples=int(os.environ.get("SVG_TEST_PROGRAMS", "600")))
@example(((4, 4, 4), [("repeat", 0), ("crop", 0, 0), ("by_index", 0, "less", "copied")], *PLAIN, "none"))
@example(((4, 4, 4), [("pad", 1, 0, 1), ("pieces", 1, 1, "overlapping")], *PLAIN, "none"))
@example(((4, 4, 4), [("by_index", 1, "straight", "added to it")], *PLAIN, "none"))
@example(((4, 4, 4), [("by_index", 1, "swapped", "added to it")], *PLAIN, "none"))
@given(programs())
def test_a_claimed_grid_is_the_order_of_the_tokens_of_many(program: Any) -> None:
    """The same without torch.compile, which takes most of the time: the rules alone, on fake tensors."""
    claim_alone(program, 0, 0, 1)


@settings(max_examples=int(os.environ.get("SVG_TEST_PROGRAMS", "300")))
@example(((4, 4, 4), [], *PLAIN, "first"), 5, 0, 1)
@example(((4, 4, 4), [], *PLAIN, "none"), 16, 0, 1)
@example(((4, 4, 4), [], *PLAIN, "none"), 8, 0, 2)
@given(programs(), *PARTS, st.sampled_from([1, 1, 2]))
def test_a_claimed_grid_of_fewer_queries_than_keys_is_the_order_of_the_keys(
    program: Any, front: int, end: int, group: int
) -> None:
    """The queries are the keys but the first and the last ones."""
    claim_alone(program, front, end, group)


def claim_alone(program: Any, front: int, end: int, group: int) -> None:
    """Fails where a grid is claimed wrongly.

    front, end: how many keys there, at most, are no queries. group: how many heads of the queries share one of keys.
    """
    grid, steps, order, cuts, side = program
    real = inputs_of(grid)
    tracker = AxisTracker()
    with FakeTensorMode() as fake, torch.no_grad():
        inputs = [fake.from_tensor(tensor) for tensor in real]
        for name, value in zip(("video", "text", "mask", "frame"), inputs):
            axes = [
                axis_of(size, Kind.NAMED, Origin(name, (dim,), value.dim())) for dim, size in enumerate(value.shape)
            ]
            tracker.name(value, axes)
        with tracker:
            key = sequence(*inputs, steps, order, cuts, side)
            front, end = part_asked(key, front, end)
            query = key[:, :, front:end].repeat_interleave(group, 1)
    keys = tuple(tracker.of(key))
    found = grid_of(AttentionAxes(tuple(tracker.of(query)), keys, keys), (query.shape[2], key.shape[2]), CONFIG)
    event(f"claimed: {isinstance(found, Grid)}")
    if isinstance(found, Grid):
        assert found.unasked == (front, key.shape[2] - end)
        layout = VideoLayout(found.frames, found.height, found.width, found.text_len, found.text_first)
        query = sequence(*real, steps, order, cuts, side)
        assert_raster(together(query, found.before), grid, layout)


@settings(max_examples=60)
@example(((4, 4, 4), [], *PLAIN, "first"), "flash", 5, 0)
@example(((4, 4, 4), [("roll", 1, 1)], *PLAIN, "none"), "packed flash", 0, 0)
@example(((4, 4, 4), [], *PLAIN, "last; grouped"), "grouped", 0, 0)
@given(programs(), st.sampled_from(list(CALLS)), *PARTS)
def test_a_claimed_grid_of_other_calls_is_the_order_of_the_tokens(
    program: Any, call: str, front: int, end: int
) -> None:
    event(f"claimed: {check(*program, dynamic=False, call=call, unasked=(front, end))}, {call}")


@settings(max_examples=30)
@given(programs())
def test_a_claimed_grid_is_the_order_of_the_tokens_symbolic(program: Any) -> None:
    check(*program, dynamic=True)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "steps",
    [
        [],
        [("contiguous",)],
        [("permute", (0, 4, 1, 2, 3)), ("permute", (0, 2, 3, 4, 1))],
        [("merge", 1), ("merge", 1)],
        [("split", 1, 1, True), ("merge", 1)],
        [("pieces", 2, 1, "in order")] * 2,
        [("pieces", 1, 1, "written back")],
        [("fill", 1, True)],
        [("table", 1), ("table", 2)],
        [("mask", True), ("mask", False), ("residual", True), ("copy", True)],
    ],
)
def test_what_keeps_the_order_is_claimed(grid: tuple[int, int, int], steps: list[Step], dynamic: bool) -> None:
    if steps[:1] == [("merge", 1)]:
        assert check(grid, steps, [0, 1, 2], (1, 1, 2), "none", dynamic)
    else:
        assert check(grid, steps, *PLAIN, "first", dynamic)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_the_order_is_claimed_however_attention_is_called(call: str, dynamic: bool) -> None:
    unasked = (0, 0) if call == "packed flash" else (TEXT, 0)
    assert check((4, 2, 6), [], *PLAIN, "first; flash", dynamic, call, unasked)
    assert check((4, 2, 6), [], *PLAIN, f"last; {call}", dynamic)


@pytest.mark.parametrize("call", CALLS)
def test_a_layer_leaves_the_numbers_of_tokens_as_they_are(call: str) -> None:
    tokens = sequence(*inputs_of((4, 4, 4)), [("roll", 1, 1)], *PLAIN, "first")
    heads = 2 if "grouped" in call else 1
    assert torch.equal(layer(tokens, call), tokens[: 1 if "packed" in call else None].repeat_interleave(heads, 1))


def test_a_window_that_is_put_back_is_claimed() -> None:
    steps = [("split", 2, 2, False), ("permute", (0, 2, 1, 3, 4, 5)), ("contiguous",), ("permute", (0, 2, 1, 3, 4, 5))]
    assert check((3, 4, 2), [*steps, ("merge", 2)], *PLAIN, "none", dynamic=False)
