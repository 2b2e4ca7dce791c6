"""Random chains of data movement: whenever the analysis claims a grid, the tokens are exactly in its raster order.

The truth comes from the values: every element carries the number of the token it was, through the same operations.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from traced import sites_of

Step = tuple[Any, ...]

BATCH, CHANNELS, TEXT = 2, 4, 5
GRIDS = [(4, 4, 4), (4, 2, 6), (2, 4, 4), (6, 4, 2), (3, 5, 2)]


def apply(step: Step, x: torch.Tensor, video: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One operation; sizes are read from the tensor, so that they can be symbolic.

    video: the tokens as they were, [B, F, H, W, C], and mask: ones of those axes, [B, F, H, W, 1]; for steps that put
    the video beside what became of it, which has its shape then.
    """
    name, *args = step
    if name == "permute":
        return x.permute(args[0])
    if name == "contiguous":
        return x.contiguous()
    if name == "merge":
        return x.flatten(args[0], args[0] + 1)
    if name == "split":
        dim, factor, outer = args
        return x.unflatten(dim, (factor, -1) if outer else (-1, factor))
    if name == "regroup":
        # Two neighbouring sizes swapped by a view: wrong unless they are equal.
        shape = list(x.shape)
        shape[args[0]], shape[args[0] + 1] = shape[args[0] + 1], shape[args[0]]
        return x.reshape(shape)
    if name == "roll":
        return torch.roll(x, args[1], args[0])
    if name == "flip":
        return x.flip(args[0])
    if name == "stride":
        return x[(slice(None),) * args[0] + (slice(args[1], None, 2),)]
    if name == "half":
        return x.narrow(args[0], 0 if args[1] else x.shape[args[0]] - x.shape[args[0]] // 2, x.shape[args[0]] // 2)
    if name == "chunks":
        pieces = x.chunk(2, args[0])
        return torch.cat(pieces if args[1] else pieces[::-1], args[0])
    if name == "unbind":
        pieces = x.unbind(args[0])
        return torch.stack(pieces if args[1] else pieces[::-1], args[0])
    if name == "pick":
        index = torch.arange(x.shape[args[0]])
        return x.index_select(args[0], index if args[1] else index.flip(0))
    if name == "write":
        # A buffer filled by two writes, in order or swapped.
        dim, straight = args
        half = x.shape[dim] // 2
        before = (slice(None),) * dim
        out = torch.empty_like(x)
        view = out[(*before, slice(None, half))]
        if straight:
            view.copy_(x[(*before, slice(None, half))])
            out[(*before, slice(half, None))] = x[(*before, slice(half, None))]
        else:
            view.copy_(x[(*before, slice(x.shape[dim] - half, None))])
            out[(*before, slice(half, None))] = x[(*before, slice(None, x.shape[dim] - half))]
        return out
    if name == "rewrite":
        # Half of a copy written anew: from itself, from itself backwards, or from the other half.
        dim, how = args
        half, before = x.shape[dim] // 2, (slice(None),) * dim
        out = x.clone()
        part, other = (*before, slice(half, None)), (*before, slice(None, half))
        out[part] = (x[part] + 0.0, x[part].flip(dim), x[other])[how]
        return out
    if name == "place":
        # Each position of a copy written on its own, in order or backwards, as a slice of one or as one less dimension.
        dim, straight, kept = args
        out, before = x.clone(), (slice(None),) * dim
        for i in range(x.shape[dim]):
            j = i if straight else x.shape[dim] - 1 - i
            to, take = ((*before, slice(n, n + 1) if kept else n) for n in (i, j))
            out[to] = x[take]
        return out
    if name == "fill":
        # A buffer filled through a view of its own, in order or transposed where the sizes allow it.
        out = torch.zeros_like(x)
        view = out.transpose(args[0], args[0] + 1)
        view.copy_(x.transpose(args[0], args[0] + 1) if args[1] else x.reshape(view.shape))
        return out
    if name == "table":
        # Zeros that look like positions: named by what they meet, and telling nothing of its order.
        return x + 0.0 * torch.arange(x.shape[args[0]]).reshape([-1] + [1] * (x.dim() - args[0] - 1))
    if name == "singles":
        # Taken apart and put together position by position, as pieces or as terms of a sum.
        dim, straight, summed = args
        count = x.shape[dim]
        pieces = [x.narrow(dim, i if straight else count - 1 - i, 1) for i in range(count)]
        if not summed:
            return torch.cat(pieces, dim)
        places = torch.arange(count).reshape([-1] + [1] * (x.dim() - dim - 1))
        return sum((places == i) * piece for i, piece in enumerate(pieces))  # type: ignore[return-value]
    if name == "spread":
        # Half of a copy written over by one position of itself.
        dim, out, before = args[0], x.clone(), (slice(None),) * args[0]
        out[(*before, slice(None, x.shape[dim] // 2))] = x[(*before, slice(args[1], args[1] + 1))]
        return out
    if name == "residual":
        return 0.0 * video + x if args[0] else x + 0.0 * video
    if name == "mask":
        return mask * x if args[0] else x * mask
    if name == "copy":
        out = video * 1
        out.copy_(x)
        return out
    if name == "repeat":
        return torch.cat([x, x], args[0])
    if name == "patch":
        # Two neighbours along a dimension into the channels.
        return torch.cat([x[(slice(None),) * args[0] + (slice(i, None, 2),)] for i in range(2)], -1)
    raise AssertionError(name)


@st.composite
def programs(draw: st.DrawFn) -> tuple[tuple[int, int, int], list[Step], list[int], tuple[int, int, int], str]:
    """(grid, steps, last permutation, where it is cut into batch, heads, tokens and channels, side of the text)."""
    grid = draw(st.sampled_from(GRIDS))
    x = video = payload(grid)
    mask = torch.ones(BATCH, *grid, 1)
    steps: list[Step] = []
    for _ in range(draw(st.integers(0, 4))):
        dims = list(range(x.dim()))
        even = [dim for dim in dims if x.shape[dim] % 2 == 0 and x.shape[dim] > 1]
        pair = st.integers(0, x.dim() - 2) if x.dim() > 1 else None
        options: list[st.SearchStrategy[Step]] = [
            st.tuples(st.just("permute"), st.permutations(dims)),
            st.tuples(st.just("contiguous")),
            st.tuples(st.just("roll"), st.sampled_from(dims), st.integers(1, 2)),
            st.tuples(st.just("flip"), st.sampled_from(dims)),
            st.tuples(st.just("unbind"), st.sampled_from(dims), st.booleans()),
            st.tuples(st.just("pick"), st.sampled_from(dims), st.booleans()),
            st.tuples(st.just("table"), st.sampled_from(dims)),
        ]
        if pair is not None:
            options.append(st.tuples(st.just("merge"), pair))
            options.append(st.tuples(st.just("regroup"), pair))
            options.append(st.tuples(st.just("fill"), pair, st.booleans()))
        if even and x.numel() < 5000:
            options.append(st.tuples(st.just("split"), st.sampled_from(even), st.just(2), st.booleans()))
            for name in ("stride", "half", "chunks", "write"):
                second = st.integers(0, 1) if name == "stride" else st.booleans()
                options.append(st.tuples(st.just(name), st.sampled_from(even), second))
            options.append(st.tuples(st.just("repeat"), st.sampled_from(even)))
            options.append(st.tuples(st.just("rewrite"), st.sampled_from(even), st.integers(0, 2)))
            few = [dim for dim in even if x.shape[dim] <= 6]
            if few:
                options.append(st.tuples(st.just("place"), st.sampled_from(few), st.booleans(), st.booleans()))
            options.append(st.tuples(st.just("patch"), st.sampled_from(even)))
            options.append(st.tuples(st.just("spread"), st.sampled_from(even), st.integers(0, 1)))
        short = [dim for dim in dims if 1 < x.shape[dim] <= 6]
        if short:
            options.append(st.tuples(st.just("singles"), st.sampled_from(short), st.booleans(), st.booleans()))
        if steps and x.shape == video.shape:
            # Said twice: what puts the video beside its tokens is what most fools the analysis.
            for name in ("residual", "mask", "copy") * 2:
                options.append(st.tuples(st.just(name), st.booleans()))
        step = draw(st.one_of(options))
        if step[0] == "permute":
            step = ("permute", tuple(step[1]))
        if step[0] == "patch" and step[1] == x.dim() - 1:
            continue
        y = apply(step, x, video, mask)
        if y.dim() > 7:
            continue
        x, steps = y, [*steps, step]
    order = list(range(x.dim()))
    cuts = (min(1, x.dim()), min(1, x.dim()), max(x.dim() - 1, 0))
    if draw(st.sampled_from([False, False, False, True])):
        # Now and then another shape than a model's: else hardly anything would be claimed at all.
        order = draw(st.permutations(order))
        cuts = tuple(sorted(draw(st.tuples(*[st.integers(0, x.dim())] * 3))))  # type: ignore[assignment]
    return grid, steps, list(order), cuts, draw(st.sampled_from(["none", "first", "last"]))


def payload(grid: tuple[int, int, int]) -> torch.Tensor:
    """[B, F, H, W, C], each element the number of its token."""
    tokens = torch.arange(float(math.prod(grid))).reshape(1, *grid, 1)
    return tokens.expand(BATCH, *grid, CHANNELS).contiguous()


def sequence(
    x: torch.Tensor,
    text: torch.Tensor,
    mask: torch.Tensor,
    steps: list[Step],
    order: list[int],
    cuts: tuple[int, int, int],
    side: str,
) -> torch.Tensor:
    """The query [B, H, N, D] that the program makes of the video."""
    # A projection: the channels of an input itself could as well be an axis of the grid, as in [B, F, C, H, W].
    x = video = x @ torch.eye(CHANNELS)
    for step in steps:
        x = apply(step, x, video, mask)
    x = x.permute(order)
    shape = list(x.shape)
    groups = [shape[: cuts[0]], shape[cuts[0] : cuts[1]], shape[cuts[1] : cuts[2]], shape[cuts[2] :]]
    # math.prod of SymInts multiplies them, as a model would.
    x = x.reshape([math.prod(group) for group in groups])
    if side != "none":
        words = text[None, None, :, None].expand(x.shape[0], x.shape[1], -1, x.shape[3])
        x = torch.cat([words, x] if side == "first" else [x, words], dim=2)
    return x


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
