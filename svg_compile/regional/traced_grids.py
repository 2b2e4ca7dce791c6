"""The grids of a model's attentions, from one trace of the whole of it."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from svg_compile.decisions import Reason, Site
from svg_compile.errors import WrappedForward
from svg_compile.passes.grid_marker import Marker, marker_of
from svg_compile.regional.blocks import is_in
from svg_compile.regional.call_guards import arguments_of, is_flags, might_be_read, readable
from svg_compile.regional.wrappers import why_not_in_parallel

log = logging.getLogger(__name__)
_DEEP = 16
# Grids and dense layers are decided by the block's own options; here everything provable counts.
_ANY = {"min_tokens": 0, "dense_layers": 0, "on_error": "raise"}


@dataclass(frozen=True)
class ModelGrids:
    """The result of the trace for one kind of call of a model.

    markers: by the path of the module that is marked. sparse: the paths of the attentions that have a grid, in the
    order in which they run. reads_values: whether Python code may have read the values of integer tensors. reads: the
    names of the floating-point arguments whose values it has read.
    """

    markers: Mapping[str, Marker]
    sparse: tuple[str, ...]
    reads_values: bool = field(default=False, compare=False)
    reads: frozenset[str] = field(default=frozenset(), compare=False)


def trace_grids(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> ModelGrids | None:
    """The grids for calls like `model(*args, **kwargs)`; None where the model cannot be traced, which a warning says.

    blocks: the modules that are compiled one by one, by path.
    """
    name, start = type(model).__name__, time.perf_counter()
    # Of a deep model it takes seconds, at its first call: somebody waits for it.
    level = logging.WARNING if len(blocks) >= _DEEP else logging.INFO
    log.log(level, "svg: tracing %s once, for the token grids of its %d compiled blocks", name, len(blocks))
    try:
        traced, reads = _trace(model, args, kwargs)
        if traced.stopped is not None:
            raise traced.stopped
        if (why := why_not_in_parallel(model, traced.report.sites)) is not None:
            raise WrappedForward(why)
    except Exception as error:
        log.debug("tracing the whole model failed", exc_info=True)
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        warnings.warn(
            f"svg: {name} could not be traced as a whole ({why}), so the grid of its compiled blocks is not "
            "known and their attention stays dense. Where the tokens are in raster order, pass "
            "options={'layout': (frames, height, width), 'dense_layers': 0}, or compile the whole model, which is "
            "sparse if no graph break lies between its patches and its attention.",
            stacklevel=2,
        )
        return None
    report = traced.report
    log.info("traced %s in %.1f s", name, time.perf_counter() - start)
    sites = [_served(site) for site in report.sites]
    sparse = tuple(site.layer for site in sites if site.rewritten)
    inside = {layer for layer in sparse if any(is_in(layer, path) for path in blocks)}
    log.info("%d attentions of %s are marked for its blocks", len(inside), name)
    in_graphs = {site.layer for site in report.sites if site.rewritten}
    markers = {layer: marker_of([site for site in sites if site.layer == layer]) for layer in inside}
    for path in inside & set(blocks):
        own = markers.pop(path)
        if path in in_graphs:
            markers |= _carried(path, own, blocks[path], inside)
            continue
        # Its graphs break at its attention in any case: it is marked itself, and all attention in it is told apart
        # by the order in which it runs.
        markers = {layer: marker for layer, marker in markers.items() if not is_in(layer, path)}
        markers[path] = replace(marker_of([site for site in sites if is_in(site.layer, path)]), outside=True)
    return ModelGrids(markers, sparse, bool(report.breaks), reads)


def _carried(path: str, own: Marker, block: nn.Module, inside: Set[str]) -> dict[str, Marker]:
    """The marker of the attentions that a block calls itself, by the modules that carry it.

    A block's own hooks run outside of its graph: modules in it that have no attention carry the marker.
    """
    carriers = [name for child, _ in block.named_children() if (name := f"{path}.{child}") not in inside]
    if not carriers:
        warnings.warn(
            f"svg: the block {path} calls attention itself and holds no module without attention that could "
            "carry its grid, so its attention stays dense. Compile the whole model instead.",
            stacklevel=3,
        )
    return dict.fromkeys(carriers, own.of_block())


def _served(site: Site) -> Site:
    """An attention as its module's marker has it: one that runs as plain Python is compiled in a graph of its own."""
    return replace(site, rewritten=True, reason=None) if site.reason is Reason.BETWEEN_GRAPHS else site


def _trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, frozenset[str]]:
    """The trace of a call, and the floating-point arguments whose values it has read: none where it ends without."""
    from svg_compile.inspection.tracing import trace

    arguments = arguments_of(model, args, kwargs)
    traced = trace(model, args, kwargs, _ANY, values=readable(arguments), costs=False)
    if traced.stopped is None:
        return traced, frozenset()
    names = might_be_read(arguments)
    # Flags change seldom, so reading one too many costs nothing; of the others one is tried at a time.
    flags = [name for name in names if is_flags(arguments[name])]
    tries = [flags] if flags else []
    for read in (*tries, *([*flags, name] for name in names if name not in flags)):
        with_them = trace(model, args, kwargs, _ANY, values=readable(arguments, read), costs=False)
        if with_them.stopped is None:
            return with_them, frozenset(read)
    return traced, frozenset()
