"""Showing what became of each forward to those who look on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from svg_compile.runtime.steps import Decision

# The name that users set in TORCH_LOGS.
log = logging.getLogger("svg_compile.runtime.dispatcher")


@dataclass(frozen=True)
class Forward:
    """One forward of a compiled graph. parameter: the first of its model by name, None where parameters are no inputs.

    layers: the module paths of the graph's sparse attentions; plans and errors: what each was profiled to, int32 and
    float32 [B, H, 2], where the forward was sparse. On a GPU they are good until the next forward. grids: of each
    attention the (frames, height, width, text_len, text_first, block), None for a size that is symbolic.
    """

    decision: Decision
    parameter: Tensor | None
    layers: tuple[str, ...]
    plans: tuple[Tensor, ...] = ()
    errors: tuple[Tensor, ...] = ()
    grids: tuple[tuple[int | None, ...], ...] = ()


_observers: tuple[Callable[[Forward], object], ...] = ()
_changing = threading.Lock()


def watched() -> bool:
    """True if an observer is registered."""
    return bool(_observers)


@contextmanager
def watch(observer: Callable[[Forward], object]) -> Iterator[None]:
    """Show `observer` every forward in the block, of all models and threads, in order, after it was launched."""
    global _observers
    # One object to find again: a bound method is a new one at each access.
    mine: Callable[[Forward], object] = partial(observer)
    with _changing:
        _observers = (*_observers, mine)
    try:
        yield
    finally:
        with _changing:
            _observers = tuple(other for other in _observers if other is not mine)


@contextmanager
def observe() -> Iterator[list[Decision]]:
    """Collect the decision of every forward in the block, of all models and threads, in order."""
    seen: list[Decision] = []
    with watch(lambda forward: seen.append(forward.decision)):
        yield seen


def publish(forward: Forward) -> None:
    """Log a forward and show it to all who look on."""
    position, how = forward.decision.position, "dense" if forward.decision.dense else "sparse"
    where = "step ?" if position is None else f"step {position.step} of {position.total}"
    log.debug("%s (%s): %s", where, forward.decision.source, how)
    for observer in _observers:
        observer(forward)
