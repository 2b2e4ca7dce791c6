"""Faults of half-widths by need: what is missing, and how pairs are shared out."""

from __future__ import annotations

from mutant import NEED, Mutant

MUTANTS = (
    Mutant(
        "need: temporal rungs by the spatial order",
        "kernels/triton/need.py",
        "area, temporal == 1)",
        "area, temporal == 2)",
        NEED,
    ),
    Mutant(
        "need: key mask ignored",
        "kernels/triton/need.py",
        "token_ok &= tl.load(key_mask",
        "token_ok |= tl.load(key_mask",
        NEED,
    ),
    Mutant(
        "need: one split of the keys for all",
        "kernels/triton/need.py",
        "total += tl.load(",
        "total = tl.load(",
        NEED,
    ),
    Mutant(
        "need: padded rows counted",
        "kernels/triton/need.py",
        "tl.where(row_ok[:, None], total * total, 0.0)",
        "total * total",
        NEED,
    ),
    Mutant(
        "need: the spatial error for both kinds",
        "kernels/triton/need.py",
        "2 * at[:, None] + kind_of_rung[None, :]",
        "2 * at[:, None] + 0 * kind_of_rung[None, :]",
        NEED,
    ),
    Mutant(
        "need: what is left over is not spent",
        "kernels/triton/need.py",
        "for _ in range(FILLS):",
        "for _ in range(0):",
        NEED,
    ),
    Mutant(
        "need: every sample has the first one's share",
        "kernels/triton/need.py",
        "share + tl.program_id(0) * stride_s",
        "share",
        NEED,
    ),
    Mutant(
        "need: uniform half-widths kept beyond a small share",
        "kernels/triton/need.py",
        "tl.where(at_first > most, 1, 0)",
        "0",
        NEED,
    ),
    Mutant(
        "need: kinds kept without half-widths",
        "kernels/triton/need.py",
        "for column in tl.static_range(2):",
        "for column in tl.static_range(1):",
        NEED,
    ),
    Mutant(
        "need: the first density's ladder for all",
        "kernels/triton/need.py",
        "ladder += RUNGS * tl.load(when)",
        "ladder += 0 * tl.load(when)",
        NEED,
    ),
    Mutant(
        "need: rows of the plan by the first head's half-width",
        "kernels/triton/profile_kernel.py",
        "tl.load(plan + 2 * batch_head + 1)",
        "tl.load(plan + 1)",
        NEED,
    ),
    Mutant(
        "need: rows of the plan over the dense ones",
        "kernels/triton/profile_kernel.py",
        "partial += (1 + kind)",
        "partial += (0 + kind)",
        NEED,
    ),
    Mutant(
        "need: rows of the plan by the spatial order alone",
        "kernels/triton/profile_kernel.py",
        "band_rank(key_frame, key_place, frames, area, kind)",
        "band_rank(key_frame, key_place, frames, area, 0)",
        NEED,
    ),
)
