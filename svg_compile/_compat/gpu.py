"""Launching kernels and compiling them anew, as the benchmarks need it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def gpu_sleep(cycles: int) -> None:
    """Keep the current GPU busy for so many clock cycles, so that what is launched after it waits in its queue."""
    torch.cuda._sleep(cycles)


def empty_caches() -> AbstractContextManager[object]:
    """Within it Inductor and Triton keep what they compile in folders that are empty at first, removed at the end."""
    from torch._inductor.utils import fresh_cache

    return fresh_cache()


def plain_triton() -> AbstractContextManager[object]:
    """Within it kernels under `wrap_triton` are launched by Triton itself, not through the op that tracing sees."""
    try:
        from torch._library.triton import set_wrap_triton_enabled
    except ImportError:
        return nullcontext()
    return set_wrap_triton_enabled(False)
