"""The result of `svg_compile.bisect`: the cost in quality of each layer's sparsity, largest first."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass

from svg_compile.inspection.recording.entry import Shares
from svg_compile.inspection.render.table import Table

# Raised when a name is renamed or dropped; added names do not count.
FORMAT = 1
_COLUMNS = ("layer", "alone", "all but it", "density", "spatial", "temporal", "dense")


@dataclass(frozen=True)
class LayerCost:
    """One layer. alone: the metric with this layer sparse and all others dense; without: with this one dense and all
    others sparse; density, heads: of the pairs that it computed and of its heads' kinds, where all layers were sparse.
    """

    layer: str
    alone: float
    without: float
    density: float
    heads: Shares


@dataclass(frozen=True)
class Bisection:
    """The layers that would be sparse, the one that costs most first, by its error alone.

    metric: its name; higher_is_better: whether a larger value is less error. together: the metric with all layers
    sparse; floor: with all of them dense.
    """

    layers: tuple[LayerCost, ...]
    metric: str
    together: float
    floor: float
    higher_is_better: bool = False

    def __str__(self) -> str:
        return f"{self._headline()}\n{self._table().text()}"

    def to_markdown(self) -> str:
        """The report as GitHub-flavoured Markdown, to paste into an issue."""
        return f"**{self._headline()}**\n\n{self._table().markdown()}\n"

    def to_json(self, indent: int | None = 2) -> str:
        """All facts as JSON; a value that is no finite number, as the PSNR of equal outputs, is null."""
        facts = {
            "format": FORMAT,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "together": _finite(self.together),
            "floor": _finite(self.floor),
            "layers": [
                {
                    **dataclasses.asdict(layer),
                    "alone": _finite(layer.alone),
                    "without": _finite(layer.without),
                    "heads": layer.heads._asdict(),
                }
                for layer in self.layers
            ],
        }
        return json.dumps(facts, indent=indent)

    def _table(self) -> Table:
        return Table(_COLUMNS, tuple(map(_cells, self.layers)))

    def _headline(self) -> str:
        layers = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        better = ", higher is better" if self.higher_is_better else ""
        return f"{self.metric} of {layers}{better}: all sparse {self.together:.3g}, all dense {self.floor:.3g}"


def ranked(layers: list[LayerCost], higher_is_better: bool) -> tuple[LayerCost, ...]:
    """The costliest first: by the error alone, equals by what is left without; no number at all is the worst."""

    def badness(value: float) -> float:
        return math.inf if math.isnan(value) else -value if higher_is_better else value

    return tuple(sorted(layers, key=lambda layer: (-badness(layer.alone), badness(layer.without))))


def _cells(layer: LayerCost) -> tuple[str, ...]:
    heads = (f"{share:.0%}" for share in layer.heads)
    return (layer.layer, f"{layer.alone:.3g}", f"{layer.without:.3g}", f"{layer.density:.3f}", *heads)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
