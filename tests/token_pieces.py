"""Steps of random programs that take a dimension apart and put it together again, or make it longer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from token_steps import step

# The number of what is no token: padding.
NOBODY = -2


@step
def pad(x: torch.Tensor, dim: int, before: int, after: int) -> torch.Tensor:
    return F.pad(x, (0, 0) * (x.dim() - 1 - dim) + (before, after), value=float(NOBODY))


@step
def crop(x: torch.Tensor, dim: int, at: int) -> torch.Tensor:
    """Of a longer one, as many as there were."""
    return x.narrow(dim, at, x.shape[dim] - at)


@step
def pieces(x: torch.Tensor, dim: int, at: int, how: str) -> torch.Tensor:
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
