"""The state of one model between its forwards, and the search for a forward's step."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from svg_compile.runtime.counting import Chains, current_strand
from svg_compile.runtime.dense_runs import DenseRuns
from svg_compile.runtime.scheduler_steps import FOLLOWS, VALUE, VIEW, Claim
from svg_compile.runtime.steps import Position
from svg_compile.runtime.timestep import Moment

_ELSEWHERE = (
    "svg: a denoising block of another thread or task uses this model, and this forward is outside of it: its steps "
    "are counted from its timesteps. To run forwards of that block in a thread of your own, start them by "
    "contextvars.copy_context().run(...)."
)
_RISING = (
    "svg: the timesteps of this model rise from forward to forward, and each rise counts as the start of a new run: "
    "all steps stay dense. Call svg_compile.attach(pipe), or run the loop in `with svg_compile.denoising(model, "
    "steps=...)`."
)


class Schedule(Protocol):
    """A source of steps outside of the models' graphs."""

    name: str

    def models(self) -> Iterable[nn.Module]:
        """The models that this schedule drives, as they are now."""

    def claim(self, moment: Moment) -> Claim | None:
        """The claim on a forward with this timestep, None without a run in progress. Changes no state."""

    def accept(self, claim: Claim) -> Position:
        """The step of a forward that was found to be of this schedule."""


class ModelContext:
    """The state of one model."""

    def __init__(self) -> None:
        self.chains = Chains()
        self.dense_runs = DenseRuns()
        self._warned: set[str] = set()
        # By strand: the state in which each schedule was when a forward was not of it; and the run that was last.
        self._passed: WeakKeyDictionary[Any, WeakKeyDictionary[Any, Any]] = WeakKeyDictionary()
        # Of each schedule: the timesteps of its run, and the strands that follow it.
        self._followers: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()
        self._last: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()
        self._lock = threading.RLock()

    def find_step(
        self, schedules: Sequence[Schedule], moment: Moment, tensors: Sequence[Tensor], total: int
    ) -> tuple[Position | None, str]:
        """(the step of the forward at hand, the name of what it was found by).

        tensors: its inputs other than the timestep; total: the steps of a run that no schedule knows.
        """
        strand = current_strand()
        with self._lock:
            found = self._claimed(schedules, moment, strand)
            chain = None
            if moment.was_read or (found is None and moment.known):
                assert moment.value is not None
                chain = self.chains.find(tensors, strand, moment.value)
            if found is not None and chain is not None and self._is_counted(*found, chain, moment, strand):
                found = None
            if found is not None:
                return self._follow(*found, chain, moment, tensors, strand)
            if chain is None or moment.value is None:
                return None, "unknown"
            if any(schedule.name == "denoising" for schedule in schedules):
                self.warn(_ELSEWHERE)
            step = chain.counter.count(moment.value)
            chain.source = None
            self.chains.keep(tensors, strand, chain)
            if chain.counter.rises > 3:
                self.warn(_RISING)
            return Position(step, total, chain.counter.run, exact=False), "timestep"

    @property
    def fresh(self) -> bool:
        """True if no forward has run."""
        return not self._last and self.chains.empty

    def warn(self, message: str, kind: str | None = None) -> None:
        """Warn once of each kind, by default of each message, for this model."""
        kind = message if kind is None else kind
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=4)

    def _claimed(self, schedules: Sequence[Schedule], moment: Moment, strand: Any) -> tuple[Schedule, Claim] | None:
        """The schedule whose timestep this is: the surest, then the one that this strand followed last, then the one
        that was registered last.
        """
        best: tuple[Any, Schedule, Claim] | None = None
        last = self._last.get(strand)
        # A denoising block first: where it answers, nothing is read.
        for schedule in sorted(reversed(schedules), key=lambda schedule: schedule.name != "denoising"):
            if best is not None and best[2].sure > VIEW:
                break
            claim = schedule.claim(moment)
            if claim is None:
                continue
            if claim.index is None:
                self._passed.setdefault(strand, WeakKeyDictionary())[schedule] = claim.state
                self._followers.get(schedule, (None, set()))[1].discard(strand)
                continue
            if claim.index == 0 and claim.sure <= VIEW:
                # A first timestep may be that of several runs: whose it is not is let go at the next one.
                self._add_follower(schedule, claim, strand)
            rank = (claim.sure, last is not None and last[0]() is schedule)
            if best is None or rank > best[0]:
                best = rank, schedule, claim
        return None if best is None else best[1:]

    def _is_counted(self, schedule: Schedule, claim: Claim, chain: Any, moment: Moment, strand: Any) -> bool:
        """True if a forward continues `chain`, and its timestep matches the schedule's only by coincidence."""
        if claim.sure >= VIEW or not chain.goes_on_with(moment.value):
            return False
        begun = claim.state[1] is not None
        if chain.follows(schedule) and (chain.settled or claim.sure > FOLLOWS or begun):
            return False
        if claim.index == 0 and moment.value == chain.counter.value:
            # A first timestep of no known form may be anything: it is no reason to leave a run amid a step.
            return claim.sure <= FOLLOWS and chain.counter.step > 0
        if strand not in self._strands_of(schedule, claim, strand):
            return True
        # The scheduler has not moved since it let a forward of this strand pass: it stands still, after a run that was
        # broken off.
        passed: Any = self._passed.get(strand, {})
        if passed.get(schedule) == claim.state:
            return True
        free = chain.source is None or not chain.settled
        # A first timestep, found as it is, rather begins a run than to be the next one of a run that nobody knows.
        begins = claim.index == 0 and claim.sure == VALUE
        counted = free and claim.sure <= VALUE and moment.value != chain.counter.value and not begins
        if counted:
            # So are the other forwards of the step.
            self._passed.setdefault(strand, WeakKeyDictionary())[schedule] = claim.state
        return bool(counted)

    def _add_follower(self, schedule: Schedule, claim: Claim, strand: Any) -> None:
        timesteps, strands = self._followers.get(schedule, (None, weakref.WeakSet()))
        strands = strands if timesteps == claim.state[0] else weakref.WeakSet()
        strands.add(strand)
        self._followers[schedule] = (claim.state[0], strands)

    def _strands_of(self, schedule: Schedule, claim: Claim, default: Any) -> Any:
        """The strands that have followed a schedule's run since it began; the default where none has."""
        timesteps, strands = self._followers.get(schedule, (None, None))
        return strands if timesteps == claim.state[0] and strands else (default,)

    def _follow(
        self, schedule: Schedule, claim: Claim, chain: Any, moment: Moment, tensors: Sequence[Tensor], strand: Any
    ) -> tuple[Position, str]:
        position = schedule.accept(claim)
        if claim.sure <= VIEW:
            self._add_follower(schedule, claim, strand)
        if chain is not None:
            chain.counter.count(moment.value)
            chain.source, chain.settled = weakref.ref(schedule), claim.index != 0 or claim.sure >= VIEW
            self.chains.keep(tensors, strand, chain)
        elif self._last.get(strand, (None, None))[1] != position.run:
            self.chains.break_off(strand)
        self._last[strand] = (weakref.ref(schedule), position.run)
        return position, schedule.name
