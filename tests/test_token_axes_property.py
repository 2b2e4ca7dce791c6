"""Random chains of data movement: whenever the analysis claims a grid, the tokens are exactly in its raster order.

The truth comes from the values: every element carries the number of the token it was, through the same operations.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings

from token_programs import BATCH, GRIDS, TEXT, Step, payload, programs, sequence
from traced import sites_of


def check(
    grid: tuple[int, int, int],
    steps: list[Step],
    order: list[int],
    cuts: tuple[int, int, int],
    side: str,
    dynamic: bool,
) -> bool:
    """Whether the grid was claimed; fails where it was claimed wrongly."""

    def attend(x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q = sequence(x, text, mask, steps, order, cuts, side)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    x, text, mask = payload(grid), torch.full((TEXT,), -1.0), torch.ones(BATCH, *grid, 1)
    torch._dynamo.mark_static(x, 4)
    (site,) = sites_of(attend, x, text, mask, dynamic=dynamic)
    if not site.rewritten:
        return False
    layout = site.layout
    assert layout is not None
    query = sequence(x, text, mask, steps, order, cuts, side)
    start = layout.video_start
    words = torch.cat([query[:, :, :start], query[:, :, start + layout.video :]], dim=2)
    assert query.shape[2] == layout.tokens
    assert bool((words == -1).all())
    tokens = query[:, :, start : start + layout.video].long()
    # Where tokens were folded into channels the claimed grid is coarser: compare the places of whole patches.
    claimed = (layout.frames, layout.height, layout.width)
    assert all(size % part == 0 for size, part in zip(grid, claimed)), f"{claimed} of {grid}"
    place = [tokens // (grid[1] * grid[2]), tokens // grid[2] % grid[1], tokens % grid[2]]
    place = [coordinate // (size // part) for coordinate, size, part in zip(place, grid, claimed)]
    found = (place[0] * claimed[1] + place[1]) * claimed[2] + place[2]
    expected = torch.arange(layout.video)[None, None, :, None].expand_as(found)
    assert torch.equal(found, expected), f"claimed {claimed}, the tokens are in another order"
    return True


PLAIN = ([0, 1, 2, 3, 4], (1, 1, 4))


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


def test_a_window_that_is_put_back_is_claimed() -> None:
    steps = [("split", 2, 2, False), ("permute", (0, 2, 1, 3, 4, 5)), ("contiguous",), ("permute", (0, 2, 1, 3, 4, 5))]
    assert check((3, 4, 2), [*steps, ("merge", 2)], *PLAIN, "none", dynamic=False)
