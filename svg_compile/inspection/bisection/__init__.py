"""`svg_compile.bisect(model, inputs)`: which layers' sparsity costs most, found by running each alone, and without it.

The model is traced and rewritten once (`switched_model`); then 2 n + 3 forwards are run for n layers, and nothing is
compiled between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from svg_compile._compat.pytree import tree_leaves, tree_map
from svg_compile._compat.traces import leaving_no_trace
from svg_compile.errors import NothingRewritten, SvgError
from svg_compile.inspection.bisection.report import Bisection, LayerCost, ranked
from svg_compile.inspection.bisection.switched_model import SwitchedModel
from svg_compile.inspection.recording.entry import Entry, Shares
from svg_compile.layout import VideoLayout

Metric = Callable[[Any, Any], float]


def relative_l2(dense: Any, sparse: Any) -> float:
    """The norm of what the outputs differ by over the norm of the dense one, over all their floating tensors."""
    pairs = _floating(dense, sparse)
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((difference / max(sum(float(a.square().sum()) for a, _ in pairs), 1e-300)) ** 0.5)


def psnr(dense: Any, sparse: Any) -> float:
    """Peak signal-to-noise ratio in dB, over all floating tensors of the outputs; the peak is the dense one's range."""
    pairs = _floating(dense, sparse)
    peak = max(float(a.max()) for a, _ in pairs) - min(float(a.min()) for a, _ in pairs)
    squares = sum(float((a - b).square().sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    return float(10 * torch.tensor(peak**2 / squares, dtype=torch.float64).log10()) if squares else float("inf")


_METRICS: dict[str, tuple[Metric, bool]] = {"relative_l2": (relative_l2, False), "psnr": (psnr, True)}


def bisect(
    model: Callable[..., Any],
    inputs: Any,
    *,
    metric: str | Metric = "relative_l2",
    higher_is_better: bool | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Bisection:
    """Measure what each layer's sparsity costs in one forward: `print(svg_compile.bisect(model, inputs))`.

    inputs: the arguments of one forward: a tensor, a tuple or list, or a dict of keywords. Take them from a step that
    runs sparse: late timesteps are easier than early ones.
    metric: "relative_l2", "psnr", or a function of (dense output, sparse output) that returns a number; a larger one is
    a larger error unless `higher_is_better`.
    options: the backend's. Only layers that they make sparse are looked at, so dense_layers=0 shows all. Of a density
    that changes over the steps the last is taken.

    The model is run 2 n + 3 times for n layers, in eager mode and without gradients; it, its inputs and the random
    number generators are left as they were. Raises NothingRewritten when no layer would be sparse.
    """
    measure, better = _METRICS[metric] if isinstance(metric, str) and metric in _METRICS else (metric, False)
    if not callable(measure):
        raise SvgError(f"bisect: metric must be one of {', '.join(_METRICS)} or a function, got {metric!r}.")
    better = better if higher_is_better is None else higher_is_better
    given = _arguments(inputs)
    switched = SwitchedModel(model, given, options)
    with torch.no_grad(), leaving_no_trace(switched.backend):
        dense = tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, switched.run(()))
        layers = switched.layers
        if not layers:
            raise NothingRewritten("bisect: no attention would be sparse.\n" + "\n".join(map(str, switched.reports)))
        everything = range(len(layers))
        subsets = [(), everything, *((one,) for one in everything), *(set(everything) - {one} for one in everything)]
        values: list[float] = []
        plans: Mapping[int, tuple[Tensor, VideoLayout]] = {}
        for subset in _progress(subsets, progress):
            values.append(float(measure(dense, switched.run(subset))))
            plans = dict(switched.plans) if subset is everything else plans
        (floor, together), rest = values[:2], values[2:]
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)
    costs = [
        LayerCost(layer, alone, without, *_reached(*plans[at]))
        for at, (layer, alone, without) in enumerate(zip(layers, rest[: len(layers)], rest[len(layers) :]))
    ]
    return Bisection(ranked(costs, better), name, together, floor, better)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments that `inputs` stand for."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if not isinstance(inputs, (tuple, list)):
        raise SvgError(
            f"bisect: inputs must be a tensor, a tuple of arguments or a dict of keywords, got {type(inputs).__name__}."
        )
    return tuple(inputs), {}


def _reached(plan: Tensor, layout: VideoLayout) -> tuple[float, Shares]:
    """The density of a plan, and its heads' kinds."""
    kinds, widths = plan.cpu().unbind(-1)
    entry = Entry("", 0, None, None, 0, "", kinds, widths, layout=layout)
    return entry.density or 0.0, entry.shares


def _floating(dense: Any, sparse: Any) -> list[tuple[Tensor, Tensor]]:
    """The floating tensors of two outputs, in float64, pair by pair."""
    both = zip(tree_leaves(dense), tree_leaves(sparse), strict=True)
    pairs = [(a.double(), b.double()) for a, b in both if isinstance(a, Tensor) and a.is_floating_point()]
    if not pairs:
        raise SvgError(f"bisect: no floating tensor in an output of type {type(dense).__name__}: pass metric=...")
    return pairs


def _progress(subsets: Sequence[Any], shown: bool) -> Any:
    """The subsets, with a bar on standard error where that is a terminal."""
    from tqdm import tqdm

    return tqdm(subsets, "bisect", unit="forward", leave=False, disable=None if shown else True)
