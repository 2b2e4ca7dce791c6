"""Positions that a model is given as an input, read by their values: are they the raster of a video?

Models that take packed latents [B, N, C] are given one position a token beside them, as [B, 3, N, 2] bounds in pixels
and seconds, [B, N, 3] or [N, 3] ids. A graph cannot show what such a tensor holds; its values can, outside of it:

    tokens    n = (f * height + h) * width + w
    raster    the first component depends on f alone and rises with it, the second on h alone, the third on w alone

at any patch size, frame rate or offset. Tokens of conditions may stand in front of it and behind it, with coordinates
of their own: the video is the longest run of tokens whose coordinates go on rising. Where a model is given the numbers
of its frames, [F], frames may stand behind the video that are none of it: there the numbers do not go on rising. What
stands beside positions in a model, ids of text say, is as good as a constant once its values are looked at. Whoever
builds on values must look again at each call: others are another grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
# Of all tokens, what a video must be, in tenths: more beside it is not worth attending in full (`axes.read_grid`).
_LEAST_TENTHS = 7
_FEWEST_FRAMES, _MOST_FRAMES = 2, 4096
# More are no positions of a video that fits a machine.
_MOST_VALUES = 2**26
_MOST_IDS = 2**16


@dataclass(frozen=True)
class Raster:
    """Positions of frames x height x width tokens in raster order, along dimension `tokens` of their tensor.

    before, after: how many tokens with positions of their own stand in front of these and behind them.
    """

    frames: int
    height: int
    width: int
    tokens: int
    before: int = 0
    after: int = 0


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
    if not bool(rows.isfinite().all()):
        return None
    start, stop = _longest_run(rows[0])
    rows = rows[:, start:stop]
    changing = (rows != rows[:, :1]).flatten(0, 1).any(0)
    if 10 * (stop - start) < _LEAST_TENTHS * count or stop - start < _FEWEST_TOKENS or int(changing.sum()) != 3:
        return None
    rows = rows[..., changing]
    time, row, _ = rows[0].unbind(-1)
    a_frame, a_row = _first_change(time), _first_change(row)
    if not (0 < a_row < a_frame) or a_frame % a_row or (stop - start) % a_frame:
        return None
    sizes = (stop - start) // a_frame, a_frame // a_row, a_row
    raster = Raster(*sizes, tokens, start, count - stop)
    grid = rows.unflatten(1, sizes)
    alone = ((..., 0), (2, 3)), ((..., 1), (1, 3)), ((..., 2), (1, 2))
    for (place, others), along in zip(alone, (1, 2, 3)):
        component = grid[place]
        first = component
        for dim in others:
            first = first.narrow(dim, 0, 1)
        if not bool((component == first).all()) or not bool((component.diff(dim=along) > 0).all()):
            return None
    return raster


def _longest_run(rows: Tensor) -> tuple[int, int]:
    """The longest run of rows [N, components], each later than the one before by the first component that differs."""
    steps = rows.diff(dim=0)
    first = (steps != 0).int().argmax(1, keepdim=True)
    falls = (steps.gather(1, first)[:, 0] <= 0).nonzero()[:, 0] + 1
    edges = torch.cat([falls.new_zeros(1), falls, falls.new_full((1,), len(rows))])
    longest = int(edges.diff().argmax())
    return int(edges[longest]), int(edges[longest + 1])


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


@dataclass(frozen=True)
class Ids:
    """Whole numbers that stand beside positions, known by their hash: equal ones are one constant."""

    digest: bytes


def ids_of(tensor: Tensor, positions: Iterable[Tensor]) -> Ids | None:
    """The ids that a tensor holds that has the components of one of the positions, and other tokens than that.

    None where it has not, holds anything but whole numbers, as latents do, or its values are not known.
    """
    return _whole_numbers(tensor) if any(_stands_beside(tensor, each) for each in positions) else None


# By tensor: the version of its values and the ids that they are.
_IDS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _whole_numbers(tensor: Tensor) -> Ids | None:
    version = None if tensor.is_inference() else version_of(tensor)
    seen = _IDS.get(tensor)
    if seen is not None and version is not None and seen[0] == version:
        found: Ids | None = seen[1]
        return found
    known = None if is_quantised(tensor) else known_value(tensor)
    values = None if known is None else known.detach().to("cpu", torch.float64).contiguous()
    whole = values is not None and bool((values == values.round()).all())
    ids = Ids(hashlib.sha256(values.numpy().tobytes()).digest()) if whole and values is not None else None
    _IDS[tensor] = version, ids
    return ids


def _stands_beside(tensor: Tensor, positions: Tensor) -> bool:
    """Whether a small tensor could be concatenated with positions along their tokens."""
    if tensor.dim() != positions.dim() or tensor.dtype is torch.bool or tensor.is_complex():
        return False
    others = [dim for dim in range(tensor.dim()) if tensor.shape[dim] != positions.shape[dim]]
    return 0 < tensor.numel() <= _MOST_IDS and len(others) == 1 and _places(positions)[:1] != []


Found = Union[Raster, Rise, Ids]
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


def ids_among(
    graph_module: fx.GraphModule,
    rasters: Mapping[fx.Node, Raster],
    inputs: Mapping[fx.Node, Tensor] | None = None,
) -> Mapping[fx.Node, Ids]:
    """The inputs of a graph that are ids beside the positions of a raster."""
    examples = dict(_examples(graph_module, inputs))
    positions = [examples[node] for node in rasters]
    others = [(node, example) for node, example in examples.items() if node not in rasters]
    return {node: ids for node, example in others if (ids := ids_of(example, positions)) is not None}


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
        if not isinstance(value, Tensor):
            return False
        return (_whole_numbers(value) if isinstance(self.found, Ids) else _seen(value)) == self.found


_KEY = "svg_positions"


def positions_of(graph_module: fx.GraphModule) -> tuple[Positions, ...]:
    """The inputs whose values the rewrite of a graph builds on."""
    found: tuple[Positions, ...] = graph_module.meta.get(_KEY, ())
    return found


def build_on(graph_module: fx.GraphModule, values: Mapping[fx.Node, Found]) -> None:
    """Note that a graph was rewritten on these values of its inputs."""
    places = {node: place for place, node in enumerate(graph_module.graph.find_nodes(op="placeholder"))}
    graph_module.meta[_KEY] = tuple(Positions(places[node], found) for node, found in values.items())
