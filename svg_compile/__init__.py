"""svg_compile: `torch.compile(dit, backend="svg")` makes video attention spatially and temporally sparse.

Importing this package loads neither Inductor, Triton nor diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from svg_compile.errors import LayoutError, NothingRewritten, OptionError, ScheduleError, SvgError
from svg_compile.layout import HeadKind, VideoLayout

if TYPE_CHECKING:
    from svg_compile.decisions import Reason, Site
    from svg_compile.functional import profile_heads, repaired_attention, sparse_attention
    from svg_compile.inspection.bisection import bisect
    from svg_compile.inspection.recording import record
    from svg_compile.inspection.recording.recorded import Recording
    from svg_compile.inspection.report import Report
    from svg_compile.inspection.tracing import explain
    from svg_compile.passes.attention_operators import register_attention_op
    from svg_compile.passes.axes.rules.rowwise import register_rowwise_op
    from svg_compile.runtime.sources import attach, denoising

__version__ = "0.1.0"

_LAZY = {
    "attach": "svg_compile.runtime.sources",
    "bisect": "svg_compile.inspection.bisection",
    "denoising": "svg_compile.runtime.sources",
    "explain": "svg_compile.inspection.tracing",
    "profile_heads": "svg_compile.functional",
    "record": "svg_compile.inspection.recording",
    "register_attention_op": "svg_compile.passes.attention_operators",
    "register_rowwise_op": "svg_compile.passes.axes.rules.rowwise",
    "repaired_attention": "svg_compile.functional",
    "sparse_attention": "svg_compile.functional",
    "Reason": "svg_compile.decisions",
    "Recording": "svg_compile.inspection.recording.recorded",
    "Report": "svg_compile.inspection.report",
    "Site": "svg_compile.decisions",
}

__all__ = [
    "HeadKind",
    "LayoutError",
    "NothingRewritten",
    "OptionError",
    "Reason",
    "Recording",
    "Report",
    "ScheduleError",
    "Site",
    "SvgError",
    "VideoLayout",
    "attach",
    "bisect",
    "denoising",
    "explain",
    "profile_heads",
    "record",
    "register_attention_op",
    "register_rowwise_op",
    "repaired_attention",
    "sparse_attention",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'svg_compile' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
