"""What `svg_compile.record` collects: which kind each head was, by run, step, call and layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from svg_compile.errors import SvgError
from svg_compile.layout import HeadKind, VideoLayout

_NOTHING = (
    "nothing was recorded: no forward of these models ran, in the block, a graph in which svg made attention sparse. "
    'Were they called inside of the `with` block? Were they compiled, by torch.compile(model, backend="svg")? Was any '
    "attention rewritten? svg_compile.explain(model, ...) tells."
)
_ALL_DENSE = (
    "all {count} recorded forwards were dense, so there are no plans: the first steps of a run are left dense "
    "(dense_steps). Record a whole run, or compile with options={{'dense_steps': 0}}."
)
_FACTS = ("model", "run", "step", "total", "call", "layer", "dense")


class Shares(NamedTuple):
    """How the heads divide into kinds; the three add up to 1."""

    spatial: float
    temporal: float
    dense: float


@dataclass(frozen=True, eq=False)
class Entry:
    """One attention in one forward.

    model: its name in the recording. run, step, total: where in which run, from 0; step and total are None where
    nobody told the step. call: how often the layer ran in that step before (guidance calls twice).
    kinds, half_widths: int32 [B, H], a `HeadKind` and blocks; errors: float32 [B, H, 2], what the profile found for
    (spatial, temporal), NaN where kinds were kept from an earlier step. All on the CPU, all None in a dense forward.
    repaired: float32 [B, H], the error that the repair leaves on rows left out of its fit; where a head is not repaired
    it is the error of its kind, NaN where kinds were kept, None where the option `repair` is off. layout: the token
    grid, where it is known.
    """

    model: str
    run: int
    step: int | None
    total: int | None
    call: int
    layer: str
    kinds: Tensor | None = None
    half_widths: Tensor | None = None
    errors: Tensor | None = None
    layout: VideoLayout | None = None
    repaired: Tensor | None = None

    @property
    def dense(self) -> bool:
        """Whether the whole forward was dense."""
        return self.kinds is None

    @cached_property
    def shares(self) -> Shares:
        """The kinds among the heads."""
        if self.kinds is None:
            return Shares(0.0, 0.0, 1.0)
        return Shares(*(float((self.kinds == int(kind)).float().mean()) for kind in HeadKind))

    @cached_property
    def repaired_share(self) -> float | None:
        """Share of the heads whose repair helps on rows left out; None where none was fitted in this forward."""
        if self.kinds is None or self.errors is None or self.repaired is None or bool(self.errors.isnan().all()):
            return None
        before = self.errors.gather(-1, self.kinds.long().clamp(max=1)[..., None])[..., 0]
        # Without a repair the two are one number, up to the order of its sum.
        helped = (self.kinds != HeadKind.DENSE) & (self.repaired < before * (1 - 1e-4))
        return float(helped.float().mean())

    @cached_property
    def density(self) -> float | None:
        """Share of the (query, key) pairs that was computed, over all heads; None where the layout is not known."""
        if self.kinds is None or self.half_widths is None:
            return 1.0
        if self.layout is None:
            return None
        counts = Counter(zip(self.kinds.flatten().tolist(), self.half_widths.flatten().tolist()))
        total = sum(self.layout.density(width, kind) * count for (kind, width), count in counts.items())
        return total / self.kinds.numel()


class Recording:
    """What `record` collected: one `Entry` for each attention of each forward, in the order in which they ran."""

    def __init__(self, entries: Sequence[Entry] = (), missing: str = _NOTHING) -> None:
        self.fill(entries, missing)

    def fill(self, entries: Sequence[Entry], missing: str = _NOTHING) -> None:
        """Hold these entries from now on; `missing` is what the error says where there are none."""
        self._entries = tuple(entries)
        self._missing = missing

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries; SvgError where there are none."""
        if not self._entries:
            raise SvgError(self._missing)
        return self._entries

    @property
    def sparse(self) -> tuple[Entry, ...]:
        """The entries that have a plan; SvgError where there are none."""
        found = tuple(entry for entry in self.entries if not entry.dense)
        if not found:
            raise SvgError(_ALL_DENSE.format(count=len(self.forwards)))
        return found

    @property
    def layers(self) -> tuple[tuple[str, str], ...]:
        """(model, layer) of all entries, in the order in which they first ran."""
        return tuple(dict.fromkeys((entry.model, entry.layer) for entry in self.entries))

    @property
    def forwards(self) -> frozenset[tuple[str, int, int | None, int]]:
        """(model, run, step, call) of all entries."""
        return frozenset((entry.model, entry.run, entry.step, entry.call) for entry in self.entries)

    def select(self, **facts: Any) -> Recording:
        """The entries of these facts alone, as `recording.select(layer="blocks.3.attn1", call=0, dense=False)`."""
        for name in facts:
            if name not in _FACTS:
                raise SvgError(f"recordings are selected by {', '.join(_FACTS)}, not by {name!r}.")
        found = [entry for entry in self.entries if all(getattr(entry, name) == facts[name] for name in facts)]
        return Recording(found, f"no entry of the recording has {facts}.")

    def shares(self) -> Shares:
        """The kinds among all heads; in a dense forward all heads are dense. `select(dense=False)` leaves those out."""
        columns = zip(*(entry.shares for entry in self.entries))
        return Shares(*(sum(column) / len(self.entries) for column in columns))

    def densities(self) -> dict[tuple[str, str], float]:
        """The density reached by each (model, layer), the mean over its entries; SvgError where no layout is known."""
        if any(entry.density is None for entry in self.entries):
            raise SvgError("the densities depend on the token grid: give it, svg_compile.record(model, layout=...).")
        return {
            (model, layer): _mean([e.density or 0.0 for e in self.entries if (e.model, e.layer) == (model, layer)])
            for model, layer in self.layers
        }

    @property
    def summary(self) -> str:
        """The recording in print: its forwards, and a row a layer."""
        from svg_compile.inspection.recording.text import to_text

        return to_text(self)

    def __str__(self) -> str:
        return self.summary if self._entries else self._missing

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write `path`.npz, the numbers of all heads, and `path`.json, what they belong to; returns both paths."""
        from svg_compile.inspection.recording.file import save

        return save(self.entries, path)

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read what `save` wrote; SvgError where it is something else."""
        from svg_compile.inspection.recording.file import load

        return cls(load(path))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
