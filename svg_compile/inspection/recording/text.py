"""A recording in print."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from svg_compile.inspection.recording.entry import Entry, forwards_of, mean_shares
from svg_compile.inspection.render.table import Table

_COLUMNS = ("layer", "heads", "spatial", "temporal", "dense", "density", "margin", "changed", "repaired")


def to_text(entries: Sequence[Entry]) -> str:
    """A summary of the runs, and one row per layer over its sparse forwards.

    density: reached, "?" where the grid is not known. margin: how many times larger the error of the other kind is,
    the median over heads and forwards. changed: share of heads of another kind than at the step before. repaired:
    share of heads whose repair helps on rows left out of its fit, over the forwards that were profiled; left out where
    nothing is repaired.
    """
    models = list(dict.fromkeys(entry.model for entry in entries))
    lines = [_headline([entry for entry in entries if entry.model == model]) for model in models]
    layers: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if not entry.dense:
            layers.setdefault((entry.model, entry.layer), []).append(entry)
    if not layers:
        return "\n".join([*lines, "all of them dense"])
    columns = list(_COLUMNS)
    rows = [_row(layer_name(model, layer, models), found) for (model, layer), found in layers.items()]
    if all(entry.repaired is None for entry in entries):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return "\n".join([*lines, Table(tuple(columns), tuple(rows)).text()])


def layer_name(model: str, layer: str, models: Sequence[str]) -> str:
    """A layer in print, with its model where there are several."""
    return layer if len(models) == 1 else f"{model}: {layer}"


def changed(entries: Sequence[Entry]) -> float | None:
    """Share of heads, of one layer, whose kind is another than at the step before; None for a single step."""
    last: dict[tuple[int, int], Entry] = {}
    shares = []
    for entry in entries:
        before = last.get((entry.run, entry.call))
        last[entry.run, entry.call] = entry
        if entry.kinds is None or before is None or before.kinds is None:
            continue
        if entry.kinds.shape == before.kinds.shape:
            shares.append(float((entry.kinds != before.kinds).float().mean()))
    return sum(shares) / len(shares) if shares else None


def margins(entry: Entry) -> torch.Tensor:
    """log10 of the spatial over the temporal error of each head, float32 [B, H]: above 0 temporal is the better one.

    NaN where nothing was profiled; no farther from 0 than 6, as where one of the errors is 0.
    """
    assert entry.errors is not None
    logs = entry.errors.clamp_min(torch.finfo(torch.float32).tiny).log10()
    return (logs[..., 0] - logs[..., 1]).clamp(-6, 6)


def _headline(entries: Sequence[Entry]) -> str:
    forwards = forwards_of(entries)
    dense = {(e.model, e.run, e.step, e.call) for e in entries if e.dense}
    runs = len({run for _, run, _, _ in forwards})
    steps = sorted({step for _, _, step, _ in forwards if step is not None})
    where = f"in {runs} {'run' if runs == 1 else 'runs'} of {_totals(entries)} steps" if steps else "at unknown steps"
    shares = mean_shares(entries)
    line = f"{entries[0].model}: {len(forwards)} forwards {where}, {len(dense)} of them dense"
    return line + f"; heads {shares.spatial:.0%} spatial, {shares.temporal:.0%} temporal, {shares.dense:.0%} dense"


def _totals(entries: Sequence[Entry]) -> str:
    return " or ".join(str(total) for total in sorted({entry.total for entry in entries if entry.total is not None}))


def _row(name: str, entries: Sequence[Entry]) -> tuple[str, ...]:
    shares = mean_shares(entries)
    heads = "/".join(dict.fromkeys(str(entry.kinds.shape[1]) for entry in entries if entry.kinds is not None))
    densities = [entry.density for entry in entries if entry.density is not None]
    found = torch.cat([margins(entry).abs().flatten() for entry in entries])
    found = found[~found.isnan()]
    change = changed(entries)
    helped = [entry.repaired_share for entry in entries if entry.repaired_share is not None]
    return (
        name,
        heads,
        *(f"{share:.0%}" for share in shares),
        f"{sum(densities) / len(densities):.3f}" if len(densities) == len(entries) else "?",
        f"{10 ** float(found.median()):.3g}x" if len(found) else "?",
        "-" if change is None else f"{change:.0%}",
        f"{sum(helped) / len(helped):.0%}" if helped else "-",
    )
