"""The forwards under way in this thread, of models whose compiled blocks are served."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from svg_compile.passes.grid_marker import Marker


@dataclass(frozen=True)
class Attending:
    """An attention that runs as plain Python, in a graph of its own: its model, its module's path and first parameter,
    and its number among the model's sparse attentions.
    """

    model: nn.Module
    layer: str
    parameter: Tensor | None
    number: int


@dataclass
class Forward:
    """One forward of a model.

    markers: by the path of the module of each attention, None where a warning said why the blocks stay dense.
    sparse: the paths of the model's attentions that have a grid, in the order in which they run.
    ran: whether a graph that was compiled of a marked block ran in it.
    parted: whether a graph was compiled in it that has the grid of a block's own attention, and not the attention.
    attending: the attention whose graph is called now, where it is none of a block.
    dense: why attentions that ran as plain Python stayed dense, by the paths of their modules.
    served: the paths of the modules whose attentions ran as the trace saw them, in any forward of the model.
    steps: what the runtime has found of the forward's step, by the length of a run that no schedule knows.
    """

    model: Any
    markers: Mapping[str, Marker] | None
    sparse: tuple[str, ...]
    timestep: Any
    ran: bool = False
    parted: bool = False
    attending: Attending | None = None
    dense: dict[str, str] = field(default_factory=dict)
    served: set[str] = field(default_factory=set)
    steps: dict[int, Any] = field(default_factory=dict)


@dataclass
class _Here(threading.local):
    forwards: list[Forward] = field(default_factory=list)


_HERE = _Here()


def enter(forward: Forward) -> None:
    """A forward begins. One of the same model that was broken off (Ctrl-C runs no hooks) is over now."""
    leave(forward.model)
    _HERE.forwards.append(forward)


def leave(model: Any) -> None:
    """A model's forward in this thread is over."""
    _HERE.forwards[:] = [forward for forward in _HERE.forwards if forward.model is not model]


def under_way(model: Any = None) -> Forward | None:
    """The innermost forward under way in this thread; of one model if one is passed."""
    return next((each for each in reversed(_HERE.forwards) if model is None or each.model is model), None)


def attending() -> Attending | None:
    """The attention of the forward under way in this thread whose graph is called by itself."""
    forward = under_way()
    return None if forward is None else forward.attending


def note_run() -> None:
    """A graph that was compiled of a marked block runs."""
    forward = under_way()
    if forward is not None:
        forward.ran = True


def note_parted() -> None:
    """A graph is compiled that carries the grid of an attention which the block calls itself, and does not hold it."""
    forward = under_way()
    if forward is not None:
        forward.parted = True


def refused_under_way() -> bool:
    """True if the model running in this thread has blocks without a grid, for a reason that a warning gave."""
    forward = under_way()
    return forward is not None and forward.markers is None


def attached_under_way() -> bool:
    """True if the compiled blocks of the running model are served, as the whole model was traced before."""
    return under_way() is not None


def marks_under_way() -> bool:
    """True if at least one attention of the model running in this thread has a marker."""
    forward = under_way()
    return forward is not None and any(marker.has_grid for marker in (forward.markers or {}).values())


def numbered(markers: Mapping[str, Marker]) -> Mapping[str, Marker]:
    """The markers of a graph with the numbers of their layers, where its paths are those of the model under way."""
    forward = under_way()
    sparse = () if forward is None else forward.sparse
    return {
        layer: replace(marker, number=sparse.index(layer) if layer in sparse else None)
        for layer, marker in markers.items()
    }
