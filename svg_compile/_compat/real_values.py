"""Operators on real tensors, from inside of the modes that run a graph on fake ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch.utils._python_dispatch import _disable_current_modes


@contextlib.contextmanager
def beside_modes() -> Iterator[None]:
    """Compute with real tensors in the block: no fake tensor mode and no tracker sees it."""
    with _disable_current_modes():
        yield
