"""Tile sizes of the Triton kernels by architecture, dtype and head dim, and all that depends on Triton's version.

The table is fixed, so that a run is deterministic: the same input, software and GPU give the same bits. Every line is
compiled for its architecture by tests/test_triton_compile.py, which reads registers, spills and shared memory out of
the binary (docs/kernels.md has the figures).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton
from triton.runtime.interpreter import InterpretedFunction

from svg_compile.errors import LayoutError

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS = (16, 256)
# Beyond it the short division of the temporal loop is no longer exact.
MAX_FRAMES = 46_000


@dataclass(frozen=True)
class TileConfig:
    """One kernel's tile: block_m query rows, block_n keys, warps, and stages of the software pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def block_edge(self) -> int:
        """Keys of a masked tile: half as many, since the mask takes registers and few keys are left."""
        return max(16, self.block_n // 2)


# (architecture, bytes of the dtype) -> {largest head dim: tile}
ATTENTION: dict[tuple[str, int], dict[int, TileConfig]] = {
    ("sm_80", 2): {128: TileConfig(128, 32, 8, 3), 256: TileConfig(64, 16, 8, 2)},
    ("sm_90", 2): {64: TileConfig(128, 128, 8, 3), 128: TileConfig(128, 128, 8, 3), 256: TileConfig(128, 32, 8, 2)},
    ("sm_100", 2): {
        64: TileConfig(128, 128, 8, 3),
        96: TileConfig(128, 128, 8, 2),
        128: TileConfig(128, 64, 8, 3),
        256: TileConfig(64, 64, 8, 2),
    },
    ("gfx942", 2): {128: TileConfig(128, 32, 4, 2), 256: TileConfig(64, 32, 4, 2)},
    ("other", 2): {64: TileConfig(64, 64, 4, 2), 128: TileConfig(64, 32, 4, 2), 256: TileConfig(32, 32, 4, 2)},
    ("any", 4): {64: TileConfig(32, 32, 4, 1), 96: TileConfig(32, 16, 8, 1), 256: TileConfig(16, 16, 4, 1)},
    ("interpreter", 2): {256: TileConfig(16, 16, 1, 1)},
    ("interpreter", 4): {256: TileConfig(16, 16, 1, 1)},
}

# The same for `svg::profile`; block_m is the sampled rows of one program.
PROFILE: dict[tuple[str, int], dict[int, TileConfig]] = {
    ("sm_80", 2): {
        64: TileConfig(64, 32, 8, 3),
        96: TileConfig(64, 16, 8, 3),
        128: TileConfig(32, 32, 8, 3),
        160: TileConfig(16, 32, 8, 2),
        256: TileConfig(32, 32, 8, 3),
    },
    ("sm_90", 2): {128: TileConfig(64, 32, 8, 3), 160: TileConfig(16, 32, 8, 2), 256: TileConfig(32, 32, 8, 2)},
    ("sm_100", 2): {128: TileConfig(64, 32, 8, 3), 160: TileConfig(16, 32, 8, 2), 256: TileConfig(32, 32, 8, 2)},
    ("gfx942", 2): {128: TileConfig(64, 16, 8, 2), 256: TileConfig(16, 32, 4, 2)},
    ("other", 2): {64: TileConfig(16, 32, 8, 2), 96: TileConfig(16, 16, 8, 2), 256: TileConfig(16, 32, 8, 2)},
    ("any", 4): {80: TileConfig(16, 16, 4, 1), 256: TileConfig(16, 16, 8, 1)},
    ("interpreter", 2): {256: TileConfig(16, 16, 1, 1)},
    ("interpreter", 4): {256: TileConfig(16, 16, 1, 1)},
}


@lru_cache(maxsize=16)
def architecture(device: torch.device) -> str:
    """The table's name of a device's architecture."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    else:
        major, minor = torch.cuda.get_device_capability(device)
        name = f"sm_{major}{minor}"
    # sm_103 runs what sm_100 runs; smaller chips of a family have less shared memory and take "other".
    name = {"sm_103": "sm_100"}.get(name, name)
    return name if (name, 2) in ATTENTION else "other"


def attention_config(device: torch.device, dtype: torch.dtype, head_dim: int) -> TileConfig:
    """The tile of `svg::attention`; LayoutError where dtype or head dim is not supported."""
    return tile_for(ATTENTION, architecture(device), dtype, head_dim)


def profile_config(device: torch.device, dtype: torch.dtype, head_dim: int) -> TileConfig:
    """The tile of `svg::profile`; LayoutError where dtype or head dim is not supported."""
    return tile_for(PROFILE, architecture(device), dtype, head_dim)


def tile_for(
    table: dict[tuple[str, int], dict[int, TileConfig]], name: str, dtype: torch.dtype, head_dim: int
) -> TileConfig:
    if dtype not in DTYPES:
        raise LayoutError(f"the Triton kernels take bfloat16, float16 and float32, got {dtype}: cast the inputs.")
    if not HEAD_DIMS[0] <= head_dim <= HEAD_DIMS[1]:
        raise LayoutError(f"the Triton kernels take head dims {HEAD_DIMS[0]} to {HEAD_DIMS[1]}, got {head_dim}.")
    row = table.get((name, dtype.itemsize)) or table["any", dtype.itemsize]
    return row[min(limit for limit in row if limit >= head_dim)]


def checked_head_dims(query: Tensor, key: Tensor, value: Tensor, frames: int) -> tuple[int, int]:
    """(D, Dv), which are constants of a kernel; LayoutError for what the kernels cannot take."""
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

    The kernels take row maxima of raw scores, so a scale that is not positive goes into q, where it is exact.
    """
    return (scale > 0) - (scale < 0), abs(scale) / math.log(2) or 1.0


def cdiv(size: int, unit: int) -> int:
    """size / unit rounded up; both may be SymInts."""
    return (size + unit - 1) // unit


def device_function(function: Callable[..., Any]) -> Any:
    """`function`, a plain one that knows nothing of Triton, to be called from kernels.

    The interpreter runs such a function as it is, and asks of a jitted one that its module imports triton.language.
    """
    jitted = triton.jit(function)
    return function if isinstance(jitted, InterpretedFunction) else jitted


def launcher(kernel: Any) -> Any:
    """What `launcher(kernel)[grid](...)` launches: traceable by torch.compile; the interpreter takes kernels as is."""
    if isinstance(kernel, InterpretedFunction):
        return kernel
    return wrap_triton(kernel)
