"""Prints the table of docs/kernels.md: what the kernels use on each architecture, read out of cross-compiled binaries.

python tests/triton_resources.py
"""

from __future__ import annotations

import torch
import triton

from svg_compile.kernels.triton.configs import ATTENTION, PROFILE, Table, tiles_for
from triton_binaries import Binary, attention_binary, profile_binary

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
HEAD_DIMS = (64, 72, 96, 128, 256)


def cells(table: Table, arch: str, head_dim: int) -> str:
    """Tile, registers, spilled bytes and shared memory of the default configuration, in bfloat16."""
    tile = tiles_for(table, {}, arch, torch.bfloat16, head_dim)[0]
    compile_ = attention_binary if table is ATTENTION else profile_binary
    binary: Binary = compile_(arch, torch.bfloat16, head_dim, tile)
    shape = f"{tile.block_m} x {tile.block_n}, {tile.num_warps}, {tile.num_stages}"
    return f"{shape} | {binary.registers} | {binary.spills} | {-(-binary.shared // 1024)}"


def main() -> None:
    print(f"Triton {triton.__version__}\n")
    names = ("attention", "profile")
    heads = [f"{name}: tile, warps, stages | registers | spills | KB" for name in names]
    print(f"| Architecture | D | {' | '.join(heads)} |")
    print("|" + " --- |" * 10)
    for arch in ARCHITECTURES:
        for head_dim in HEAD_DIMS:
            print(f"| {arch} | {head_dim} | {cells(ATTENTION, arch, head_dim)} | {cells(PROFILE, arch, head_dim)} |")


if __name__ == "__main__":
    main()
