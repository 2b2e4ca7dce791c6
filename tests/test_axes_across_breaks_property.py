"""Random programs cut into pieces by graph breaks and plain Python: no grid is claimed that the tokens do not have."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import svg_compile
from svg_compile.decisions import Reason, Site
from test_token_axes_property import PLAIN, assert_raster, together
from token_calls import CALLS
from token_programs import BATCH, CHANNELS, TEXT, beside, inputs_of, payload, programs
from token_steps import Step, apply
from traced import GRID_OPTIONS

PROGRAMS = int(os.environ.get("SVG_TEST_BROKEN_PROGRAMS", "60"))
# Where a piece of a program runs: in the graph at hand, in the next one, or in plain Python between two.
HERE, NEXT, PYTHON = "here", "next", "python"
# What else happens to the tokens while plain Python has them.
EVENTS = ("nothing", "scaled", "rolled in place", "turned through a view", "swapped", "a base is written")


@torch.compiler.disable
def by_python(step: Step, x: Tensor, video: Tensor, mask: Tensor) -> Tensor:
    return apply(step, x, video, mask)


@torch.compiler.disable
def meanwhile(what: str, x: Tensor, view: Tensor, base: Tensor) -> Tensor:
    """Something is done to tokens between two graphs; view and base share the tokens' storage."""
    if what == "scaled":
        x.mul_(1.0)
    elif what == "rolled in place":
        x.copy_(x.roll(1, 1).clone())
    elif what == "turned through a view":
        view.copy_(view.flip(0).clone())
    elif what == "a base is written":
        base.copy_(base.flip(0).clone())
    elif what == "swapped":
        return x.flip(min(1, x.dim() - 1))
    return x


def broken_sequence(
    x: Tensor, text: Tensor, mask: Tensor, frame: Tensor, steps: list[Step], order: list[int], cuts: Any, side: str,
    places: list[str], happens: str, at: int,
) -> Tensor:  # fmt: skip
    """`token_programs.sequence`, cut into pieces; `happens` between two of them, before step `at`."""
    x = video = x @ torch.eye(CHANNELS)
    for number, step in enumerate(steps):
        if number == at and happens != "nothing":
            x = x.contiguous()
            base = x.view(-1)
            view = x.reshape(x.shape[0], -1)
            torch._dynamo.graph_break()
            x = meanwhile(happens, x, view, base)
        place = places[number % len(places)]
        if place == NEXT:
            torch._dynamo.graph_break()
        x = by_python(step, x, video, mask) if place == PYTHON else apply(step, x, video, mask)
    if NEXT in places:
        torch._dynamo.graph_break()
    x = x.permute(order)
    sizes = list(x.shape)
    groups = [sizes[: cuts[0]], sizes[cuts[0] : cuts[1]], sizes[cuts[1] : cuts[2]], sizes[cuts[2] :]]
    lengths = []
    for group in groups:
        product = 1
        for size in group:
            product *= size
        lengths.append(product)
    x = x.reshape(lengths)
    return beside(x, text, frame, side)


def claimed(program: Any, places: list[str], happens: str, at: int, call: str = "plain") -> list[Site]:
    """The attentions that were proven; fails where one was proven wrongly."""
    grid, steps, order, cuts, side = program
    inputs = inputs_of(grid)

    def attend(*given: Tensor) -> Tensor:
        q = broken_sequence(*given, steps, order, cuts, side, places, happens, at)
        return CALLS[call](q, q, q, 0.5)

    torch._dynamo.reset()
    with torch.no_grad():
        report = svg_compile.explain(attend, *inputs, options=GRID_OPTIONS)
        copies = [tensor.clone() for tensor in inputs]
        query = broken_sequence(*copies, steps, order, cuts, side, places, happens, at)
    # The last one: before it there may be a layer over the same tokens.
    proven = [site for site in report.sites[-1:] if site.layout is not None]
    for site in proven:
        assert site.layout is not None
        assert_raster(together(query, site.before), grid, site.layout)
    return proven


BROKEN = st.tuples(
    st.lists(st.sampled_from([HERE, NEXT, PYTHON]), min_size=1, max_size=4),
    st.sampled_from(EVENTS),
    st.integers(0, 3),
    st.sampled_from(["plain", *CALLS]),
)
MOVED = [("contiguous",), ("permute", (0, 1, 2, 3, 4))]


@settings(max_examples=PROGRAMS, deadline=None)
@example(((4, 2, 6), MOVED, *PLAIN, "none"), ([NEXT], "rolled in place", 1, "plain"))
@example(((4, 2, 6), MOVED, *PLAIN, "none"), ([NEXT], "turned through a view", 1, "plain"))
@example(((4, 2, 6), MOVED, *PLAIN, "none"), ([PYTHON], "a base is written", 1, "plain"))
@example(((4, 4, 4), [("roll", 2, 1)], *PLAIN, "first"), ([PYTHON], "nothing", 0, "plain"))
@example(((4, 4, 4), [("pieces", 1, 2, "swapped")], *PLAIN, "last"), ([PYTHON, NEXT], "nothing", 0, "plain"))
@given(programs(), BROKEN)
def test_a_grid_claimed_across_breaks_is_the_order_of_the_tokens(program: Any, broken: Any) -> None:
    event(f"claimed: {bool(claimed(program, *broken))}, {broken[1]}")


@pytest.mark.parametrize("places", [[NEXT], [PYTHON], [PYTHON, NEXT], [HERE, NEXT]])
@pytest.mark.parametrize("happens", ["nothing", "scaled"])
def test_what_keeps_the_order_is_claimed_across_breaks(places: list[str], happens: str) -> None:
    steps: list[Step] = [("contiguous",), ("pieces", 1, 2, "in order"), ("mask", True), ("merge", 1)]
    (site,) = claimed(((4, 2, 6), steps, [0, 1, 2, 3], (1, 1, 3), "first"), places, happens, 1)
    assert site.layout is not None
    assert (site.layout.frames, site.layout.height, site.layout.width, site.layout.text_len) == (4, 2, 6, TEXT)
    assert site.reason in (None, Reason.BETWEEN_GRAPHS)


@pytest.mark.parametrize("happens", ["rolled in place", "turned through a view", "a base is written", "swapped"])
@pytest.mark.parametrize("places", [[NEXT], [PYTHON]])
def test_what_is_changed_between_graphs_has_no_grid(places: list[str], happens: str) -> None:
    assert not claimed(((4, 2, 6), MOVED, *PLAIN, "none"), places, happens, 1)


def test_the_oracle_sees_a_wrong_claim() -> None:
    wrong = payload((4, 2, 6)).roll(1, 1).reshape(BATCH, 1, -1, CHANNELS)
    with pytest.raises(AssertionError, match="another order"):
        assert_raster(wrong, (4, 2, 6), svg_compile.VideoLayout(4, 2, 6))
