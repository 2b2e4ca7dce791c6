"""Pictures of a recording: the kinds of its heads, how clearly the profile chose them, and how the heads share pairs.

Each function returns a matplotlib figure; `svg_compile.inspection.pictures.save` writes it. No window is opened and
nothing global is changed, so they work on machines without a display.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from svg_compile.errors import SvgError
from svg_compile.inspection.pictures import new_figure
from svg_compile.inspection.recording.entry import Entry
from svg_compile.inspection.recording.recorded import Recording
from svg_compile.inspection.recording.text import layer_name, margins
from svg_compile.layout import HeadKind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Spatial, temporal and dense: apart for colour-blind eyes too. Half spatial, half temporal is paper, not mud.
_BLUE, _ORANGE, _GREY = (0.043, 0.361, 0.678), (0.902, 0.447, 0.051), (0.7, 0.7, 0.68)
_PAPER, _INK = (0.97, 0.97, 0.96), (0.2, 0.1, 0.35)
_MOST_ROW_LABELS, _MOST_COLUMN_LABELS = 48, 14


def draw_kinds(recording: Recording) -> Figure:
    """Which kinds the heads were: layer x step, each cell the mix of its heads, and layer x head over all sparse steps.

    Calls of one step (guidance), runs and samples are taken together; `recording.select` parts them. Where the
    steps are not known, the forwards are counted instead.
    """
    from matplotlib.patches import Patch

    def shares(entry: Entry) -> Tensor:
        """[heads, kinds], over the samples."""
        if entry.kinds is None:
            return torch.eye(len(HeadKind))[HeadKind.DENSE][None]
        return torch.eye(len(HeadKind))[entry.kinds.long()].mean(0)

    def mixed(found: list[Tensor]) -> Tensor:
        return _colour(torch.stack([each.mean(0) for each in found]).mean(0))

    def averaged(found: list[Tensor]) -> Tensor:
        return _colour(torch.stack(found).mean(0))

    table = _Table(recording, recording.entries)
    figure, (left, right) = table.figure("Kinds of heads")
    white = torch.ones(3)
    left.imshow(table.by_step(shares, mixed, white).numpy(), aspect="auto", interpolation="nearest")
    sparse = _Table(recording, recording.sparse)
    right.imshow(sparse.by_head(shares, averaged, white).numpy(), aspect="auto", interpolation="nearest")
    table.label(left, right, "all heads of a layer", "each head, all sparse forwards")
    names = (("spatial", _BLUE), ("as often the one as the other", _PAPER), ("temporal", _ORANGE), ("dense", _GREY))
    key = [Patch(facecolor=colour, edgecolor="0.6", linewidth=0.5, label=name) for name, colour in names]
    figure.legend(handles=key, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _colour(shares: Tensor) -> Tensor:
    """[..., kinds] -> [..., 3]: blue to orange through paper as the sparse heads divide, the nearer grey the denser."""
    blue, orange, grey, paper = map(torch.tensor, (_BLUE, _ORANGE, _GREY, _PAPER))
    spatial, temporal, dense = shares[..., None].unbind(-2)
    lean = (temporal - spatial) / (temporal + spatial).clamp_min(1e-9)
    sparse = paper + lean.clamp_min(0) * (orange - paper) + (-lean).clamp_min(0) * (blue - paper)
    return (1 - dense) * sparse + dense * grey


def draw_margins(recording: Recording) -> Figure:
    """How clearly the profile chose. layer x step: how many times larger the worse kind's error is, the median over
    heads; layer x head: spatial over temporal error, the median over forwards.

    Near 1 the two kinds do equally well, and the choice says little. White where nothing was profiled.
    """

    def clearness(found: list[Tensor]) -> Tensor:
        return torch.cat([each.flatten() for each in found]).abs().nanmedian()

    def middles(found: list[Tensor]) -> Tensor:
        return torch.cat(found).nanmedian(0).values

    table = _Table(recording, recording.sparse)
    blank = torch.tensor(float("nan"))
    steps, heads = table.by_step(margins, clearness, blank), table.by_head(margins, middles, blank)
    figure, (left, right) = table.figure("Margins of the profile", bars=True)
    most = _limit(steps)
    _ratios(figure, left, steps, (_PAPER, _INK), 0.0, most, "error of the worse kind / of the better")
    most = _limit(heads)
    _ratios(figure, right, heads, (_BLUE, _PAPER, _ORANGE), -most, most, "spatial error / temporal error")
    table.label(left, right, "median over heads", "median over forwards")
    return figure


def draw_densities(recording: Recording) -> Figure:
    """How the heads share the pairs: layer x step, the mean density of a layer's heads, and layer x head, each head's
    mean over its sparse forwards.

    SvgError where a layer's token grid is not known.
    """
    recording.densities()

    def densities(entry: Entry) -> Tensor:
        assert entry.head_densities is not None
        return entry.head_densities

    def mean(found: list[Tensor]) -> Tensor:
        return torch.stack([each.mean() for each in found]).mean()

    def of_heads(found: list[Tensor]) -> Tensor:
        return torch.cat(found).mean(0)

    table, blank = _Table(recording, recording.sparse), torch.tensor(float("nan"))
    figure, (left, right) = table.figure("Densities of heads", bars=True)
    for axes, cells in (
        (left, table.by_step(densities, mean, blank)),
        (right, table.by_head(densities, of_heads, blank)),
    ):
        most = max(float(cells[~cells.isnan()].max()), 0.05)
        colours = _colourmap((_PAPER, _INK))
        image = axes.imshow(cells.numpy(), cmap=colours, vmin=0.0, vmax=most, aspect="auto", interpolation="nearest")
        bar = figure.colorbar(image, ax=axes, location="bottom", aspect=40, pad=0.02)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("share of the pairs", fontsize=9)
    table.label(left, right, "mean over heads", "mean over forwards")
    return figure


def _colourmap(colours: tuple[Any, ...]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("", list(colours))


def _limit(logs: Tensor) -> float:
    """Where the colours of log10 ratios end: a round ratio beyond nearly all of them."""
    known = logs[~logs.isnan()].abs()
    if not len(known):
        raise SvgError("the recording holds no errors: all its kinds were kept from steps before it (profile_every).")
    reached = float(known.quantile(0.98))
    rounds = (1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1e3, 1e4, 1e6)
    return math.log10(next(ratio for ratio in rounds if math.log10(ratio) >= min(reached, 6.0)))


def _ratios(
    figure: Figure, axes: Any, logs: Tensor, colours: tuple[Any, ...], low: float, high: float, name: str
) -> None:
    """Draw log10 ratios, with a colour bar labelled with the ratios."""
    image = axes.imshow(
        logs.numpy(), cmap=_colourmap(colours), vmin=low, vmax=high, aspect="auto", interpolation="nearest"
    )
    beyond = "max" if low == 0 else "both"
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=40, pad=0.02, extend=beyond)
    ticks = [low + (high - low) * quarter / 4 for quarter in range(5)]
    bar.set_ticks(ticks, labels=[_ratio(10**tick) for tick in ticks], fontsize=8)
    bar.set_label(name, fontsize=9)


def _ratio(value: float) -> str:
    number = f"{max(value, 1 / value):,.3g}" if 0.01 < value < 100 else f"{max(value, 1 / value):,.0f}"
    return number if value >= 1 else f"1/{number}"


class _Table:
    """A recording's layers as rows, and its steps or heads as columns."""

    def __init__(self, recording: Recording, entries: Sequence[Entry]) -> None:
        self.entries = entries
        models = list(dict.fromkeys(model for model, _ in recording.layers))
        self.names = [layer_name(model, layer, models) for model, layer in recording.layers]
        self.rows = {layer: row for row, layer in enumerate(recording.layers)}
        # Where steps are not known, forwards are numbered.
        self.told = all(entry.step is not None for entry in recording.entries)
        self.steps = sorted({self._step(entry) for entry in entries})
        self.heads = max(entry.kinds.shape[1] for entry in recording.sparse if entry.kinds is not None)

    def by_step(
        self, value: Callable[[Entry], Tensor], reduce: Callable[[list[Tensor]], Tensor], blank: Tensor
    ) -> Tensor:
        """[layers, steps, ...]: each cell what its entries' values reduce to."""
        groups: dict[tuple[int, int], list[Tensor]] = {}
        columns = {step: column for column, step in enumerate(self.steps)}
        for entry in self.entries:
            cell = (self.rows[entry.model, entry.layer], columns[self._step(entry)])
            groups.setdefault(cell, []).append(value(entry))
        grid = blank.expand(len(self.rows), len(self.steps), *blank.shape).clone()
        for cell, found in groups.items():
            grid[cell] = reduce(found)
        return grid

    def by_head(
        self, value: Callable[[Entry], Tensor], reduce: Callable[[list[Tensor]], Tensor], blank: Tensor
    ) -> Tensor:
        """[layers, heads, ...]: each row what its entries' values, a head a place, reduce to."""
        groups: dict[int, list[Tensor]] = {}
        for entry in self.entries:
            groups.setdefault(self.rows[entry.model, entry.layer], []).append(value(entry))
        grid = blank.expand(len(self.rows), self.heads, *blank.shape).clone()
        for row, found in groups.items():
            reduced = reduce(found)
            grid[row, : len(reduced)] = reduced
        return grid

    def figure(self, title: str, bars: bool = False) -> tuple[Figure, Any]:
        """A figure as high as there are layers, with two axes; `bars` leaves room below them."""
        figure = new_figure(figsize=(10.5, min(2.0 + 0.8 * bars + 0.24 * len(self.rows), 14.0)))
        figure.suptitle(title, fontsize=12)
        return figure, figure.subplots(1, 2, sharey=True)

    def label(self, left: Any, right: Any, left_title: str, right_title: str) -> None:
        """Titles and ticks: layers, and the steps on the left and the heads on the right."""
        left.set_title(left_title, fontsize=10)
        right.set_title(right_title, fontsize=10)
        left.set_xlabel("step" if self.told else "forward", fontsize=9)
        right.set_xlabel("head", fontsize=9)
        for axes, columns in ((left, self.steps), (right, range(self.heads))):
            every = -(-len(columns) // _MOST_COLUMN_LABELS)
            axes.set_xticks(range(0, len(columns), every), [str(each) for each in columns[::every]], fontsize=8)
        every = -(-len(self.names) // _MOST_ROW_LABELS)
        left.set_yticks(range(0, len(self.names), every), self.names[::every], fontsize=8)
        right.tick_params(axis="y", left=False, labelleft=False)

    def _step(self, entry: Entry) -> int:
        return entry.step if self.told and entry.step is not None else entry.call
