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
from svg_compile.bench.entries import Entries
from svg_compile.bench.machine import clocks, machine
from svg_compile.bench.peers import BANDS, DENSE, Problem, peer
from svg_compile.bench.timing import Times, interleaved
from svg_compile.errors import SvgError
from svg_compile.functional import profile_heads, sparse_attention
from svg_compile.kernels import ops, repair_ops
from svg_compile.layout import HeadKind
from svg_compile.zoo import Shape

KINDS = ("spatial", "temporal", "mixed")


@dataclass(frozen=True)
class Request:
    """The measurement. kinds: of the heads, "mixed" is half and half. densities: requested; reached in whole blocks."""

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
    entries = Entries()
    with _compiling_often():
        for what in (name for name in request.peers if name in DENSE):
            entries.add(what, what, "dense", 1.0, next(iter(problems.values())))
        if not entries.calls:
            raise SvgError(f"no dense attention to compare with: choose at least one of {', '.join(DENSE)} that runs.")
        sparse = [
            (f"{what} {kind} {density:g}", what, kind, density, problem)
            for (kind, density), problem in problems.items()
            for what in request.peers
            if what not in DENSE
        ]
        for each in tqdm(sparse, desc="compiling and checking", unit="call", leave=False, mininterval=2):
            entries.add(*each)
        for density in request.densities:
            for what, call in _profile_calls(request, query, key, value, density).items():
                entries.add_unchecked(f"{what} {density:g}", what, density, call)
        base = next(name for name in DENSE if name in entries.calls)
        here, before = machine(request.device), clocks(request.device, entries.calls[base])

        def result(times: Mapping[str, Times], after: str | None) -> dict[str, Any]:
            return {
                "benchmark": "attention",
                "shape": {**asdict(request.shape), "tokens": request.shape.layout.tokens},
                "dtype": str(request.dtype).removeprefix("torch."),
                "repeats": len(times[base].ms),
                "sampled_rows": request.sampled_rows,
                "base": base,
                "fastest_dense": min((name for name in DENSE if name in times), key=lambda name: times[name].median),
                "rows": [_row(request, row, problems, times, base, entries.differences) for row in entries.rows],
                "skipped": entries.skipped,
                "clocks": [before, after],
                "machine": here,
            }

        partly = None if keep is None else lambda times: keep(result(times, None))
        times = interleaved(entries.calls, request.repeats, request.device, request.seconds, partly)
        return result(times, clocks(request.device, entries.calls[base]))


def _profile_calls(
    request: Request, query: Tensor, key: Tensor, value: Tensor, density: float
) -> dict[str, Callable[[], Tensor]]:
    """The profile as functions call it, and the cost of the repair on top of it."""
    profile = partial(
        profile_heads, query, key, value, request.shape.layout, density=density, sampled_rows=request.sampled_rows
    )
    return {"profile": profile, **_repair_calls(request, query, key, value, density)}


def _repair_calls(
    request: Request, query: Tensor, key: Tensor, value: Tensor, density: float
) -> dict[str, Callable[[], Tensor]]:
    """The calls to time for a repair: the profile with its fit, the repair of a result, the layer as compiled.

    Every head is repaired, whatever its own fit says: by a map that hardly changes anything, so that one result can be
    repaired over and over.
    """
    layout, tail = request.shape.layout, (None, "auto", ops.ABI)
    grid = layout.grid
    options = ([float(density)], request.sampled_rows, True, *tail, *[None] * 4)

    def profile_and_fit() -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = repair_ops.PROFILE(query, key, value, None, grid, *options)
        return found

    def repair(out: Tensor) -> Tensor:
        repair_ops.REPAIR(out, exact, fit, grid, *tail[1:])
        return out

    def layer() -> Tensor:
        plan = profile_and_fit()[0]
        return repair(torch.ops.svg.attention(query, key, value, plan, None, grid, *tail))

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


def _row(
    request: Request,
    row: dict[str, Any],
    problems: Mapping[tuple[str, float], Problem],
    times: Mapping[str, Times],
    base: str,
    differences: Mapping[str, float],
) -> dict[str, Any]:
    """One row of the table: times, rates, and the fraction of the possible speedup that was reached."""
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
