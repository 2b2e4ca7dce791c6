"""Operators on real tensors, from inside of the modes that run a graph on fake ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.utils import _python_dispatch

R = TypeVar("R")


def beside_modes(function: Callable[[], R]) -> R | None:
    """What a function returns that computes with real tensors: no fake tensor mode and no tracker sees it.

    None where this torch cannot leave its modes, or an operator fails.
    """
    leave = getattr(_python_dispatch, "_disable_current_modes", None)
    if leave is None:
        return None
    try:
        with leave():
            return function()
    except (RuntimeError, TypeError, NotImplementedError):
        return None
