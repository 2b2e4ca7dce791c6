"""Steps of random programs that read and write at an index: consecutive numbers in their order, and in others."""

from __future__ import annotations

import torch

from token_pieces import NOBODY
from token_steps import step

# The order of the numbers.
ORDERS = ("straight", "straight", "swapped", "backwards", "rolled", "a row later", "twice", "less")
# What is done at them.
USES = ("read", "gathered", "copied", "put", "scattered", "added", "added to it", "copied over it")


def numbers(count: int, order: str) -> torch.Tensor:
    """Positions of a dimension of `count`, at least 2, all of them but where it is "less"."""
    every, half = torch.arange(count), count // 2
    if order == "swapped":
        return torch.cat([every[half:], every[:half]])
    if order == "backwards":
        return every.flip(0)
    if order == "rolled":
        return every.roll(1)
    if order == "a row later":
        # Halves of a buffer written each a position later than they stood.
        return torch.cat([every[1:half], every[:1], every[half:]])
    if order == "twice":
        return torch.cat([every[:half], every[: count - half]])
    return every[:half] + (count - half) if order == "less" else every


@step
def by_index(x: torch.Tensor, dim: int, order: str, use: str) -> torch.Tensor:
    index = numbers(x.shape[dim], order)
    each = index.reshape([-1] + [1] * (x.dim() - dim - 1))
    each = each.expand([index.shape[0] if other == dim else size for other, size in enumerate(x.shape)])
    part = x.narrow(dim, 0, index.shape[0])
    if use == "read":
        return x.index_select(dim, index)
    if use == "gathered":
        return x.gather(dim, each)
    if use == "added to it":
        # The mean of both: in order a token and itself, whose number it keeps.
        return x.index_add(dim, index, part) * 0.5
    if use == "copied over it":
        return x.clone().index_copy_(dim, index, part)
    # Where nothing is written stands no token's number; whole samples may be left so.
    out = torch.full_like(x, NOBODY)
    if use == "put":
        out[(*(slice(None),) * dim, index)] = part
        return out
    if use == "scattered":
        return out.scatter(dim, each, part)
    return out.index_copy(dim, index, part) if use == "copied" else out.index_add_(dim, index, part - NOBODY)
