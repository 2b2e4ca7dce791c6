"""The torch versions that svg_compile is tested with, and one warning outside of them."""

from __future__ import annotations

import re
import warnings
from functools import cache

import torch

# First and last minor version with which `make test-versions` passes.
OLDEST = (2, 11)
NEWEST = (2, 15)


def minor_version(version: str) -> tuple[int, int] | None:
    """(2, 13) of "2.13.0+cpu"; None where a version is written otherwise."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return None if match is None else (int(match[1]), int(match[2]))


@cache
def warn_if_untested() -> None:
    """Warn, once a process, where torch is outside the tested range.

    Nothing is switched off: where one of torch's internals is not as expected, attention is refused, not trusted.
    """
    installed = minor_version(torch.__version__)
    if installed is not None and OLDEST <= installed <= NEWEST:
        return
    oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
    warnings.warn(
        f"svg_compile is tested with torch {oldest} to {newest}, this is {torch.__version__}. Attention that it cannot "
        "prove to be over a video stays dense; svg_compile.explain(model, ...) lists each attention.",
        stacklevel=3,
    )
