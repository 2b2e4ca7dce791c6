"""A fault that is put into a copy of the sources, and the tests that have to notice it."""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION = "test_attention.py"
PROFILE = "test_profile.py"
REPAIR = "test_repair.py"
NEED = "test_need.py"
MASK = "../test_mask.py"


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in `file`, wherever it stands; `tests` has to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str = ATTENTION
