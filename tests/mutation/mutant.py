"""A fault to insert into a copy of the sources, and the tests that must fail with it."""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION = "test_attention.py"
PROFILE = "test_profile.py"
REPAIR = "test_repair.py"
NEED = "test_need.py"
MASK = "../test_mask.py"


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` everywhere in `file`; `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str = ATTENTION
