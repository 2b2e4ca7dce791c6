"""Registering operators that launch Triton kernels, their arguments in a graph, and compiling them anew."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def triton_op(name: str, mutates_args: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """`torch.library.triton_op` without its warning, at each registration, that Triton is not installed.

    A machine without a GPU needs no Triton: the operators' CPU path does not use it.
    """

    def register(function: Callable[..., Any]) -> Any:
        logger = logging.getLogger("torch._library.triton")
        level = logger.level
        if importlib.util.find_spec("triton") is None:
            logger.setLevel(logging.ERROR)
        try:
            return torch.library.triton_op(name, function, mutates_args=mutates_args)
        finally:
            logger.setLevel(level)

    return register


def is_traced(tensor: torch.Tensor) -> bool:
    """True if a tensor is a proxy or fake tensor of a graph that is being traced, without data."""
    return type(tensor) not in (torch.Tensor, torch.nn.Parameter)


def in_one_buffer(tensor: torch.Tensor) -> torch.Tensor:
    """A traced tensor as Inductor stores it, once, in the order of its strides; one with data is returned as it is.

    Without it Inductor gives each kernel that reads a tensor which is still to be computed a buffer of its own.
    """
    if not is_traced(tensor):
        return tensor
    from torch._inductor import inductor_prims

    stored: torch.Tensor = inductor_prims.force_stride_order(tensor, tensor.stride())
    return stored


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
