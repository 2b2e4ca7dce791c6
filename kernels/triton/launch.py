"""Launches of the Triton kernels: differences between versions of Triton and Inductor, and common arguments.

Every launch has one tile, so that a run is deterministic, with one exception: a graph compiled under Inductor's
`max_autotune` has several, which Inductor times at the first run. Whether to autotune is decided while the graph is
traced, inside Inductor's compile; both of Inductor's caches have `max_autotune` and the tiles in their keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton
from triton.runtime.interpreter import InterpretedFunction

from svg_compile._compat.gpu import is_traced
from svg_compile.errors import LayoutError
from svg_compile.kernels.triton.configs import TileConfig

# Maximum for which the division by multiplication in the temporal loop is exact.
MAX_FRAMES = 46_000


def launch(
    kernel: Any, grid: Callable[[Mapping[str, int]], tuple[int]], tiles: Sequence[TileConfig], *args: Any, **kwargs: Any
) -> None:
    """Launch `kernel` with its one tile, or with the fastest of several; `grid` maps a tile's constants to a grid."""
    if len(tiles) > 1:
        wrap_triton(_autotuned(kernel, tuple(tiles)))[grid](*args, **kwargs)
        return
    constants = _constants(kernel, tiles[0])
    options = {"num_warps": tiles[0].num_warps, "num_stages": tiles[0].num_stages}
    launcher(kernel)[grid(constants)](*args, **kwargs, **constants, **options)


def launcher(kernel: Any) -> Any:
    """The kernel for `launcher(kernel)[grid](...)`, traceable by torch.compile; unwrapped in the interpreter."""
    if isinstance(kernel, InterpretedFunction):
        return kernel
    return wrap_triton(kernel)


def autotunes(tensor: Tensor) -> bool:
    """True if a launch on this tensor is traced for Inductor and may autotune over several tiles.

    False for eager launches, which may be under CUDA graph capture, and where results have to be deterministic.
    """
    if not is_traced(tensor):
        return False
    from torch._inductor import config

    return config.max_autotune and not config.deterministic and not torch.are_deterministic_algorithms_enabled()


@lru_cache(maxsize=64)
def _autotuned(kernel: Any, tiles: tuple[TileConfig, ...]) -> Any:
    """`kernel`, autotuned over tiles. Every tile writes all outputs in full, so none needs a reset between runs."""
    configs = [
        triton.Config(_constants(kernel, tile), num_warps=tile.num_warps, num_stages=tile.num_stages) for tile in tiles
    ]
    return triton.autotune(configs=configs, key=[])(kernel)


def _constants(kernel: Any, tile: TileConfig) -> dict[str, int]:
    """The tile's sizes by the names of the kernel's parameters, those that the kernel has."""
    sizes = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_EDGE": tile.block_edge}
    return {name: size for name, size in sizes.items() if name in kernel.arg_names}


def device_function(function: Callable[..., Any]) -> Any:
    """An ordinary Python function, in a form that kernels can call.

    Jitted for the compiler. The interpreter calls the function directly: a jitted one would have to be in a module that
    imports triton.language.
    """
    jitted = triton.jit(function)
    return function if isinstance(jitted, InterpretedFunction) else jitted


def checked_head_dims(query: Tensor, key: Tensor, value: Tensor, frames: int) -> tuple[int, int]:
    """(D, Dv), which are constants of a kernel; LayoutError for unequal dtypes or too many frames."""
    if not query.dtype == key.dtype == value.dtype:
        raise LayoutError(f"q, k and v must have one dtype, got {query.dtype}, {key.dtype} and {value.dtype}.")
    if not isinstance(frames, torch.SymInt) and frames > MAX_FRAMES:
        raise LayoutError(f"the Triton kernels take at most {MAX_FRAMES} frames, got {frames}.")
    return int(query.shape[3]), int(value.shape[3])


def split_channels(head_dim: int, value_dim: int) -> dict[str, int]:
    """Head dims as one or two powers of two: 72 is 64 + 16 (8 of them padding), 96 is 64 + 32, 128 is 128 + 0."""
    low, high = _two_powers(head_dim)
    value_low, value_high = _two_powers(value_dim)
    return {"LOW": low, "HIGH": high, "VALUE_LOW": value_low, "VALUE_HIGH": value_high}


def _two_powers(size: int) -> tuple[int, int]:
    low = max(16, 1 << (size.bit_length() - 1))
    if size <= low:
        return low, 0
    high = max(16, 1 << (size - low - 1).bit_length())
    return (low, high) if high < low else (2 * low, 0)


def exponent_unit(scale: float) -> tuple[int, float]:
    """(sign, unit) with exp(scale * s) = 2 ** (unit * (sign * s)) and unit > 0; a scale of 0 has sign 0.

    The kernels take row maxima of raw scores, which needs a positive scale: the sign goes into q, where it is exact.
    """
    return (scale > 0) - (scale < 0), abs(scale) / math.log(2) or 1.0


def cdiv(size: int, unit: int) -> int:
    """size / unit rounded up; both may be SymInts."""
    return (size + unit - 1) // unit
