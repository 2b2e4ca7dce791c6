"""The time of a forward by part: attention, profile, projections, MLP and the rest, from one profiled run."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

PROJECTION, MLP, ATTENTION, PROFILE, REST = "projections", "MLP", "attention", "profile", "norm, RoPE, rest"

# By the names of kernels (GPU) and of ops (CPU). Inductor's own kernels first: they are called after all they fuse.
_PATTERNS = {
    REST: re.compile(r"^triton_(poi|red|per)_"),
    PROFILE: re.compile(
        r"(profile_rows|profile_plan|missing_rows|missing|plan_by_need|sampled_rows|inverse)_fwd|^svg::profile"
    ),
    ATTENTION: re.compile(
        r"(sparse_attention|head_order|hidden_range|repair|exact_rows)_fwd|^svg::(attention|repair)|"
        r"sdpa|flash|fmha|dot_prod"
    ),
    "matmul": re.compile(r"gemm|nvjet|cutlass|cublas|^aten::(addmm|bmm|baddbmm|linear|_linear|mkldnn_linear)|mm$|_mm_"),
}


@dataclass(frozen=True)
class Parts:
    """Part -> milliseconds of one forward, all of which they add up to; and what computed the attention, by name."""

    ms: dict[str, float]
    attention: tuple[str, ...]


def parts(forward: Callable[[], object], device: torch.device, ffn: Collection[int]) -> Parts:
    """Profile one forward. ffn: sizes that only the weights of MLPs have, such as their inner width."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with torch.no_grad(), profile(activities=activities, record_shapes=True) as profiled:
        with torch.profiler.record_function("forward"):
            forward()
        if device.type == "cuda":
            torch.cuda.synchronize()
    events = list(profiled.events() or [])
    ops = _ops(events)
    if device.type == "cuda":
        # A record_function stands among the kernels too, for as long as all of its own.
        kernels = [
            event for event in events if str(event.device_type).endswith("CUDA") and not event.is_user_annotation
        ]
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
    timed = kernels if device.type == "cuda" else ops
    names = dict.fromkeys(event.name for event in timed if _kind(event.name) == ATTENTION)
    return Parts({**result, REST: max(0.0, whole - sum(result.values()))}, tuple(names))


def _kind(name: str) -> str:
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(name)), REST)


def _ops(events: list[Any]) -> list[Any]:
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


def _mlp_share(matmuls: list[Any], device: torch.device, ffn: Collection[int]) -> float:
    """The share of the time of matrix products that have one of the MLP's sizes for a side."""
    times: Mapping[bool, float] = defaultdict(float)
    for event in matmuls:
        sides = {size for shape in event.input_shapes or [] for size in shape}
        time = event.device_time_total if device.type == "cuda" else event.cpu_time_total
        times[not sides.isdisjoint(ffn)] += time  # type: ignore[index]
    total = sum(times.values())
    return times[True] / total if total else 0.0
