"""Faults of the profile: its rows, and what it decides."""

from __future__ import annotations

from mutant import PROFILE, Mutant

MUTANTS = (
    Mutant(
        "profile: ties are temporal",
        "kernels/triton/decide.py",
        "temporal_error < spatial_error",
        "temporal_error <= spatial_error",
        PROFILE,
    ),
    Mutant(
        "profile: what is not finite may win", "kernels/triton/decide.py", "tl.where(spatial_ok, 0, 2)", "0", PROFILE
    ),
    Mutant(
        "profile: late rows ignored",
        "kernels/sampling.py",
        "(index * video + (jitter * video) // _UNIT) // count",
        "index",
        PROFILE,
    ),
    Mutant(
        "profile: spatial and temporal widths swapped",
        "kernels/triton/profile_kernel.py",
        "spatial_width = tl.load(widths)",
        "spatial_width = tl.load(widths + 1)",
        PROFILE,
    ),
    Mutant(
        "profile: key mask ignored",
        "kernels/triton/profile_kernel.py",
        "token_ok &= tl.load(key_mask",
        "token_ok |= tl.load(key_mask",
        PROFILE,
    ),
    Mutant(
        "profile: last stretch of keys lost",
        "kernels/triton/decide.py",
        "for split in range(SPLITS)",
        "for split in range(SPLITS - 14)",
        PROFILE,
    ),
    Mutant(
        "profile: padded rows counted",
        "kernels/triton/decide.py",
        "tl.where(row_ok, tl.sum(off * off, 1), 0.0)",
        "tl.sum(off * off, 1)",
        PROFILE,
    ),
    Mutant(
        "profile: the step's density ignored by the errors",
        "kernels/triton/profile_kernel.py",
        "widths += 3 * tl.load(when)",
        "widths += 0 * tl.load(when)",
        PROFILE,
    ),
    Mutant(
        "profile: the step's density ignored by the plan",
        "kernels/triton/decide.py",
        "widths += 3 * tl.load(when)",
        "widths += 0 * tl.load(when)",
        PROFILE,
    ),
    Mutant(
        "profile: kinds kept when they were to be profiled",
        "kernels/triton/decide.py",
        "tl.load(when + stride_w) == 0",
        "tl.load(when + stride_w) >= 0",
        PROFILE,
    ),
    Mutant(
        "profile: kept kinds are head 0's",
        "kernels/triton/decide.py",
        "batch_head.to(tl.int64) * stride_ph",
        "0",
        PROFILE,
    ),
)
