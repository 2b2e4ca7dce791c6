"""Steps of random programs: each moves data about in one way, on tensors of any rank whose sizes may be symbolic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# The name of a step, then its arguments.
Step = tuple[Any, ...]

Function = Callable[..., torch.Tensor]
# By name: a function of the tensor and the step's arguments; of the tensor, the video and its mask, and the arguments.
_STEPS: dict[str, Function] = {}
_BESIDE_THE_VIDEO: dict[str, Function] = {}


def apply(step: Step, x: torch.Tensor, video: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One operation; sizes are read from the tensor, so that they can be symbolic.

    video: the original tokens, [B, F, H, W, C], and mask: ones with those axes, [B, F, H, W, 1]; for steps that combine
    the video with the current tensor, which then has the video's shape.
    """
    name, *args = step
    if name in _BESIDE_THE_VIDEO:
        return _BESIDE_THE_VIDEO[name](x, video, mask, *args)
    return _STEPS[name](x, *args)


def step(function: Function) -> Function:
    """Register a step under the name of its function."""
    _STEPS[function.__name__.strip("_")] = function
    return function


def beside_the_video(function: Function) -> Function:
    """Register a step that the video takes part in."""
    _BESIDE_THE_VIDEO[function.__name__.strip("_")] = function
    return function


def _to(dim: int, *places: Any) -> tuple[Any, ...]:
    """The index of places of a dimension."""
    return (*(slice(None),) * dim, *places)


@step
def permute(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    return x.permute(dims)


@step
def contiguous(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous()


@step
def merge(x: torch.Tensor, dim: int) -> torch.Tensor:
    return x.flatten(dim, dim + 1)


@step
def split(x: torch.Tensor, dim: int, factor: int, outer: bool) -> torch.Tensor:
    return x.unflatten(dim, (factor, -1) if outer else (-1, factor))


@step
def regroup(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Two neighbouring sizes swapped by a view: wrong unless they are equal."""
    shape = list(x.shape)
    shape[dim], shape[dim + 1] = shape[dim + 1], shape[dim]
    return x.reshape(shape)


@step
def roll(x: torch.Tensor, dim: int, by: int) -> torch.Tensor:
    return torch.roll(x, by, dim)


@step
def flip(x: torch.Tensor, dim: int) -> torch.Tensor:
    return x.flip(dim)


@step
def turn(x: torch.Tensor, dim: int, quarters: int) -> torch.Tensor:
    return x.rot90(quarters, (dim, dim + 1))


@step
def windows(x: torch.Tensor, dim: int, apart: int) -> torch.Tensor:
    """Windows of two neighbours, disjoint or overlapping; the window axis follows the one that it was taken from."""
    return x.unfold(dim, 2, apart).movedim(-1, dim + 1)


@step
def stride(x: torch.Tensor, dim: int, start: int) -> torch.Tensor:
    return x[_to(dim, slice(start, None, 2))]


@step
def half(x: torch.Tensor, dim: int, first: bool) -> torch.Tensor:
    return x.narrow(dim, 0 if first else x.shape[dim] - x.shape[dim] // 2, x.shape[dim] // 2)


@step
def chunks(x: torch.Tensor, dim: int, straight: bool) -> torch.Tensor:
    pieces = x.chunk(2, dim)
    return torch.cat(pieces if straight else pieces[::-1], dim)


@step
def unbind(x: torch.Tensor, dim: int, straight: bool) -> torch.Tensor:
    pieces = x.unbind(dim)
    return torch.stack(pieces if straight else pieces[::-1], dim)


@step
def pick(x: torch.Tensor, dim: int, straight: bool) -> torch.Tensor:
    index = torch.arange(x.shape[dim])
    return x.index_select(dim, index if straight else index.flip(0))


@step
def write(x: torch.Tensor, dim: int, straight: bool) -> torch.Tensor:
    """A buffer filled by two writes, in order or swapped."""
    half = x.shape[dim] // 2
    out = torch.empty_like(x)
    view = out[_to(dim, slice(None, half))]
    if straight:
        view.copy_(x[_to(dim, slice(None, half))])
        out[_to(dim, slice(half, None))] = x[_to(dim, slice(half, None))]
    else:
        view.copy_(x[_to(dim, slice(x.shape[dim] - half, None))])
        out[_to(dim, slice(half, None))] = x[_to(dim, slice(None, x.shape[dim] - half))]
    return out


@step
def rewrite(x: torch.Tensor, dim: int, how: int) -> torch.Tensor:
    """Half of a copy written anew: from itself, from itself backwards, or from the other half."""
    half, out = x.shape[dim] // 2, x.clone()
    part, other = _to(dim, slice(half, None)), _to(dim, slice(None, half))
    out[part] = (x[part] + 0.0, x[part].flip(dim), x[other])[how]
    return out


@step
def place(x: torch.Tensor, dim: int, straight: bool, kept: bool) -> torch.Tensor:
    """Each position of a copy written on its own, in order or backwards, as a slice of one or as a dimension less."""
    out = x.clone()
    for i in range(x.shape[dim]):
        j = i if straight else x.shape[dim] - 1 - i
        to, take = (_to(dim, slice(n, n + 1) if kept else n) for n in (i, j))
        out[to] = x[take]
    return out


@step
def fill(x: torch.Tensor, dim: int, straight: bool) -> torch.Tensor:
    """A buffer filled through a view of its own, in order or transposed where the sizes allow it."""
    out = torch.zeros_like(x)
    view = out.transpose(dim, dim + 1)
    view.copy_(x.transpose(dim, dim + 1) if straight else x.reshape(view.shape))
    return out


@step
def table(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Zeros that look like positions: named by what they meet, and telling nothing of its order."""
    return x + 0.0 * torch.arange(x.shape[dim]).reshape([-1] + [1] * (x.dim() - dim - 1))


@step
def singles(x: torch.Tensor, dim: int, straight: bool, summed: bool) -> torch.Tensor:
    """Taken apart and put together position by position, as pieces or as terms of a sum."""
    count = x.shape[dim]
    pieces = [x.narrow(dim, i if straight else count - 1 - i, 1) for i in range(count)]
    if not summed:
        return torch.cat(pieces, dim)
    places = torch.arange(count).reshape([-1] + [1] * (x.dim() - dim - 1))
    return sum((places == i) * piece for i, piece in enumerate(pieces))  # type: ignore[return-value]


@step
def spread(x: torch.Tensor, dim: int, at: int) -> torch.Tensor:
    """Half of a copy written over by one position of itself."""
    out = x.clone()
    out[_to(dim, slice(None, x.shape[dim] // 2))] = x[_to(dim, slice(at, at + 1))]
    return out


@beside_the_video
def residual(x: torch.Tensor, video: torch.Tensor, mask: torch.Tensor, first: bool) -> torch.Tensor:
    return 0.0 * video + x if first else x + 0.0 * video


@beside_the_video
def _mask(x: torch.Tensor, video: torch.Tensor, mask: torch.Tensor, first: bool) -> torch.Tensor:
    return mask * x if first else x * mask


@beside_the_video
def copy(x: torch.Tensor, video: torch.Tensor, mask: torch.Tensor, first: bool) -> torch.Tensor:
    out = video * 1
    out.copy_(x)
    return out


@step
def repeat(x: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.cat([x, x], dim)


@step
def patch(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Two neighbours along a dimension into the channels."""
    return torch.cat([x[_to(dim, slice(i, None, 2))] for i in range(2)], -1)
