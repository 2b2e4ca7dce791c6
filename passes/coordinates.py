"""Positions that a model is given as an input, read by their values: are they the raster of a video?

Models that take packed latents [B, N, C] are given one position a token beside them, as [B, 3, N, 2] bounds in pixels
and seconds, [B, N, 3] or [N, 3] ids. A graph cannot show what such a tensor holds; its values can, outside of it:

    tokens    n = (f * height + h) * width + w
    raster    the first component depends on f alone and rises with it, the second on h alone, the third on w alone

at any patch size, frame rate or offset. Where a model is given the numbers of its frames, [F], frames may stand behind
the video that are none of it: there the numbers do not go on rising. Whoever builds on values must look again at each
call: others are another grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakIdKeyDictionary

from svg_compile._compat.dynamo import example_of
from svg_compile._compat.graphs import known_value, version_of
from svg_compile._compat.subclasses import is_quantised

# (time, row, column), and at most one more component, which is the same for all tokens.
_COMPONENTS = (3, 4)
_FEWEST_TOKENS = 8
_FEWEST_FRAMES, _MOST_FRAMES = 2, 4096
# More are no positions of a video that fits a machine.
_MOST_VALUES = 2**26


@dataclass(frozen=True)
class Raster:
    """Positions of frames x height x width tokens in raster order, along dimension `tokens` of their tensor."""

    frames: int
    height: int
    width: int
    tokens: int


def raster_of(positions: Tensor) -> Raster | None:
    """The raster that a tensor of positions holds, None where it holds none, or has no values to look at.

    positions: [N, 3], [B, N, 3], [B, 3, N], [B, N, 3, 2] or [B, 3, N, 2] of any dtype but bool and complex, or with 4
    components of which one never changes. Each sample, and each of the two bounds, must be a raster of the same grid.
    On a GPU this waits for the values; `raster_seen` remembers.
    """
    places = _places(positions)
    known = known_value(positions) if places else None
    if known is None:
        return None
    values = known.detach().to("cpu", torch.float64)
    found = {raster for place in places if (raster := _raster(values, *place)) is not None}
    # Two readings of one tensor are no proof of either.
    return found.pop() if len(found) == 1 else None


def _places(positions: Tensor) -> list[tuple[int, int]]:
    """Where the tokens and the components of a tensor may stand, by its shape alone: (dimension, dimension) pairs."""
    if positions.dtype is torch.bool or positions.is_complex() or not 2 <= positions.dim() <= 4:
        return []
    if not 0 < positions.numel() <= _MOST_VALUES or (positions.dim() == 4 and positions.shape[3] != 2):
        return []
    pairs = [(0, 1)] if positions.dim() == 2 else [(1, 2), (2, 1)]
    shape = positions.shape
    return [(n, c) for n, c in pairs if shape[c] in _COMPONENTS and shape[n] >= _FEWEST_TOKENS]


def _raster(values: Tensor, tokens: int, components: int) -> Raster | None:
    """The raster along `tokens`, its components along `components`; None where a slice holds none, or another one."""
    count = values.shape[tokens]
    rows = values.movedim((tokens, components), (-2, -1)).reshape(-1, count, values.shape[components])
    changing = (rows != rows[:, :1]).flatten(0, 1).any(0)
    if int(changing.sum()) != 3 or not bool(rows.isfinite().all()):
        return None
    rows = rows[..., changing]
    time, row, _ = rows[0].unbind(-1)
    a_frame, a_row = _first_change(time), _first_change(row)
    if not (0 < a_row < a_frame) or a_frame % a_row or count % a_frame:
        return None
    raster = Raster(count // a_frame, a_frame // a_row, a_row, tokens)
    grid = rows.unflatten(1, (raster.frames, raster.height, raster.width))
    alone = ((..., 0), (2, 3)), ((..., 1), (1, 3)), ((..., 2), (1, 2))
    for (place, others), along in zip(alone, (1, 2, 3)):
        component = grid[place]
        first = component
        for dim in others:
            first = first.narrow(dim, 0, 1)
        if not bool((component == first).all()) or not bool((component.diff(dim=along) > 0).all()):
            return None
    return raster


def _first_change(values: Tensor) -> int:
    """The first place where a component differs from its first value; 0 where it never does."""
    return int((values != values[0]).int().argmax())


@dataclass(frozen=True)
class Rise:
    """Whole numbers [F], one a frame, of which the first `frames` rise: all, or the next one does not.

    What stands there is no next frame: a reference that is given the time of another, behind the video.
    """

    frames: int


def rise_of(positions: Tensor) -> Rise | None:
    """How many of the numbers of frames rise; None where a tensor holds no such numbers, or they are not known."""
    if positions.dtype not in (torch.int32, torch.int64) or positions.dim() != 1:
        return None
    known = known_value(positions) if _FEWEST_FRAMES <= positions.numel() <= _MOST_FRAMES else None
    if known is None:
        return None
    falls = (known.detach().cpu().diff() <= 0).nonzero()
    return Rise(int(falls[0]) + 1 if len(falls) else positions.numel())


Found = Union[Raster, Rise]
# By tensor: the version of its values and what they hold.
_SEEN: WeakIdKeyDictionary = WeakIdKeyDictionary()


def raster_seen(positions: Tensor) -> Raster | None:
    """`raster_of`, looked up where the same tensor was looked at before and was not written since.

    A denoising loop gives each step the same tensor, so a GPU is waited for once a run.
    """
    found = _seen(positions)
    return found if isinstance(found, Raster) else None


def rise_seen(positions: Tensor) -> Rise | None:
    """`rise_of`, looked up likewise."""
    found = _seen(positions)
    return found if isinstance(found, Rise) else None


def _seen(positions: Tensor) -> Found | None:
    if is_quantised(positions):
        return None
    if positions.is_inference():
        # It does not count how often it was written.
        return rise_of(positions) or raster_of(positions)
    version = version_of(positions)
    known = _SEEN.get(positions)
    if known is None or known[0] != version:
        known = _SEEN[positions] = (version, rise_of(positions) or raster_of(positions))
    found: Found | None = known[1]
    return found


def rasters_among(
    graph_module: fx.GraphModule, inputs: Mapping[fx.Node, Tensor] | None = None
) -> Mapping[fx.Node, Raster]:
    """The inputs of a graph whose values, in the call at hand, are positions in raster order.

    inputs: those of the call; None where the graph is being compiled for it, and Dynamo knows them.
    """
    return {node: raster for node, example in _examples(graph_module, inputs) if (raster := raster_seen(example))}


def rises_among(graph_module: fx.GraphModule, inputs: Mapping[fx.Node, Tensor] | None = None) -> Mapping[fx.Node, Rise]:
    """The inputs of a graph whose values, in the call at hand, number frames of which some stand behind the others."""
    return {node: rise for node, example in _examples(graph_module, inputs) if (rise := rise_seen(example))}


def _examples(
    graph_module: fx.GraphModule, inputs: Mapping[fx.Node, Tensor] | None
) -> Iterator[tuple[fx.Node, Tensor]]:
    for node in graph_module.graph.find_nodes(op="placeholder"):
        example = example_of(node) if inputs is None else inputs.get(node)
        if example is not None and not isinstance(example, torch.nn.Parameter):
            yield node, example


@dataclass(frozen=True)
class Positions:
    """What a rewritten graph builds on: its input number `place` holds this. Other values need another graph."""

    place: int
    found: Found

    def hold(self, inputs: Sequence[object]) -> bool:
        """Whether a call's inputs are positions of that grid."""
        value = inputs[self.place]
        return isinstance(value, Tensor) and _seen(value) == self.found


_KEY = "svg_positions"


def positions_of(graph_module: fx.GraphModule) -> tuple[Positions, ...]:
    """The inputs whose values the rewrite of a graph builds on."""
    found: tuple[Positions, ...] = graph_module.meta.get(_KEY, ())
    return found


def build_on(graph_module: fx.GraphModule, values: Mapping[fx.Node, Found]) -> None:
    """Note that a graph was rewritten on these values of its inputs."""
    places = {node: place for place, node in enumerate(graph_module.graph.find_nodes(op="placeholder"))}
    graph_module.meta[_KEY] = tuple(Positions(places[node], found) for node, found in values.items())
