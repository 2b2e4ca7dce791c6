"""Noticing that runs end without one sparse step, and saying once why and what helps."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from svg_compile.config import SvgConfig
from svg_compile.runtime.counting import current_strand
from svg_compile.runtime.steps import Decision

_MOST_RUNS = 4
# Forwards that guidance makes in one step, at most.
_GUIDANCE = 4


@dataclass
class _Run:
    part: Any
    forwards: int = 0
    steps: int = 0
    sparse: bool = False


class DenseRuns:
    """Watches the forwards of one model, in each thread or task by itself: call `note` for each."""

    def __init__(self) -> None:
        self._strands: WeakKeyDictionary[Any, _InTurn] = WeakKeyDictionary()

    def note(self, decision: Decision, config: SvgConfig, part: Any) -> str | None:
        """A warning if a run has ended dense. part: what tells the graphs of one forward apart."""
        return self._strands.setdefault(current_strand(), _InTurn()).note(decision, config, part)


class _InTurn:
    """The runs of one strand, one after the other."""

    def __init__(self) -> None:
        self._runs: OrderedDict[int, _Run] = OrderedDict()
        self._dense_forwards = 0

    def note(self, decision: Decision, config: SvgConfig, part: Any) -> str | None:
        """`DenseRuns.note` of one strand."""
        position = decision.position
        if position is None or config.always_sparse:
            return None
        if position.exact:
            whole = config.dense_until(position.total) >= position.total and position.step == position.total - 1
            return _all_asked(config, position.total) if whole else None
        run = self._runs.get(position.run)
        if run is None:
            run = self._runs[position.run] = _Run(part)
            if len(self._runs) > _MOST_RUNS:
                self._runs.popitem(last=False)
        before = next((other for other in reversed(self._runs.values()) if other is not run), None)
        # A run that another one interrupts is over only if that one goes on by itself.
        over = run.steps == 1 and position.step == 1 and next(reversed(self._runs)) == position.run
        run.steps = max(run.steps, position.step + 1)
        run.sparse = run.sparse or not decision.dense
        self._runs.move_to_end(position.run)
        if over and before is not None and before.steps > 1 and not before.sparse:
            return _too_short(config, before.steps)
        if not decision.dense:
            self._dense_forwards = 0
        if part != run.part:
            return None
        run.forwards += 1
        self._dense_forwards += decision.dense
        most = max(config.num_inference_steps, _GUIDANCE * config.dense_until(config.num_inference_steps))
        if self._dense_forwards >= config.num_inference_steps and run.steps * _GUIDANCE < run.forwards:
            return _no_steps(config, self._dense_forwards)
        return _no_steps(config, self._dense_forwards) if self._dense_forwards > most else None


def _all_asked(config: SvgConfig, total: int) -> str:
    return (
        f"svg: all {total} steps of the run were dense, so it was not faster: dense_steps={config.dense_steps} "
        f"leaves the first {config.dense_until(total)} dense. Set it lower for short runs; 0 leaves no step dense."
    )


def _too_short(config: SvgConfig, steps: int) -> str:
    dense = config.dense_until(config.num_inference_steps)
    return (
        f"svg: all {steps} steps of the last run stayed dense, so it was not faster. No schedule gives the length of "
        f"a run, so dense_steps={config.dense_steps} of num_inference_steps={config.num_inference_steps} leaves the "
        f"first {dense} dense. Call svg_compile.attach(pipe), run the loop in "
        "`with svg_compile.denoising(model, steps=...)`, "
        f"or set options={{'num_inference_steps': {steps}}}."
    )


def _no_steps(config: SvgConfig, forwards: int) -> str:
    return (
        f"svg: {forwards} forwards in a row were dense: their timesteps do not show the steps of a run (they stay "
        "equal, alternate or rise), or runs are shorter than the number of dense steps "
        f"({config.dense_until(config.num_inference_steps)}). Call svg_compile.attach(pipe), or run the loop in "
        "`with svg_compile.denoising(model, steps=...)`."
    )
