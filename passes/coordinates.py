"""Positions that are an input of a model, read by their values: are they the raster of a video?

Models that take packed latents [B, N, C] also take one position per token, as [B, 3, N, 2] bounds in pixels
and seconds, [B, N, 3] or [N, 3] ids. A graph cannot show what such a tensor holds; its values can, outside of it:

    tokens    n = (f * height + h) * width + w
    raster    the first component depends on f alone and rises with it, the second on h alone, the third on w alone

at any patch size, frame rate or offset. Tokens of conditions may stand in front of it and behind it, with coordinates
of their own: the video is the longest run of tokens whose coordinates go on rising, and of that the frames that are
alike, for positions of a text rise, too. Where the numbers of the frames, [F], are an input, frames behind the video
need not be part of it: there the numbers stop rising. An input that is concatenated with positions, ids of text say,
is a constant once its values were read. Code that builds on values must read them again at each call: other values are
another grid.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from svg_compile._compat.graphs import known_value

# (time, row, column), and at most one more component, which is the same for all tokens.
_COMPONENTS = (3, 4)
_FEWEST_TOKENS = 8
# The least share of the tokens that a video must have, in tenths. With over three tenths of open tokens it is refused
# (`axes.read_grid`), with that as the reason.
_LEAST_TENTHS = 4
_FEWEST_FRAMES, _MOST_FRAMES = 2, 4096
# More are no positions of a video that fits a machine.
_MOST_VALUES = 2**26
_MOST_IDS = 2**16


@dataclass(frozen=True)
class Raster:
    """Positions of frames x height x width tokens in raster order, along dimension `tokens` of their tensor.

    before, after: how many tokens with positions of their own stand in front of these and behind them.
    """

    frames: int
    height: int
    width: int
    tokens: int
    before: int = 0
    after: int = 0


def raster_of(positions: Tensor) -> Raster | None:
    """The raster that a tensor of positions holds, None where it holds none, or has no values to look at.

    positions: [N, 3], [3, N], [B, N, 3], [B, 3, N], [B, N, 3, 2] or [B, 3, N, 2] of any dtype but bool and complex, or
    with 4 components of which one never changes. Each sample, and each of the two bounds, must be a raster of the same
    grid. On a GPU this waits for the values; `position_inputs.raster_seen` remembers.
    """
    places = _places(positions)
    known = known_value(positions) if places else None
    if known is None:
        return None
    values = known.detach().to("cpu", torch.float64)
    found = {raster for place in places if (raster := _raster(values, *place)) is not None}
    # Two readings of one tensor are no proof of either.
    return found.pop() if len(found) == 1 else None


def _places(positions: Tensor) -> list[tuple[int, int]]:
    """Where the tokens and the components of a tensor may stand, by its shape alone: (dimension, dimension) pairs."""
    if positions.dtype is torch.bool or positions.is_complex() or not 2 <= positions.dim() <= 4:
        return []
    if not 0 < positions.numel() <= _MOST_VALUES or (positions.dim() == 4 and positions.shape[3] != 2):
        return []
    pairs = [(0, 1), (1, 0)] if positions.dim() == 2 else [(1, 2), (2, 1)]
    shape = positions.shape
    return [(n, c) for n, c in pairs if shape[c] in _COMPONENTS and shape[n] >= _FEWEST_TOKENS]


def _raster(values: Tensor, tokens: int, components: int) -> Raster | None:
    """The raster along `tokens`, its components along `components`; None where a slice holds none, or another one."""
    count = values.shape[tokens]
    rows = values.movedim((tokens, components), (-2, -1)).reshape(-1, count, values.shape[components])
    if not bool(rows.isfinite().all()):
        return None
    start, stop = _frames_alike(rows[0], *_longest_run(rows[0]))
    rows = rows[:, start:stop]
    changing = (rows != rows[:, :1]).flatten(0, 1).any(0)
    if 10 * (stop - start) < _LEAST_TENTHS * count or stop - start < _FEWEST_TOKENS or int(changing.sum()) != 3:
        return None
    rows = rows[..., changing]
    time, row, _ = rows[0].unbind(-1)
    a_frame, a_row = _first_change(time), _first_change(row)
    if not (0 < a_row < a_frame) or a_frame % a_row or (stop - start) % a_frame:
        return None
    sizes = (stop - start) // a_frame, a_frame // a_row, a_row
    raster = Raster(*sizes, tokens, start, count - stop)
    grid = rows.unflatten(1, sizes)
    alone = ((..., 0), (2, 3)), ((..., 1), (1, 3)), ((..., 2), (1, 2))
    for (place, others), along in zip(alone, (1, 2, 3)):
        component = grid[place]
        first = component
        for dim in others:
            first = first.narrow(dim, 0, 1)
        if not bool((component == first).all()) or not bool((component.diff(dim=along) > 0).all()):
            return None
    return raster


def _longest_run(rows: Tensor) -> tuple[int, int]:
    """The longest run of rows [N, components], each later than the one before by the first component that differs."""
    steps = rows.diff(dim=0)
    first = (steps != 0).int().argmax(1, keepdim=True)
    falls = (steps.gather(1, first)[:, 0] <= 0).nonzero()[:, 0] + 1
    edges = torch.cat([falls.new_zeros(1), falls, falls.new_full((1,), len(rows))])
    longest = int(edges.diff().argmax())
    return int(edges[longest]), int(edges[longest + 1])


def _frames_alike(rows: Tensor, start: int, stop: int) -> tuple[int, int]:
    """Of a run of rows [N, components] the most tokens in frames of one time each that are else the same, in a row.

    Each token of a text is a frame of its own, or one with others in it.
    """
    run = rows[start:stop]
    changing = (run != run[:1]).any(0).nonzero()[:, 0]
    if not len(changing):
        return start, stop
    time = run[:, changing[0]]
    others = run[:, [each for each in range(run.shape[1]) if each != changing[0]]]
    edges = [0, *((time.diff() != 0).nonzero()[:, 0] + 1).tolist(), len(run)]
    best, first = (0, 0), 0
    for at in range(1, len(edges)):
        here, end = edges[at - 1], edges[at]
        size, before = end - here, here - edges[at - 2] if at > 1 else 0
        alike = size == before and size > 1 and bool((others[here:end] == others[here - size : here]).all())
        first = first if alike else here
        if size > 1 and end - first > best[1] - best[0]:
            best = first, end
    return start + best[0], start + best[1]


def _first_change(values: Tensor) -> int:
    """The first place where a component differs from its first value; 0 where it never does."""
    return int((values != values[0]).int().argmax())


@dataclass(frozen=True)
class Rise:
    """Whole numbers [F], one a frame, of which the first `frames` rise: all, or the next one does not.

    The tokens there are no next frame: a reference behind the video that has the time of another frame.
    """

    frames: int


def rise_of(positions: Tensor) -> Rise | None:
    """How many of the numbers of frames rise; None where a tensor holds no such numbers, or they are not known."""
    if positions.dtype not in (torch.int32, torch.int64) or positions.dim() != 1:
        return None
    known = known_value(positions) if _FEWEST_FRAMES <= positions.numel() <= _MOST_FRAMES else None
    if known is None:
        return None
    falls = (known.detach().cpu().diff() <= 0).nonzero()
    return Rise(int(falls[0]) + 1 if len(falls) else positions.numel())


@dataclass(frozen=True)
class Ids:
    """Whole numbers that are concatenated with positions, identified by a hash: equal ones are one constant."""

    digest: bytes


def whole_numbers(tensor: Tensor) -> Ids | None:
    """The ids that a tensor of whole numbers holds; None where it holds others, or its values are not known."""
    known = known_value(tensor)
    if known is None:
        return None
    values = known.detach().to("cpu", torch.float64).contiguous()
    return Ids(hashlib.sha256(values.numpy().tobytes()).digest()) if bool((values == values.round()).all()) else None


def stands_beside(tensor: Tensor, positions: Tensor) -> bool:
    """True if a small tensor could be concatenated with positions along their tokens."""
    if tensor.dim() != positions.dim() or tensor.dtype is torch.bool or tensor.is_complex():
        return False
    others = [dim for dim in range(tensor.dim()) if tensor.shape[dim] != positions.shape[dim]]
    return 0 < tensor.numel() <= _MOST_IDS and len(others) == 1 and _places(positions)[:1] != []
