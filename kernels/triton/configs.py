"""Tile sizes of the Triton kernels by architecture, dtype and head dim.

The tables of defaults are fixed, so that a run is deterministic: the same input, software and GPU give the same bits.
Under Inductor's `max_autotune` it is the first of a short list that Inductor times. tests/test_triton_compile.py
compiles every entry, the lists included, for its architecture and reads registers, spills and shared memory from the
binary (docs/kernels.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from svg_compile.errors import LayoutError

# The dtypes of every engine, and the head dims of the Triton kernels.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS = range(16, 257)


@dataclass(frozen=True)
class TileConfig:
    """One kernel's tile: block_m query rows, block_n keys, warps, and stages of the software pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def block_edge(self) -> int:
        """Keys of a masked tile: half as many, since the mask takes registers and few keys need it."""
        return max(16, self.block_n // 2)


# (architecture, bytes of the dtype) -> {largest head dim: tile}
Table = dict[tuple[str, int], dict[int, TileConfig]]
Choices = dict[tuple[str, int], dict[int, tuple[TileConfig, ...]]]

ATTENTION: Table = {
    ("sm_80", 2): {128: TileConfig(128, 32, 8, 3), 256: TileConfig(64, 16, 8, 2)},
    ("sm_90", 2): {64: TileConfig(128, 128, 8, 3), 128: TileConfig(128, 128, 8, 3), 256: TileConfig(128, 32, 8, 2)},
    ("sm_100", 2): {
        64: TileConfig(128, 128, 8, 3),
        96: TileConfig(128, 128, 8, 2),
        128: TileConfig(128, 64, 8, 3),
        256: TileConfig(64, 64, 8, 2),
    },
    ("gfx942", 2): {128: TileConfig(128, 32, 4, 2), 256: TileConfig(64, 32, 4, 2)},
    ("other", 2): {
        64: TileConfig(64, 64, 4, 2),
        128: TileConfig(64, 32, 4, 2),
        160: TileConfig(64, 16, 4, 2),
        256: TileConfig(32, 32, 4, 2),
    },
    ("any", 4): {64: TileConfig(32, 32, 4, 1), 96: TileConfig(32, 16, 8, 1), 256: TileConfig(16, 16, 4, 1)},
    ("interpreter", 2): {256: TileConfig(16, 16, 1, 1)},
    ("interpreter", 4): {256: TileConfig(16, 16, 1, 1)},
}

# The same for `svg::profile`; block_m is the sampled rows of one program.
PROFILE: Table = {
    ("sm_80", 2): {
        64: TileConfig(64, 32, 8, 3),
        96: TileConfig(64, 16, 8, 3),
        128: TileConfig(32, 32, 8, 3),
        160: TileConfig(16, 32, 8, 2),
        256: TileConfig(32, 32, 8, 3),
    },
    ("sm_90", 2): {128: TileConfig(64, 32, 8, 3), 160: TileConfig(16, 32, 8, 2), 256: TileConfig(32, 32, 8, 3)},
    ("sm_100", 2): {
        64: TileConfig(64, 32, 8, 3),
        80: TileConfig(64, 32, 8, 2),
        128: TileConfig(64, 32, 8, 3),
        160: TileConfig(16, 32, 8, 2),
        192: TileConfig(32, 16, 8, 3),
        256: TileConfig(32, 16, 8, 2),
    },
    ("gfx942", 2): {128: TileConfig(64, 16, 8, 2), 256: TileConfig(16, 32, 4, 2)},
    ("other", 2): {
        32: TileConfig(16, 32, 4, 2),
        64: TileConfig(16, 32, 8, 2),
        96: TileConfig(16, 16, 8, 2),
        256: TileConfig(16, 32, 8, 2),
    },
    ("any", 4): {80: TileConfig(16, 16, 4, 1), 256: TileConfig(16, 16, 8, 1)},
    ("interpreter", 2): {256: TileConfig(16, 16, 1, 1)},
    ("interpreter", 4): {256: TileConfig(16, 16, 1, 1)},
}

# Splits of a profile's keys on a GPU (`key_splits`).
SPLITS = 16

# Tiles that `max_autotune` times in addition to the default.
ATTENTION_CHOICES: Choices = {
    ("sm_80", 2): {
        64: (TileConfig(128, 64, 8, 3), TileConfig(128, 32, 4, 3)),
        96: (TileConfig(128, 64, 8, 3), TileConfig(64, 32, 4, 3)),
        128: (TileConfig(128, 32, 8, 2), TileConfig(64, 64, 8, 3), TileConfig(64, 32, 8, 3)),
        256: (TileConfig(64, 16, 8, 3), TileConfig(32, 32, 8, 2)),
    },
    ("sm_90", 2): {
        64: (
            TileConfig(128, 64, 8, 3),
            TileConfig(128, 64, 4, 3),
            TileConfig(64, 128, 4, 3),
            TileConfig(64, 64, 4, 3),
        ),
        96: (TileConfig(128, 64, 8, 3), TileConfig(128, 128, 8, 2), TileConfig(64, 64, 4, 3)),
        128: (TileConfig(128, 64, 8, 3), TileConfig(128, 128, 8, 2), TileConfig(64, 64, 4, 3)),
        256: (TileConfig(128, 32, 8, 3), TileConfig(64, 64, 8, 2)),
    },
    ("sm_100", 2): {
        64: (TileConfig(128, 64, 8, 3), TileConfig(128, 128, 8, 2), TileConfig(64, 64, 4, 3)),
        96: (TileConfig(128, 64, 8, 3), TileConfig(64, 64, 4, 3)),
        128: (TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 3)),
        256: (TileConfig(64, 32, 8, 2),),
    },
    ("gfx942", 2): {
        64: (TileConfig(128, 64, 4, 2), TileConfig(128, 32, 8, 2), TileConfig(64, 64, 4, 2)),
        96: (TileConfig(128, 64, 4, 2), TileConfig(128, 32, 8, 2), TileConfig(64, 32, 4, 2)),
        128: (TileConfig(128, 64, 4, 2), TileConfig(128, 32, 8, 2), TileConfig(64, 32, 4, 2)),
        256: (TileConfig(64, 16, 4, 2), TileConfig(32, 32, 4, 2)),
    },
    ("other", 2): {
        64: (TileConfig(128, 64, 8, 2),),
        96: (TileConfig(128, 32, 8, 2),),
        128: (TileConfig(128, 32, 8, 2), TileConfig(64, 32, 4, 3)),
        256: (TileConfig(32, 16, 4, 2),),
    },
}
PROFILE_CHOICES: Choices = {
    ("sm_80", 2): {
        64: (TileConfig(64, 32, 8, 2),),
        96: (TileConfig(64, 16, 8, 2), TileConfig(64, 16, 4, 3)),
        128: (TileConfig(32, 64, 8, 3), TileConfig(32, 32, 4, 3), TileConfig(32, 16, 8, 3)),
    },
    ("sm_90", 2): {
        64: (TileConfig(64, 64, 8, 3), TileConfig(64, 32, 4, 3), TileConfig(64, 16, 8, 3)),
        96: (TileConfig(64, 16, 8, 3),),
    },
    ("sm_100", 2): {
        128: (TileConfig(64, 64, 8, 3), TileConfig(64, 32, 4, 3), TileConfig(64, 16, 8, 3)),
    },
    ("gfx942", 2): {
        80: (TileConfig(64, 16, 8, 3), TileConfig(64, 16, 4, 2)),
        96: (TileConfig(64, 16, 4, 2),),
        128: (TileConfig(64, 16, 8, 3), TileConfig(64, 16, 4, 2)),
    },
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
    # sm_103 uses the tiles of sm_100; smaller chips of a family have less shared memory and use "other".
    name = {"sm_103": "sm_100"}.get(name, name)
    return name if (name, 2) in ATTENTION else "other"


def attention_tiles(device: torch.device, dtype: torch.dtype, head_dim: int, several: bool) -> tuple[TileConfig, ...]:
    """The tile of `svg::attention`, or with `several` those to choose from; LayoutError for other dtypes and D."""
    return tiles_for(ATTENTION, ATTENTION_CHOICES if several else {}, architecture(device), dtype, head_dim)


def profile_tiles(device: torch.device, dtype: torch.dtype, head_dim: int, several: bool) -> tuple[TileConfig, ...]:
    """The same for `svg::profile`; all have one block_m, on which the sizes of the partial results depend."""
    return tiles_for(PROFILE, PROFILE_CHOICES if several else {}, architecture(device), dtype, head_dim)


def key_splits(device: torch.device) -> int:
    """Number of key ranges that `svg::profile` reads in separate programs, so that few rows fill a GPU (split-K)."""
    # The interpreter runs programs sequentially.
    return SPLITS if device.type != "cpu" else 4


def tiles_for(table: Table, choices: Choices, name: str, dtype: torch.dtype, head_dim: int) -> tuple[TileConfig, ...]:
    """The default tile, then the alternatives in `choices`."""
    if dtype not in DTYPES:
        raise LayoutError(f"the Triton kernels take bfloat16, float16 and float32, got {dtype}: cast the inputs.")
    if head_dim not in HEAD_DIMS:
        raise LayoutError(f"the Triton kernels take head dims {HEAD_DIMS[0]} to {HEAD_DIMS[-1]}, got {head_dim}.")
    row = table.get((name, dtype.itemsize)) or table["any", dtype.itemsize]
    default = row[min(limit for limit in row if limit >= head_dim)]
    more = choices.get((name, dtype.itemsize), {})
    return default, *more.get(min((limit for limit in more if limit >= head_dim), default=0), ())
