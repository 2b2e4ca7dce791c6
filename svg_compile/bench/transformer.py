"""`svg-compile bench block` and `bench forward`: a real transformer, dense by Inductor against sparse by this backend.

Both are compiled from the same module in one process and timed in turns. The sparse one runs no dense steps and
profiles in every forward: it is a sparse step, all included. A "block" is a model of one block with its ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from svg_compile._compat.gpu import empty_caches
from svg_compile.bench.machine import clocks, machine
from svg_compile.bench.parts import Parts, parts
from svg_compile.bench.timing import Times, interleaved
from svg_compile.config import SvgConfig
from svg_compile.errors import SvgError
from svg_compile.inspection.tracing import explain
from svg_compile.targets import Request, Target, load
from svg_compile.zoo import Model

# Shares of a run's steps that are dense, in projections.
DENSE_SHARES = (0.1, 0.25)


@dataclass(frozen=True)
class Options:
    """How to measure.

    compile_times: compile a block with empty and with full caches too; takes several compiles. once: time each variant
    in one forward, under the profiler, after the one that compiles it, in the place of `repeats` turns.
    """

    device: torch.device
    dtype: str = "bfloat16"
    density: float = 0.25
    repeats: int = 10
    mode: str = "default"
    compile_times: bool = True
    seconds: float = math.inf
    once: bool = False


def measure_blocks(
    model: Model, options: Options, keep: Callable[[list[dict[str, Any]]], object] | None = None
) -> list[dict[str, Any]]:
    """A result for each kind of block; each holds the projection of a whole run from all of them.

    `keep` is called with the results so far after each kind, without the projection.
    """
    results: list[dict[str, Any]] = []
    for kind, (_, count) in model.blocks.items():
        result = _measure(model, model.one_block(kind), options, 0, options.compile_times and not options.once)
        result |= {"benchmark": "block", "model": f"{model.name}, {kind}", "count": count, "projected": []}
        results.append(result)
        if keep is not None:
            keep(results)
    dense = sum(result["count"] * result["dense"]["ms"]["median"] for result in results)
    sparse = sum(result["count"] * result["sparse"]["ms"]["median"] for result in results)
    for result in results:
        result["projected"] = projected(model, dense, sparse)
        result["notes"]["projected"] = (
            f"{' + '.join(str(each['count']) for each in results)} times a block with the model's ends, all sparse in "
            f"sparse steps, {model.calls} forwards a step; text encoder and VAE not included"
        )
    return results


def measure_forward(model: Model, options: Options) -> dict[str, Any]:
    """The whole transformer. How long it compiles is left to `measure_blocks`: it is many times a block's compile."""
    result = _measure(model, model.config, options, SvgConfig().dense_layers, False)
    ms = result["dense"]["ms"]["median"], result["sparse"]["ms"]["median"]
    note = f"{model.calls} forwards a step; text encoder and VAE not included"
    result["notes"]["projected"] = note
    return {**result, "benchmark": "forward", "model": model.name, "projected": projected(model, *ms)}


def projected(model: Model, dense_ms: float, sparse_ms: float) -> list[dict[str, float]]:
    """Seconds of whole runs by the figures of single forwards."""
    runs = []
    for share in DENSE_SHARES:
        first = SvgConfig(dense_steps=share).dense_until(model.steps)
        dense = model.calls * model.steps * dense_ms / 1e3
        sparse = model.calls * (first * dense_ms + (model.steps - first) * sparse_ms) / 1e3
        run = {"steps": model.steps, "dense_steps": first, "dense_seconds": dense, "svg_seconds": sparse}
        runs.append({**run, "speedup": dense / sparse})
    return runs


def _measure(
    model: Model, config: dict[str, Any], options: Options, dense_layers: int, compile_times: bool
) -> dict[str, Any]:
    latents, text = model.size
    request = Request(config, latents=latents, text=text, dtype=options.dtype, weights=True, device=str(options.device))
    target = load(model.cls, request)
    ours: dict[str, Any] = {"density": options.density, "dense_steps": 0, "dense_layers": dense_layers, "strict": True}
    with torch.no_grad():
        report = explain(target.model, *target.args, options=ours, **target.kwargs)
    sites = [site for site in report.sites if site.rewritten]
    if not sites:
        raise SvgError(f"nothing of {model.name} is made sparse:\n{report}")
    mode = None if options.mode == "default" else options.mode
    # Inductor's options and ours go together; torch.compile takes either a mode or options.
    chosen = {"mode": mode} if mode else {}
    make: dict[str, Callable[[], Any]] = {
        "dense": lambda: torch.compile(target.model, backend="inductor", mode=mode),
        "sparse": lambda: torch.compile(target.model, backend="svg", options={**ours, "on_error": "raise", **chosen}),
    }
    # Inductor's key for a stored graph does not hold which backends SDPA may use: a graph that another process stored
    # would bring the dense attention that was chosen there.
    with empty_caches(), _dense_backend(options.device), torch.no_grad():
        seconds: dict[str, tuple[float | None, float | None]] = dict.fromkeys(make, (None, None))
        if compile_times:
            # The process' first compile pays for more than its own: it is made once more, and only that counts.
            _compile_seconds(make["dense"], target, options.device)
            seconds = {name: _compile_seconds(each, target, options.device) for name, each in make.items()}
        calls = {name: _forward(each(), target) for name, each in make.items()}
        difference = _difference(calls)
        before = clocks(options.device, calls["dense"])
        times, profiled = _timed(calls, model, options)
        found = {
            name: _variant(times[name], profiled[name], _peak(call, options.device), *seconds[name])
            for name, call in calls.items()
        }
        after = clocks(options.device, calls["dense"])
    shown = f"attention made sparse in {len(sites)} of {len(report.sites)} calls; weights and inputs are random"
    shown += f"; the result differs from the dense one by {difference:.3f} of its size"
    return {
        **found,
        "speedup": times["sparse"].speedup_over(times["dense"]),
        "latents": list(latents),
        "tokens": max(site.tokens for site in sites),
        "layers": len(sites),
        "density": options.density,
        "dtype": options.dtype,
        "mode": options.mode,
        "repeats": len(times["dense"].ms),
        "notes": {
            "sparse": shown,
            **{f"attention, {name}": ", ".join(each.attention) for name, each in profiled.items()},
        },
        "clocks": [before, after],
        "machine": machine(options.device),
    }


def _timed(
    calls: dict[str, Callable[[], Any]], model: Model, options: Options
) -> tuple[dict[str, Times], dict[str, Parts]]:
    """How long each call takes, and its parts; with `options.once` both of the same forward."""
    turns = {} if options.once else interleaved(calls, options.repeats, options.device, options.seconds)
    profiled = {name: parts(call, options.device, model.ffn) for name, call in calls.items()}
    return turns or {name: Times((sum(each.ms.values()),)) for name, each in profiled.items()}, profiled


def _variant(
    times: Times, profiled: Parts, peak: float | None, cold: float | None, warm: float | None
) -> dict[str, Any]:
    """The dense or the sparse variant, as it is stored."""
    return {
        "ms": times.summary(),
        "parts": profiled.ms,
        "attention": list(profiled.attention),
        "peak_gigabytes": peak,
        "compile_cold_seconds": cold,
        "compile_warm_seconds": warm,
    }


def _forward(compiled: Any, target: Target) -> Callable[[], Any]:
    # A tuple, whatever the class returns by default.
    kwargs = {**target.kwargs, "return_dict": False}
    return lambda: compiled(*target.args, **kwargs)


def _difference(calls: dict[str, Callable[[], Any]]) -> float:
    """||sparse - dense|| / ||dense|| of one forward; an error where it is no number. It compiles both."""
    dense, sparse = (call()[0].float() for call in (calls["dense"], calls["sparse"]))
    found = float((sparse - dense).norm() / dense.norm())
    if not math.isfinite(found):
        raise SvgError(f"the results are not finite: {found} between dense and sparse.")
    return found


def _dense_backend(device: torch.device) -> AbstractContextManager[Any]:
    """SDPA by cuDNN on GPUs, where the default may be a kernel half as fast, with what cuDNN cannot by others."""
    if device.type != "cuda":
        return nullcontext()
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    return sdpa_kernel([*backends, SDPBackend.MATH], set_priority=True)


def _compile_seconds(make: Callable[[], Any], target: Target, device: torch.device) -> tuple[float, float]:
    """Seconds of the first call, with empty caches on disk and with full ones, a call's own time included."""
    with empty_caches():
        cold = _first_call(make, target, device)
        warm = _first_call(make, target, device)
    torch.compiler.reset()
    return cold, warm


def _first_call(make: Callable[[], Any], target: Target, device: torch.device) -> float:
    torch.compiler.reset()
    begin = time.perf_counter()
    make()(*target.args, **target.kwargs)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _peak(call: Callable[[], object], device: torch.device) -> float | None:
    """GB that one forward needs at most, weights and all; None on CPUs, where torch does not count it."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9
