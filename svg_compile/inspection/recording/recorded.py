"""The data of `svg_compile.record`: the kind of each head, by run, step, call and layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svg_compile.errors import SvgError
from svg_compile.inspection.recording.entry import Entry, Shares, forwards_of, mean_shares

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


class Recording:
    """The result of `record`: one `Entry` for each attention of each forward, in the order in which they ran."""

    def __init__(self, entries: Sequence[Entry] = (), missing: str = _NOTHING, conflict: str = "") -> None:
        self.fill(entries, missing, conflict)

    def fill(self, entries: Sequence[Entry], missing: str = _NOTHING, conflict: str = "") -> None:
        """Hold these entries from now on; `missing` is what the error says where there are none, `conflict` what it
        says where layouts are not known because options["layout"] contradicts the graph.
        """
        self._entries = tuple(entries)
        self._missing = missing
        self._conflict = conflict

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
        return forwards_of(self.entries)

    def select(self, **facts: Any) -> Recording:
        """The entries of these facts alone, as `recording.select(layer="blocks.3.attn1", call=0, dense=False)`."""
        for name in facts:
            if name not in _FACTS:
                raise SvgError(f"recordings are selected by {', '.join(_FACTS)}, not by {name!r}.")
        found = [entry for entry in self.entries if all(getattr(entry, name) == facts[name] for name in facts)]
        return Recording(found, f"no entry of the recording has {facts}.", self._conflict)

    def shares(self) -> Shares:
        """The kinds among all heads; in a dense forward all heads are dense. `select(dense=False)` leaves those out."""
        return mean_shares(self.entries)

    def densities(self) -> dict[tuple[str, str], float]:
        """The density reached by each (model, layer), the mean over its entries; SvgError where no layout is known."""
        if any(entry.density is None for entry in self.entries):
            unknown = "the densities depend on the token grid: give it, svg_compile.record(model, layout=...)."
            raise SvgError(self._conflict or unknown)
        return {
            (model, layer): _mean([e.density or 0.0 for e in self.entries if (e.model, e.layer) == (model, layer)])
            for model, layer in self.layers
        }

    @property
    def summary(self) -> str:
        """The recording in print: its forwards, and a row a layer."""
        from svg_compile.inspection.recording.text import to_text

        return to_text(self.entries)

    def __str__(self) -> str:
        return self.summary if self._entries else self._missing

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write `path`.npz, the numbers of all heads, and `path`.json, what they belong to; returns both paths."""
        from svg_compile.inspection.recording.file import save

        return save(self.entries, path)

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read what `save` wrote; raises SvgError for any other file."""
        from svg_compile.inspection.recording.file import load

        return cls(load(path))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
