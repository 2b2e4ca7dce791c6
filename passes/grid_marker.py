"""The marker by which an attention of a compiled block gets the grid that only the whole model shows.

A marker is an identity on an input of the attention's module, `svg::mark(x, text, sizes) -> x`, put there by a hook
that Dynamo traces (`svg_compile.regional.hooks`). `text` is a constant of the graph, and so guarded by Dynamo. It has
one entry for each attention of the module, in order:

    grid                  frames, height and width are the next three of `sizes`
    grid text first       and the number of text tokens before (or: last) the video is the one after these
    grid text both        and how many of them stand before the video the one after that
    ... of keys           of each of these: the two after that are the keys in front of and behind the queries
    CROSS_ATTENTION       refused, by the name of the `Reason`

With "block: " before it, it is of the attentions that the compiled block calls itself, in no module within.

`sizes` are data: tensors [n] whose lengths alone matter, so that Dynamo makes the numbers symbolic where it makes other
sizes symbolic (dynamic=True, or a second grid), and one graph serves all grids. Each length is the number plus
`_APART` times its place: Dynamo takes two equal lengths for one symbol, and treats 0 and 1 as constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from svg_compile.decisions import Reason, Site
from svg_compile.passes.axes.read_grid import Grid

_LIBRARY = torch.library.Library("svg", "FRAGMENT")
_LIBRARY.define("mark(Tensor(a) tensor, str text, Tensor[] sizes) -> Tensor(a)")
OF_BLOCK = "block: "
_GRID, _FIRST, _LAST, _BOTH = "grid", "grid text first", "grid text last", "grid text both"
_OF_KEYS = " of keys"
_NUMBERS = {_GRID: 3, _FIRST: 4, _LAST: 4, _BOTH: 5}
_NUMBERS |= {text + _OF_KEYS: count + 2 for text, count in _NUMBERS.items()}
_APART = 2**20


@torch.library.impl(_LIBRARY, "mark", "CompositeImplicitAutograd")
def _mark(tensor: Tensor, text: str, sizes: list[Tensor]) -> Tensor:
    return tensor.view_as(tensor)


# The marker's targets in a Dynamo graph.
MARK = (torch.ops.svg.mark, torch.ops.svg.mark.default)


@dataclass(frozen=True)
class Marker:
    """The marker of one module: `text` as above, and the numbers of its grids, which may be symbolic.

    number: of the module's first sparse attention among all of the model's, None where only the forward shows it.
    outside: the module is a block that calls attention between its graphs, and runs as plain Python: the entries are
    those of all attentions in it.
    """

    text: str
    sizes: tuple[Any, ...] = ()
    number: int | None = None
    outside: bool = False

    @property
    def has_grid(self) -> bool:
        return bool(self.sizes)

    def of_block(self) -> Marker:
        """The same, for attentions that a block calls itself."""
        return replace(self, text=OF_BLOCK + self.text)


def marker_of(sites: Sequence[Site]) -> Marker:
    """The marker of one module's attentions, in the order in which they run."""
    texts, sizes = [], []
    for site in sites:
        layout = site.layout
        if site.reason is not None or layout is None:
            texts.append((site.reason or Reason.UNKNOWN_GRID).name)
            continue
        sizes += [layout.frames, layout.height, layout.width]
        texts.append(_GRID)
        if layout.text_len:
            sizes.append(layout.text_len)
            texts[-1] = _FIRST if layout.text_first else _LAST
        if site.before:
            sizes.append(site.before)
            texts[-1] = _BOTH
        if any(site.unasked):
            sizes += site.unasked
            texts[-1] += _OF_KEYS
    return Marker(";".join(texts), tuple(sizes))


def entries_of(marker: Marker) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """(text, its own sizes) of each attention of a marker's module; no sizes for one that is refused."""
    found, sizes = [], list(marker.sizes)
    for text in marker.text.removeprefix(OF_BLOCK).split(";"):
        count = _NUMBERS.get(text, 0)
        found.append((text, tuple(sizes[:count])))
        del sizes[:count]
    return tuple(found)


def grids_of(marker: Marker) -> tuple[Grid | Reason, ...]:
    """The grid or refusal of each attention of a marker's module."""
    found: list[Grid | Reason] = []
    for text, sizes in entries_of(marker):
        if not sizes:
            found.append(Reason[text])
            continue
        of_keys = text.endswith(_OF_KEYS)
        own, unasked = (sizes[:-2], sizes[-2:]) if of_keys else (sizes, (0, 0))
        frames, height, width, text_len, before = (*own, 0, 0)[:5]
        first = text.removesuffix(_OF_KEYS) == _FIRST
        found.append(Grid(frames, height, width, text_len, first, before=before, unasked=(unasked[0], unasked[1])))
    return tuple(found)


def carriers(sizes: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
    """The tensors that carry the numbers of a marker into a graph: each of one element in memory."""
    # Alike in and out of inference mode: Dynamo guards which of both a tensor was made in.
    with torch.inference_mode(False):
        one = torch.zeros(1, dtype=torch.uint8, device=device)
        return tuple(one.expand(size + _APART * place) for place, size in enumerate(sizes, 1))


def carried(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """The numbers that `carriers` put into tensors."""
    return tuple(tensor.shape[0] - _APART * place for place, tensor in enumerate(tensors, 1))
