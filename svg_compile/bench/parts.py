"""What of a forward is attention, profile, projections, MLP, and the rest, read from one profiled run."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

PROJECTION, MLP, ATTENTION, PROFILE, REST = "projections", "MLP", "attention", "profile", "norm, RoPE, rest"

# By the names of kernels (GPU) and of ops (CPU).
_PATTERNS = {
    PROFILE: re.compile(r"profile_(rows|plan)_fwd|^svg::profile"),
    ATTENTION: re.compile(r"(sparse_attention|head_order|hidden_range)_fwd|^svg::attention|sdpa|flash|fmha|dot_prod"),
    "matmul": re.compile(r"gemm|nvjet|cutlass|cublas|^aten::(addmm|bmm|baddbmm|linear|_linear|mkldnn_linear)|mm$|_mm_"),
}


def parts(forward: Callable[[], object], device: torch.device, ffn: int | None) -> dict[str, float]:
    """Part -> milliseconds of one forward, all of which they add up to. ffn: inner width of the MLPs, where known."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with torch.no_grad(), profile(activities=activities, record_shapes=True) as profiled:
        with torch.profiler.record_function("forward"):
            forward()
        if device.type == "cuda":
            torch.cuda.synchronize()
    events = list(profiled.events() or [])
    ops = _ops(events, device)
    if device.type == "cuda":
        kernels = [event for event in events if str(event.device_type).endswith("CUDA")]
        times = {kernel: _kind(kernel.name) for kernel in kernels}
        found: dict[str, float] = defaultdict(float)
        for kernel, kind in times.items():
            found[kind] += kernel.device_time_total / 1e3
        whole = sum(found.values())
    else:
        found = defaultdict(float)
        for event in ops:
            found[_kind(event.name)] += event.cpu_time_total / 1e3
        whole = next(event.cpu_time_total for event in events if event.name == "forward") / 1e3
    in_mlp = _mlp_share([event for event in ops if _kind(event.name) == "matmul"], device, ffn)
    matmul = found["matmul"]
    result = {
        PROJECTION: matmul * (1 - in_mlp),
        MLP: matmul * in_mlp,
        ATTENTION: found[ATTENTION],
        PROFILE: found[PROFILE],
    }
    return {**result, REST: max(0.0, whole - sum(result.values()))}


def _kind(name: str) -> str:
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(name)), REST)


def _ops(events: list[Any], device: torch.device) -> list[Any]:
    """Ops that the patterns know, without those that such an op calls."""

    def known(event: Any) -> bool:
        return str(event.device_type).endswith("CPU") and _kind(event.name) != REST

    def inside(event: Any) -> bool:
        parent = event.cpu_parent
        while parent is not None:
            if known(parent):
                return True
            parent = parent.cpu_parent
        return False

    return [event for event in events if known(event) and not inside(event)]


def _mlp_share(matmuls: list[Any], device: torch.device, ffn: int | None) -> float:
    """The share of the time of matrix products that have the MLP's inner width for a side."""
    times: Mapping[bool, float] = defaultdict(float)
    for event in matmuls:
        sides = {size for shape in event.input_shapes or [] for size in shape}
        time = event.device_time_total if device.type == "cuda" else event.cpu_time_total
        times[ffn in sides] += time  # type: ignore[index]
    total = sum(times.values())
    return times[True] / total if total else 0.0
