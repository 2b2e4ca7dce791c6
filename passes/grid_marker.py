"""What an attention of a model compiled block by block is told of the whole: the grid that a block alone cannot show.

A mark is an identity on an input of the attention's module, `svg::mark(x, text) -> x`, put there by a hook that Dynamo
traces. The text is a constant of the graph, so Dynamo guards it: another grid, even of equal length, recompiles, and
blocks of the same grid share one graph. The text has one entry for each attention of the module, in order:

    5x7x3                 frames, height and width in tokens
    5x7x3 text 11 first   with 11 text tokens before (or: last) the video
    CROSS_ATTENTION       refused, by the name of the `Reason`

With "block: " before it, it is of the attentions that the compiled block calls itself, in no module within.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from svg_compile.decisions import Reason, Site
from svg_compile.layout import VideoLayout

_LIBRARY = torch.library.Library("svg", "FRAGMENT")
_LIBRARY.define("mark(Tensor(a) tensor, str text) -> Tensor(a)")
OF_BLOCK = "block: "
_ENTRY = re.compile(r"(\d+)x(\d+)x(\d+)(?: text (\d+) (first|last))?")


@torch.library.impl(_LIBRARY, "mark", "CompositeImplicitAutograd")
def _mark(tensor: Tensor, text: str) -> Tensor:
    return tensor.view_as(tensor)


# What Dynamo may name it in a graph.
MARK = (torch.ops.svg.mark, torch.ops.svg.mark.default)


def mark_text(sites: Sequence[Site]) -> str:
    """The text of a mark for the attentions of one module."""
    return ";".join(_entry(site) for site in sites)


def marked(text: str, block: int) -> tuple[VideoLayout | Reason, ...]:
    """What a mark's text says of each attention of its module."""
    return tuple(_read(entry, block) for entry in text.split(";"))


def _entry(site: Site) -> str:
    if site.reason is not None or site.layout is None:
        return (site.reason or Reason.UNKNOWN_GRID).name
    layout = site.layout
    grid = f"{layout.frames}x{layout.height}x{layout.width}"
    return f"{grid} text {layout.text_len} {'first' if layout.text_first else 'last'}" if layout.text_len else grid


def _read(entry: str, block: int) -> VideoLayout | Reason:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return Reason[entry]
    frames, height, width, text_len, side = match.groups()
    return VideoLayout(int(frames), int(height), int(width), int(text_len or 0), side == "first", block)
