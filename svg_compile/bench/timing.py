"""Timing calls against each other: in turns, so that a clock that drifts is no advantage to any of them."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tqdm import tqdm

from svg_compile._compat.gpu import gpu_sleep

Call = Callable[[], object]
# More than any GPU's L2 cache; written before each call, so that none finds its inputs there.
_FLUSH_BYTES = 256 * 2**20
# About 2 ms: longer than it takes Python to launch a call, so that no launch is timed.
_HEAD_START_CYCLES = 4_000_000


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call, turn by turn."""

    ms: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    def speedup_over(self, base: Times) -> float:
        """How many times faster than `base`: the median of the turns' own ratios."""
        return statistics.median(other / own for own, other in zip(self.ms, base.ms, strict=True))

    def summary(self) -> dict[str, float]:
        """Median and the 20th and 80th percentile, interpolated; of a single turn, its time."""
        # Before Python 3.13 quantiles takes no single value.
        fifths = statistics.quantiles(self.ms, n=5, method="inclusive") if len(self.ms) > 1 else self.ms * 4
        return {"median": self.median, "p20": fifths[0], "p80": fifths[3]}


@torch.no_grad()
def interleaved(
    calls: Mapping[str, Call],
    repeats: int,
    device: torch.device,
    seconds: float = math.inf,
    keep: Callable[[dict[str, Times]], object] | None = None,
) -> dict[str, Times]:
    """Time each call `repeats` times in turns, after one turn to warm up. GPUs: by events, with a cold L2 cache.

    `triton.testing.do_bench` and `torch.utils.benchmark` time one call after the other, so a clock that drifts favours
    some of them. When `seconds` are over, the turn under way is the last. `keep` is called with the times so far after
    each turn, so that a run that is stopped leaves what it has.
    """
    timed = _time_on_gpu if device.type == "cuda" else _time_on_cpu
    flush = torch.empty(_FLUSH_BYTES if device.type == "cuda" else 0, dtype=torch.int8, device=device)
    found: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.monotonic()
    with tqdm(total=len(calls) * (repeats + 1), file=sys.stderr, unit="call", leave=False, disable=None) as progress:
        for turn in range(repeats + 1):
            for name, call in calls.items():
                progress.set_description(name)
                milliseconds = timed(call, flush)
                if turn:
                    found[name].append(milliseconds)
                progress.update()
            passed = time.monotonic() - begin
            if progress.disable:
                print(f"turn {turn} of {repeats}, {passed:.0f} s", file=sys.stderr, flush=True)
            if turn and keep is not None:
                keep(_times(found))
            if turn and passed > seconds:
                break
    return _times(found)


def _times(found: Mapping[str, list[float]]) -> dict[str, Times]:
    return {name: Times(tuple(times)) for name, times in found.items()}


def _time_on_cpu(call: Call, flush: torch.Tensor) -> float:
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def _time_on_gpu(call: Call, flush: torch.Tensor) -> float:
    flush.zero_()
    gpu_sleep(_HEAD_START_CYCLES)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)
