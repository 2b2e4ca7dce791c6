"""Kernels that compute in float32 whatever autocast their caller is in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def without_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """Run the function with autocast disabled.

    `torch.autocast` as a decorator is one object for all threads: one thread would restore the state of another.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return run
