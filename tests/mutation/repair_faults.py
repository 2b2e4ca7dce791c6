"""Faults of the repair: its fit, and the rows that it writes."""

from __future__ import annotations

from mutant import REPAIR, Mutant

MUTANTS = (
    Mutant(
        "repair: text rows moved",
        "kernels/triton/repair.py",
        "video_start + place, place < video",
        "place, place < video",
        REPAIR,
    ),
    Mutant("repair: means of x left in", "kernels/triton/repair.py", " - mean_x[None, :]", "", REPAIR),
    Mutant("repair: mean of y lost", "kernels/triton/repair.py", "(change + mean_y[None, :])", "change", REPAIR),
    Mutant(
        "repair: heads share a fit",
        "kernels/triton/repair.py",
        "fit += batch_head *",
        "fit += 0 * batch_head *",
        REPAIR,
    ),
    Mutant(
        "repair: exact rows of another place",
        "kernels/triton/repair.py",
        "video_start + tl.load(sampled",
        "1 + tl.load(sampled",
        REPAIR,
    ),
    Mutant(
        "repair: rows of the other kind",
        "kernels/triton/fit.py",
        "| (kind == 1), kind + 1, 0)",
        "| (kind == 1), 2 - kind, 0)",
        REPAIR,
    ),
    Mutant("repair: no gate", "kernels/repair.py", "(least < before) &", "", REPAIR),
    Mutant(
        "repair: fits outlive their width",
        "kernels/repair.py",
        "(previous == plan).all(-1)",
        "(plan == plan).all(-1)",
        REPAIR,
    ),
    Mutant(
        "repair: kept rows are written",
        "kernels/triton/fit.py",
        'torch.where(anew, found, float("nan"))',
        "found",
        REPAIR,
    ),
)
