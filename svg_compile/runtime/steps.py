"""The step that a forward belongs to, and the count of steps from timesteps alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

_RUNS = itertools.count(1)


def new_run() -> int:
    """A number that no other run of this process has."""
    return next(_RUNS)


@dataclass(frozen=True)
class Position:
    """A step of a run: `step`, from 0, of `total`. run: the run's number; exact: by a schedule, not counted."""

    step: int
    total: int
    run: int = 0
    exact: bool = True


@dataclass(frozen=True)
class Decision:
    """How one forward was run. position: its step, None where unknown; source: what the step was found by."""

    position: Position | None
    dense: bool
    source: str


# No step is dense and all sparse steps are alike: nothing is read and nothing counted.
NOT_ASKED = Decision(None, False, "not asked")


@dataclass
class StepCounter:
    """Counts steps by timesteps: an equal one is the same step (guidance), a smaller one the next, a larger a new run.

    rises: how often the timestep rose in a row.
    """

    value: float | None = None
    step: int = 0
    run: int = field(default_factory=new_run)
    rises: int = 0

    def count(self, value: float) -> int:
        """The step that the timestep `value` belongs to."""
        if self.value is not None and value < self.value:
            self.step, self.rises = self.step + 1, 0
        elif value != self.value:
            rises = 0 if self.value is None else self.rises + 1
            self.step, self.run, self.rises = 0, new_run(), rises
        self.value = value
        return self.step

    def copy(self) -> StepCounter:
        """A counter that goes on from here by itself."""
        return replace(self)
