"""One attention in one forward, as `svg_compile.record` collects it, and what several of them add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from svg_compile.layout import HeadKind, VideoLayout


class Shares(NamedTuple):
    """How the heads divide into kinds; the three add up to 1."""

    spatial: float
    temporal: float
    dense: float


@dataclass(frozen=True, eq=False)
class Entry:
    """One attention in one forward.

    model: its name in the recording. run, step, total: where in which run, from 0; step and total are None where
    the step is not known. call: how often the layer ran in that step before (guidance calls twice).
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
        """True if the whole forward was dense."""
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
        if self.kinds is None:
            return 1.0
        return None if self.head_densities is None else float(self.head_densities.double().mean())

    @cached_property
    def head_densities(self) -> Tensor | None:
        """Share of the pairs that each head computed, float32 [B, H]; None in a dense forward and without a layout."""
        if self.kinds is None or self.half_widths is None or self.layout is None:
            return None
        plan = list(zip(self.kinds.flatten().tolist(), self.half_widths.flatten().tolist(), strict=True))
        densities = {(kind, width): self.layout.density(width, kind) for kind, width in set(plan)}
        return torch.tensor([densities[head] for head in plan]).view(self.kinds.shape)


def mean_shares(entries: Sequence[Entry]) -> Shares:
    """The kinds among all heads of some entries, at least one; in a dense forward all heads are dense."""
    columns = zip(*(entry.shares for entry in entries))
    return Shares(*(sum(column) / len(entries) for column in columns))


def forwards_of(entries: Sequence[Entry]) -> frozenset[tuple[str, int, int | None, int]]:
    """(model, run, step, call) of some entries: the forwards that they come from."""
    return frozenset((entry.model, entry.run, entry.step, entry.call) for entry in entries)
