"""What a model runs as plain Python, counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def counted(length: int, keys: int = 0) -> Iterator[list[int]]:
    """Count self-attentions of a length that plain Python runs. keys: how many keys they have, where these are more."""
    real = torch.nn.functional.scaled_dot_product_attention
    count = [0]

    def counting(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        count[0] += (query.shape[-2], key.shape[-2]) == (length, keys or length)
        return real(query, key, *args, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = counting
    try:
        yield count
    finally:
        torch.nn.functional.scaled_dot_product_attention = real
