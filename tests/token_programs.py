"""Random programs of data movement, to be traced and to be run: every element carries the number of its token."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

Step = tuple[Any, ...]
# The number of what is no token: padding.
NOBODY = -2

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
    if name == "pieces":
        return _pieces(x, *args)
    if name == "pad":
        dim, before, after = args
        return F.pad(x, (0, 0) * (x.dim() - 1 - dim) + (before, after), value=float(NOBODY))
    if name == "crop":
        # Of a longer one, as many as there were.
        dim, at = args
        return x.narrow(dim, at, x.shape[dim] - at)
    raise AssertionError(name)


def _pieces(x: torch.Tensor, dim: int, at: int, how: str) -> torch.Tensor:
    """Slices of a dimension, computed apart and put together again, in their places or not."""
    size, before = x.shape[dim], (slice(None),) * dim
    first, rest = x.narrow(dim, 0, at), x.narrow(dim, at, size - at)
    if how == "in order":
        return torch.cat([first * 1.0, rest + 0.0], dim)
    if how == "swapped":
        return torch.cat([rest * 1.0, first + 0.0], dim)
    if how == "a piece of a piece":
        return torch.cat(
            [first, torch.cat([rest.narrow(dim, 0, 1) * 1.0, rest.narrow(dim, 1, size - at - 1)], dim)], dim
        )
    if how == "moved":
        return torch.cat([x.narrow(dim, size - at, at), x.narrow(dim, 0, size - at)], dim)
    if how == "overlapping":
        return torch.cat([x.narrow(dim, 0, at), x.narrow(dim, at - 1, size - at)], dim)
    if how == "nobody in front":
        return torch.cat([torch.full_like(first, NOBODY), rest], dim)
    if how == "nobody in front, moved":
        return torch.cat([torch.full_like(first, NOBODY), x.narrow(dim, 0, size - at)], dim)
    if how == "one over the others":
        return torch.cat([first, rest * 0.0 + x.narrow(dim, at - 1, 1)], dim)
    if how == "one in the place of another":
        return torch.cat([x.narrow(dim, 0, 1) * 0.0 + x.narrow(dim, at, 1), x.narrow(dim, 1, size - 1)], dim)
    if how == "one by a mean":
        other = x.narrow(dim, at, 1).mean(dim, keepdim=True)
        return torch.cat([x.narrow(dim, 0, 1) * 0.0 + other, x.narrow(dim, 1, size - 1)], dim)
    out = x.clone()
    if how == "written back":
        out[(*before, slice(None, at))] *= 1.0
        out[(*before, slice(at, None))] = out[(*before, slice(at, None))] * 1.0
    elif how == "written elsewhere":
        out[(*before, slice(None, at))] = x.narrow(dim, size - at, at) * 1.0
    elif how == "one written over the others":
        out[(*before, slice(at, None))] *= 0.0
        out[(*before, slice(at, None))] += x.narrow(dim, 0, 1)
    else:
        raise AssertionError(how)
    return out


WAYS = (
    *("in order", "swapped", "a piece of a piece", "moved", "overlapping", "nobody in front", "nobody in front, moved"),
    *("one over the others", "one in the place of another", "one by a mean", "written back", "written elsewhere"),
    "one written over the others",
)


# What stands beside the tokens, and what is done to all of them together.
SIDES = ("none", "first", "last", "both", "frame", "frame and words", "words backwards", "words picked")
FINISHES = ("", "", "", ", scaled", ", written over", ", counted", ", a frame less", ", a token less", ", windows")


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
        long = [dim for dim in dims if x.shape[dim] > 2]
        if long and x.numel() < 5000:
            dim = draw(st.sampled_from(long))
            at, way = st.integers(1, x.shape[dim] - 2), st.sampled_from(WAYS)
            # Said twice: pieces are what most models make, and what is most easily taken for another.
            options += [st.tuples(st.just("pieces"), st.just(dim), at, way)] * 2
            options.append(st.tuples(st.just("pad"), st.just(dim), st.integers(0, 1), st.integers(0, 2)))
            options.append(st.tuples(st.just("crop"), st.just(dim), st.integers(0, 1)))
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
    return grid, steps, list(order), cuts, draw(st.sampled_from(SIDES)) + draw(st.sampled_from(FINISHES))


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
    """A query [B, H, N, D] with what stands beside it, and what is done to all of it."""
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
    return _finished(x, finish, text, frame.shape[1] * frame.shape[2])


def _finished(x: torch.Tensor, how: str, text: torch.Tensor, at: int) -> torch.Tensor:
    """What is done to the whole sequence: nothing but the order of what is written over depends on it."""
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
