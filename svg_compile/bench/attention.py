"""`svg-compile bench attention`: one layer's attention, dense and sparse, by every peer, in one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from svg_compile._compat.compiled import recompile_limit
from svg_compile.bench import work
from svg_compile.bench.machine import clocks, machine
from svg_compile.bench.peers import BANDS, DENSE, Problem, Unavailable, peer
from svg_compile.bench.presets import Shape
from svg_compile.bench.timing import Times, interleaved
from svg_compile.errors import SvgError
from svg_compile.functional import profile_heads, sparse_attention
from svg_compile.kernels import ops, repair_ops
from svg_compile.kernels.reference import attention_mask, masked_attention
from svg_compile.layout import HeadKind

KINDS = ("spatial", "temporal", "mixed")
# Rows whose results are compared with float64, and how far a correct bf16 kernel may be from it.
_CHECKED_ROWS, _MOST_DIFFERENCE = 16, 0.02


@dataclass(frozen=True)
class Request:
    """What to measure. kinds: of the heads, "mixed" is half and half. densities: asked for, reached in whole blocks."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    kinds: tuple[str, ...] = KINDS
    densities: tuple[float, ...] = (0.3,)
    # Not "hopper", which has not been proven on a GPU yet, nor "flex-flash", which needs another package.
    peers: tuple[str, ...] = ("cudnn", "flash", "sdpa", "svg", "flex", "transpose")
    sampled_rows: int = 64
    repeats: int = 20
    seconds: float = math.inf


def measure(request: Request, keep: Callable[[dict[str, Any]], object] | None = None) -> dict[str, Any]:
    """Time everything in turns -> the result, as it is stored and as `page` reads it.

    `keep` is called with the result so far after each turn.
    """
    # An unknown name raises before anything is built.
    for name in request.peers:
        peer(name)
    query, key, value = _inputs(request)
    problems = {
        (kind, density): _problem(request, query, key, value, kind, density)
        for kind in request.kinds
        for density in request.densities
    }
    any_problem = next(iter(problems.values()))
    calls: dict[str, Callable[[], Tensor]] = {}
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    differences: dict[str, float] = {}

    def add(name: str, kind: str, density: float, problem: Problem, what: str) -> None:
        try:
            call = peer(what)(problem)
            difference = _difference(call, problem, dense=what in DENSE, skip_sink=what == "transpose")
            if what not in DENSE and what not in ("svg", "transpose"):
                _same_everywhere(call, problem)
        except Unavailable as error:
            skipped.setdefault(what if what in DENSE else f"{what} {kind}", str(error))
            return
        calls[name] = call
        differences[name] = difference
        rows.append({"name": name, "peer": what, "kind": kind, "density_asked": density})

    with _compiling_often():
        for what in (name for name in request.peers if name in DENSE):
            add(what, "dense", 1.0, any_problem, what)
        if not calls:
            raise SvgError(f"no dense attention to compare with: choose at least one of {', '.join(DENSE)} that runs.")
        sparse = [
            (f"{what} {kind} {density:g}", kind, density, problem, what)
            for (kind, density), problem in problems.items()
            for what in request.peers
            if what not in DENSE
        ]
        for each in tqdm(sparse, desc="compiling and checking", unit="call", leave=False, mininterval=2):
            add(*each)
        for density in request.densities:
            name = f"profile {density:g}"
            calls[name] = partial(
                profile_heads,
                query, key, value, request.shape.layout, density=density, sampled_rows=request.sampled_rows,
            )  # fmt: skip
            rows.append({"name": name, "peer": "profile", "kind": "profile", "density_asked": density})
            for peer_name, call in _repair_calls(request, query, key, value, density).items():
                name = f"{peer_name} {density:g}"
                calls[name] = call
                rows.append({"name": name, "peer": peer_name, "kind": "profile", "density_asked": density})
        base = next(name for name in DENSE if name in calls)
        here, before = machine(request.device), clocks(request.device, calls[base])

        def result(times: Mapping[str, Times], after: str | None) -> dict[str, Any]:
            return {
                "benchmark": "attention",
                "shape": {**asdict(request.shape), "tokens": request.shape.layout.tokens},
                "dtype": str(request.dtype).removeprefix("torch."),
                "repeats": len(times[base].ms),
                "sampled_rows": request.sampled_rows,
                "base": base,
                "fastest_dense": min((name for name in DENSE if name in times), key=lambda name: times[name].median),
                "rows": [_row(request, row, problems, times, base, differences) for row in rows],
                "skipped": skipped,
                "clocks": [before, after],
                "machine": here,
            }

        partly = None if keep is None else lambda times: keep(result(times, None))
        times = interleaved(calls, request.repeats, request.device, request.seconds, partly)
        return result(times, clocks(request.device, calls[base]))


def _repair_calls(
    request: Request, query: Tensor, key: Tensor, value: Tensor, density: float
) -> dict[str, Callable[[], Tensor]]:
    """What the repair costs: the profile with its fit, the repair of a result, and the layer as the backend runs it.

    Every head is repaired, whatever its own fit says: by a map that hardly changes anything, so that one result can be
    repaired over and over.
    """
    layout, tail = request.shape.layout, (None, "auto", ops.ABI)
    grid = (layout.frames, layout.height, layout.width, layout.text_len, layout.text_first, layout.block)
    options = ([float(density)], request.sampled_rows, True, *tail, *[None] * 4)

    def profile_and_fit() -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = repair_ops.PROFILE(query, key, value, None, *grid, *options)
        return found

    def repair(out: Tensor) -> Tensor:
        repair_ops.REPAIR(out, exact, fit, *grid[:5], *tail[1:])
        return out

    def layer() -> Tensor:
        plan = profile_and_fit()[0]
        return repair(torch.ops.svg.attention(query, key, value, plan, None, *grid, *tail))

    with torch.no_grad():
        plan, _, exact, fit, _ = profile_and_fit()
        fit = torch.full_like(fit, 1e-9)
        result = sparse_attention(query, key, value, plan, layout)
    return {"fit": lambda: profile_and_fit()[0], "repair": partial(repair, result), "layer": layer}


def _inputs(request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """Normal q, k, v: zeros draw less power and clock higher."""
    shape = request.shape
    generator = torch.Generator(request.device).manual_seed(0)
    sizes = (shape.batch, shape.layout.tokens, shape.heads, shape.head_dim)
    query, key, value = (
        torch.randn(sizes, generator=generator, device=request.device, dtype=request.dtype).transpose(1, 2)
        for _ in range(3)
    )
    return query, key, value


def _problem(request: Request, query: Tensor, key: Tensor, value: Tensor, kind: str, density: float) -> Problem:
    heads, layout = request.shape.heads, request.shape.layout
    spatial = {"spatial": heads, "temporal": 0, "mixed": (heads + 1) // 2}[kind]
    kinds = (HeadKind.SPATIAL,) * spatial + (HeadKind.TEMPORAL,) * (heads - spatial)
    widths = {band: layout.half_width_for(density, band) for band in BANDS}
    return Problem(request.shape, query, key, value, kinds, tuple(widths[each] for each in kinds))


def _difference(call: Callable[[], Tensor], problem: Problem, dense: bool, skip_sink: bool) -> float:
    """||out - exact|| / ||exact|| over some rows of the first and the last head; an error where that is too much."""
    layout = problem.layout
    first = layout.video_start + layout.area if skip_sink else 0
    last = layout.video_start + layout.video if skip_sink else layout.tokens
    rows = torch.linspace(first, last - 1, _CHECKED_ROWS, device=problem.query.device).long()
    with torch.no_grad():
        out = call()
    wrong, size = 0.0, 0.0
    for head in {0, problem.shape.heads - 1}:
        kind = HeadKind.DENSE if dense else problem.kinds[head]
        mask = attention_mask(layout, problem.half_widths[head], kind, out.device, rows)
        exact = masked_attention(problem.query[:1, head, rows], problem.key[:1, head], problem.value[:1, head], mask)
        wrong += float((out[:1, head, rows] - exact).square().sum())
        size += float(exact.square().sum())
    found = (wrong / size) ** 0.5
    _check(found, "its result is wrong")
    return found


@torch.no_grad()
def _same_everywhere(call: Callable[[], Tensor], problem: Problem) -> None:
    """An error where the whole result is not that of svg::attention: few rows are compared with float64."""
    out, ours = call(), sparse_attention(problem.query, problem.key, problem.value, problem.plan, problem.layout)
    _check(float((out - ours).norm() / ours.norm()), "its result differs from that of svg::attention")


def _check(found: float, what: str) -> None:
    if not found < _MOST_DIFFERENCE:
        raise Unavailable(f"{what} by {found:.3f} of its size")


def _row(
    request: Request,
    row: dict[str, Any],
    problems: Mapping[tuple[str, float], Problem],
    times: Mapping[str, Times],
    base: str,
    differences: Mapping[str, float],
) -> dict[str, Any]:
    """One line of the table: times, rates, and what the sparsity was turned into."""
    shape, name = request.shape, row["name"]
    found = times[name]
    speedup = found.speedup_over(times[base])
    out = {**row, "ms": found.summary(), "speedup": speedup, "difference": differences.get(name)}
    if row["kind"] == "profile":
        return out
    kinds, widths = (HeadKind.DENSE,) * shape.heads, (0,) * shape.heads
    if row["kind"] != "dense":
        problem = problems[row["kind"], row["density_asked"]]
        kinds, widths = problem.kinds, problem.half_widths
    pairs, tiles = work.mask_pairs(shape, kinds, widths), work.tile_pairs(shape, kinds, widths)
    density = pairs / (shape.heads * shape.layout.tokens**2)
    seconds = found.median / 1e3
    moved = work.least_bytes(shape, request.dtype.itemsize)
    if row["peer"] == "transpose":
        # Each of the four is read and written once more.
        moved *= 3
    # Others cut the mask into tiles of their own.
    known = row["peer"] in (*DENSE, "svg", "hopper", "transpose")
    return {
        **out,
        "density": density,
        "efficiency": speedup * density,
        "tflops_pairs": work.flops(shape, pairs) / seconds / 1e12,
        "tflops_tiles": work.flops(shape, tiles) / seconds / 1e12 if known else None,
        "least_gigabytes": moved / 1e9,
    }


def _compiling_often() -> AbstractContextManager[Any]:
    """A FlexAttention for each mask is many compiles of one function; without this the last ones would run eagerly."""
    return recompile_limit(256)
