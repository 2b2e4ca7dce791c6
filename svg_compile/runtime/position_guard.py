"""A rewrite that builds on the values of position inputs holds for those values alone: this looks at each call's.

Dynamo guards no values of tensors. A call whose positions are another grid, or none, runs dense. Looking costs nothing
in a denoising loop, which passes the same tensor at each step (`svg_compile.passes.position_inputs.raster_seen`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from svg_compile.passes.coordinates import Ids, Rise
from svg_compile.passes.index_runs import Runs
from svg_compile.passes.position_inputs import Found, Positions


class PositionGuard:
    """A compiled graph that runs `sparse` where every position input holds what it was compiled for, else `dense`."""

    def __init__(self, sparse: Callable[..., Any], dense: Callable[..., Any], positions: Sequence[Positions]) -> None:
        self.sparse = sparse
        self.dense = dense
        self.positions = tuple(positions)
        self._warned = False

    def __call__(self, *inputs: Any) -> Any:
        broken = next((each for each in self.positions if not each.hold(inputs)), None)
        if broken is None:
            return self.sparse(*inputs)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"svg: the model was compiled for {_named(broken.found)}; this call passes other values of the same "
                "shape, so it runs dense. Call torch.compiler.reset() before another grid of equal length, or pad the "
                "sequence.",
                stacklevel=2,
            )
        return self.dense(*inputs)


def _named(found: Found) -> str:
    if isinstance(found, Rise):
        return f"the positions of {found.frames} frames"
    if isinstance(found, Ids):
        return "the ids of its first call"
    if isinstance(found, Runs):
        return "the index of its first call"
    return f"the positions of a {found.frames}x{found.height}x{found.width} video"
