"""The inputs of a graph that hold positions, numbers of frames, ids or an index: each looked at once, until written.

A denoising loop gives each step the same tensor, so a GPU is waited for once a run. What the rewrite of a graph builds
on is noted with the graph (`build_on`), and looked up at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakIdKeyDictionary

from svg_compile._compat.dynamo import example_of
from svg_compile._compat.graphs import version_of
from svg_compile._compat.subclasses import is_quantised
from svg_compile.passes.coordinates import Ids, Raster, Rise, raster_of, rise_of, stands_beside, whole_numbers
from svg_compile.passes.index_runs import Runs, runs_of

Found = Union[Raster, Rise, Ids, Runs]
# By tensor, and by what looked at it: the version of its values, and what they hold.
_SEEN: WeakIdKeyDictionary = WeakIdKeyDictionary()


def raster_seen(positions: Tensor) -> Raster | None:
    """`raster_of`, looked up where the same tensor was looked at before and was not written since."""
    found = _seen(positions, _raster_or_rise)
    return found if isinstance(found, Raster) else None


def rise_seen(positions: Tensor) -> Rise | None:
    """`rise_of`, looked up likewise."""
    found = _seen(positions, _raster_or_rise)
    return found if isinstance(found, Rise) else None


def runs_seen(tensor: Tensor) -> Runs | None:
    """`runs_of`, looked up likewise."""
    found = _seen(tensor, runs_of)
    return found if isinstance(found, Runs) else None


def ids_of(tensor: Tensor, positions: Iterable[Tensor]) -> Ids | None:
    """The ids that a tensor holds that has the components of one of the positions, and other tokens than that.

    None where it has not, holds anything but whole numbers, as latents do, or its values are not known.
    """
    return _ids_seen(tensor) if any(stands_beside(tensor, each) for each in positions) else None


def _ids_seen(tensor: Tensor) -> Ids | None:
    found = _seen(tensor, whole_numbers)
    return found if isinstance(found, Ids) else None


def _raster_or_rise(positions: Tensor) -> Found | None:
    return rise_of(positions) or raster_of(positions)


def _seen(tensor: Tensor, look: Callable[[Tensor], Found | None]) -> Found | None:
    if is_quantised(tensor):
        return None
    if tensor.is_inference():
        # It does not count how often it was written.
        return look(tensor)
    version, seen = version_of(tensor), _SEEN.setdefault(tensor, {})
    if look not in seen or seen[look][0] != version:
        seen[look] = (version, look(tensor))
    found: Found | None = seen[look][1]
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
    """The inputs of a graph that are ids, to be concatenated with the positions of a raster."""
    examples = dict(_examples(graph_module, inputs))
    positions = [examples[node] for node in rasters]
    others = [(node, example) for node, example in examples.items() if node not in rasters]
    return {node: ids for node, example in others if (ids := ids_of(example, positions)) is not None}


def indices_among(
    graph_module: fx.GraphModule, inputs: Mapping[fx.Node, Tensor] | None = None
) -> Mapping[fx.Node, Runs]:
    """The inputs of a graph that could be used as an index, and are a few runs of consecutive numbers."""
    return {node: runs for node, example in _examples(graph_module, inputs) if (runs := runs_seen(example))}


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
        """True if a call's inputs are positions of that grid."""
        value = inputs[self.place]
        if not isinstance(value, Tensor):
            return False
        look = {Ids: whole_numbers, Runs: runs_of}.get(type(self.found), _raster_or_rise)
        return _seen(value, look) == self.found


_KEY = "svg_positions"


def positions_of(graph_module: fx.GraphModule) -> tuple[Positions, ...]:
    """The inputs whose values the rewrite of a graph builds on."""
    found: tuple[Positions, ...] = graph_module.meta.get(_KEY, ())
    return found


def build_on(graph_module: fx.GraphModule, values: Mapping[fx.Node, Found]) -> None:
    """Note that a graph was rewritten on these values of its inputs."""
    places = {node: place for place, node in enumerate(graph_module.graph.find_nodes(op="placeholder"))}
    graph_module.meta[_KEY] = tuple(Positions(places[node], found) for node, found in values.items())
