"""Counting the steps of forwards that no schedule knows, each in the chain of forwards that it belongs to.

Two requests over one model interleave, in several threads or in turn in one. What tells their forwards apart:

    the thread and the asyncio task, each of which counts for itself;
    the tensors that a run passes to every forward, such as its prompt embeddings: a forward goes on from the last one
    that got the same tensor. One that several threads pass is no evidence of any run.

Where nothing tells two requests apart, an equal or smaller timestep counts as the same run's.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from svg_compile.runtime.steps import StepCounter

# A model has few inputs; a graph after a break may have many.
_MOST_TENSORS = 16


def current_strand() -> Any:
    """The asyncio task that runs, or else the thread."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        if task is not None:
            return task
    return threading.current_thread()


@dataclass
class Chain:
    """Where a chain of forwards stands. source: a weak reference to the schedule that it followed last.

    settled: whether it followed it beyond a first timestep, which several runs may have.
    """

    counter: StepCounter = field(default_factory=StepCounter)
    source: Any = None
    settled: bool = False

    def copy(self) -> Chain:
        """A chain that goes on from here by itself."""
        return Chain(self.counter.copy(), self.source, self.settled)

    def goes_on_with(self, value: float) -> bool:
        """True if a timestep belongs to the chain's current step or to its next one."""
        return self.counter.value is not None and value <= self.counter.value

    def follows(self, schedule: Any) -> bool:
        """True if the chain's last forward belonged to this schedule."""
        return self.source is not None and self.source() is schedule


@dataclass
class _Seen:
    """A tensor that was an argument of forwards: how often, in which strand, and the chain as of the last of them."""

    tensor: Any
    chain: Chain
    strand: Any
    times: int = 0
    shared: bool = False


class Chains:
    """The chains of one model's forwards."""

    def __init__(self) -> None:
        self._strands: weakref.WeakKeyDictionary[Any, Chain] = weakref.WeakKeyDictionary()
        self._seen: dict[int, _Seen] = {}

    @property
    def empty(self) -> bool:
        """True if nothing was counted."""
        return not self._strands and not self._seen

    def find(self, tensors: Sequence[Tensor], strand: Any, value: float) -> Chain:
        """The chain that a forward goes on with; `keep` what it becomes."""
        mine = self._strands.get(strand) or Chain()
        known = []
        for tensor in tensors[:_MOST_TENSORS]:
            seen = self._seen.get(id(tensor))
            if seen is not None and seen.tensor() is tensor:
                seen.shared = seen.shared or seen.strand() is not strand
                if not seen.shared:
                    known.append(seen)
        if not known:
            return mine.copy()
        # The tensor passed least often is the most specific: a table shared by all requests is passed by each.
        chain = min(known, key=lambda seen: seen.times).chain.copy()
        same = mine.counter.value == value and chain.counter.value is not None and chain.counter.value != value
        if same and mine.counter.step <= chain.counter.step:
            # The second call of a step, by guidance, with a tensor that others pass, too.
            return mine.copy()
        return chain

    def _forget(self, place: int, _: object) -> None:
        self._seen.pop(place, None)

    def keep(self, tensors: Sequence[Tensor], strand: Any, chain: Chain) -> None:
        """Note what became of a chain at a forward with these tensors."""
        self._strands[strand] = chain
        for tensor in tensors[:_MOST_TENSORS]:
            place = id(tensor)
            seen = self._seen.get(place)
            if seen is None or seen.tensor() is not tensor:
                forget = weakref.ref(tensor, partial(self._forget, place))
                seen = self._seen[place] = _Seen(forget, chain, weakref.ref(strand))
            seen.chain, seen.times = chain.copy(), seen.times + 1

    def break_off(self, strand: Any) -> None:
        """A run of a schedule begins: what the strand counted before goes on no more."""
        self._strands.pop(strand, None)
