"""Random programs of data movement, to be traced and to be run: every element carries the number of its token."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from token_calls import CALLS, layer
from token_indices import ORDERS, USES
from token_pieces import WAYS
from token_steps import Step, apply

BATCH, CHANNELS, TEXT = 2, 4, 5
GRIDS = [(4, 4, 4), (4, 2, 6), (2, 4, 4), (6, 4, 2), (3, 5, 2)]


# Tokens next to the video's, and operations on all of them together.
SIDES = ("none", "first", "last", "both", "frame", "frame and words", "words backwards", "words picked")
FINISHES = ("", "", "", ", scaled", ", written over", ", counted", ", a frame less", ", a token less", ", windows")
# What runs over the whole sequence before the attention that is asked about: attention layers.
LAYERS = ("", "", "", *(f"; {call}" for call in CALLS))


def _options(draw: st.DrawFn, x: torch.Tensor, beside_video: bool) -> list[st.SearchStrategy[Step]]:
    """The steps that are possible for a tensor; beside_video: also those that combine it with the video."""
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
        options.append(st.tuples(st.just("turn"), pair, st.integers(0, 3)))
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
    long = [dim for dim in dims if x.shape[dim] > 2]
    if long and x.numel() < 5000:
        dim = draw(st.sampled_from(long))
        at, way = st.integers(1, x.shape[dim] - 2), st.sampled_from(WAYS)
        # Listed twice: most models use pieces, and pieces are easily confused.
        options += [st.tuples(st.just("pieces"), st.just(dim), at, way)] * 2
        options += [st.tuples(st.just("by_index"), st.just(dim), st.sampled_from(ORDERS), st.sampled_from(USES))] * 2
        options.append(st.tuples(st.just("windows"), st.just(dim), st.integers(1, 2)))
        options.append(st.tuples(st.just("pad"), st.just(dim), st.integers(0, 1), st.integers(0, 2)))
        options.append(st.tuples(st.just("crop"), st.just(dim), st.integers(0, 1)))
    short = [dim for dim in dims if 1 < x.shape[dim] <= 6]
    if short:
        options.append(st.tuples(st.just("singles"), st.sampled_from(short), st.booleans(), st.booleans()))
    if beside_video:
        # Listed twice: combining the video with its own tokens is hardest for the analysis.
        for name in ("residual", "mask", "copy") * 2:
            options.append(st.tuples(st.just(name), st.booleans()))
    return options


@st.composite
def programs(draw: st.DrawFn) -> tuple[tuple[int, int, int], list[Step], list[int], tuple[int, int, int], str]:
    """(grid, steps, last permutation, where it is cut into batch, heads, tokens and channels, what is done at last).

    The last is "side of the text, what becomes of the whole sequence; the attention layer that it runs through".
    """
    grid = draw(st.sampled_from(GRIDS))
    x = video = payload(grid)
    mask = torch.ones(BATCH, *grid, 1)
    steps: list[Step] = []
    for _ in range(draw(st.integers(0, 4))):
        step = draw(st.one_of(_options(draw, x, beside_video=bool(steps) and x.shape == video.shape)))
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
    side = "".join(draw(st.sampled_from(each)) for each in (SIDES, FINISHES, LAYERS))
    return grid, steps, list(order), cuts, side


def payload(grid: tuple[int, int, int]) -> torch.Tensor:
    """[B, F, H, W, C], each element the number of its token."""
    tokens = torch.arange(float(math.prod(grid))).reshape(1, *grid, 1)
    return tokens.expand(BATCH, *grid, CHANNELS).contiguous()


def inputs_of(grid: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
    """The inputs of a program: the video, text, a mask of the video's axes, a frame of another input."""
    frame = torch.full((BATCH, *grid[1:], 1), -1.0)
    return payload(grid), torch.full((TEXT,), -1.0), torch.ones(BATCH, *grid, 1), frame


def sequence(
    x: torch.Tensor,
    text: torch.Tensor,
    mask: torch.Tensor,
    frame: torch.Tensor,
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
    return beside(x, text, frame, side)


def beside(x: torch.Tensor, text: torch.Tensor, frame: torch.Tensor, side: str) -> torch.Tensor:
    """A query [B, H, N, D] with the tokens next to it, after the operations on all of them; `side` as in `programs`."""
    side, _, call = side.partition("; ")
    side, _, finish = side.partition(", ")
    words = text[None, None, :, None].expand(x.shape[0], x.shape[1], -1, x.shape[3])
    if side in ("first", "last"):
        x = torch.cat([words, x] if side == "first" else [x, words], dim=2)
    elif side == "words backwards":
        x = torch.cat([x, words.flip(2)], dim=2)
    elif side == "words picked":
        x = torch.cat([words[:, :, torch.tensor([3, 0, 1])], x], dim=2)
    elif side == "both":
        x = torch.cat([words[:, :, :2], x, words[:, :, 2:]], dim=2)
    elif side.startswith("frame") and x.shape[0] == BATCH:
        other = frame.flatten(1, 2)[:, None].expand(-1, x.shape[1], -1, x.shape[3])
        x = torch.cat([other, x] if side == "frame" else [other, x, words], dim=2)
    x = _finished(x, finish, text, frame.shape[1] * frame.shape[2])
    return layer(x, call) if call else x


def _finished(x: torch.Tensor, how: str, text: torch.Tensor, at: int) -> torch.Tensor:
    """An operation on the whole sequence; only the order of overwritten tokens depends on it."""
    size = x.shape[2]
    if how == "" or size <= 2 * at:
        return x
    if how == "scaled":
        x = x * 1.0
        x[:, :, :at] += 0.0 * text.mean()
        x[:, :, at:] *= text.mean() * -1.0
        return x
    if how in ("a frame less", "a token less"):
        return x.narrow(2, at, size - at) if how == "a frame less" else x.narrow(2, 1, size - 1)
    if how == "windows":
        # The second of two runs of frames, each of which would be attended by itself.
        half = size // at // 2 * at
        return torch.split(x, [half, size - half], 2)[1]
    if how == "written over":
        x = x * 1.0
        x[:, :, :at] = x[:, :, at : 2 * at].clone()
        return x
    # Coordinates of places in a frame, and of frames, that run through all of it.
    if size % at != 0:
        return x
    places = torch.arange(size // at)[:, None] + torch.arange(at)[None]
    return x + 0.0 * places.flatten()[:, None]
