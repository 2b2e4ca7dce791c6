"""Kernels compiled for GPUs that are not there, and what their binaries say: registers, spills, shared memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from svg_compile.kernels.triton import attention as triton_attention
from svg_compile.kernels.triton import need as triton_need
from svg_compile.kernels.triton import profile as triton_profile
from svg_compile.kernels.triton.configs import SPLITS, TileConfig
from svg_compile.kernels.triton.launch import split_channels

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    # "other" in the tables stands for the smallest chips: Ampere and Ada with 100 KB of shared memory.
    "other": GPUTarget("cuda", 86, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Most shared memory that one block of threads may have, in bytes.
SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "other": 101376, "gfx942": 65536}
REGISTER_LIMIT = {"sm_80": 255, "sm_90": 255, "sm_100": 255, "other": 255, "gfx942": 512}
POINTER = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
FLOATS = ("query", "key", "value", "out")
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Binary:
    """What a compiled kernel uses. spills: bytes of local memory a thread (NVIDIA), spilled vector registers (AMD)."""

    registers: int
    spills: int
    shared: int
    assembly: str
    cubin: bytes = b""


def attention_binary(
    arch: str,
    dtype: torch.dtype,
    head_dim: int,
    tile: TileConfig,
    *,
    key_mask: bool = False,
    text_first: bool = False,
    **sizes: int,
) -> Binary:
    """`svg::attention` as it is launched: strides multiples of 16, channels contiguous; `sizes` fixes arguments."""
    constants = {
        "SIGN": 1,
        "TEXT_FIRST": text_first,
        "BAND": 128,
        "HAS_KEY_MASK": key_mask,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": head_dim,
        **split_channels(head_dim, head_dim),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_EDGE": tile.block_edge,
    }
    pointers = {"plan": "*i32", "order": "*i32", "hidden": "*i32", "key_mask": "*i1" if key_mask else "*i32"}
    ones = ("stride_qd", "stride_kd", "stride_vd", "stride_od", "stride_pi", "stride_mn")
    constants |= dict.fromkeys(ones, 1) | sizes
    return compiled(triton_attention.sparse_attention_fwd_kernel, arch, dtype, pointers, constants, tile)


def profile_binary(
    arch: str,
    dtype: torch.dtype,
    head_dim: int,
    tile: TileConfig,
    *,
    key_mask: bool = False,
    stages: bool = False,
    by_plan: bool = False,
    **sizes: int,
) -> Binary:
    """The first kernel of `svg::profile`, as it is launched; `stages`: with `when` and `previous`."""
    constants = {
        "SIGN": 1,
        "TEXT_FIRST": False,
        "BAND": 128,
        "HAS_KEY_MASK": key_mask,
        "HAS_WHEN": stages,
        "HAS_PREVIOUS": stages,
        "BY_PLAN": by_plan,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": head_dim,
        **split_channels(head_dim, head_dim),
        "SPLITS": SPLITS,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
    }
    pointers = {"sampled": "*i64", "widths": "*i32", "plan": "*i32", "when": "*i32"}
    pointers |= {"partial": "*fp32", "sums": "*fp32"}
    pointers["key_mask"] = "*i1" if key_mask else "*i32"
    constants |= dict.fromkeys(("stride_qd", "stride_kd", "stride_vd", "stride_mn"), 1) | sizes
    return compiled(triton_profile.profile_rows_fwd_kernel, arch, dtype, pointers, constants, tile)


def missing_binary(arch: str, dtype: torch.dtype, head_dim: int, tile: TileConfig, *, stages: bool = False) -> Binary:
    """What sums the weights outside of each half-width of the ladder."""
    channels = split_channels(head_dim, head_dim)
    constants = {
        "SIGN": 1,
        "TEXT_FIRST": False,
        "BAND": 128,
        "HAS_KEY_MASK": True,
        "HAS_WHEN": stages,
        "HAS_PREVIOUS": stages,
        "HEAD_DIM": head_dim,
        "LOW": channels["LOW"],
        "HIGH": channels["HIGH"],
        "RUNGS": triton_profile._RUNGS,
        "SPLITS": SPLITS,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
    }
    pointers = {"sampled": "*i64", "ladder": "*i32", "when": "*i32", "key_mask": "*i1"}
    pointers |= {"sums": "*fp32", "missing": "*fp32"}
    constants |= dict.fromkeys(("stride_qd", "stride_kd", "stride_mn"), 1)
    return compiled(triton_need.missing_rows_fwd_kernel, arch, dtype, pointers, constants, tile)


def compiled(
    kernel: Any, arch: str, dtype: torch.dtype, pointers: dict[str, str], constants: dict[str, Any], tile: TileConfig
) -> Binary:
    """Compile `kernel` for `arch`; arguments that are neither pointers nor constants are int32, `unit` is float64.

    Triton itself passes a Python float as float32, Inductor as float64 in some versions: the kernels take both.
    """
    signature: dict[str, str] = {}
    aligned = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name == "unit":
            signature[name] = "fp64"
        else:
            signature[name] = pointers.get(name, POINTER[dtype] if name in FLOATS else "i32")
        if signature[name].startswith("*") or (name.startswith("stride") and name not in constants):
            aligned[(index,)] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
    binary = triton.compile(source, target=TARGETS[arch], options=options)
    if arch.startswith("gfx"):
        text = binary.asm["amdgcn"]
        found = {name: int(count) for name, count in re.findall(r"\.(\w+):\s+(\d+)", text)}
        # Scalar registers spill into lanes of vector registers, not into memory.
        return Binary(found["vgpr_count"], found["vgpr_spill_count"], binary.metadata.shared, text)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        usage = subprocess.run(
            [BINARIES / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    return Binary(registers, stack + local, binary.metadata.shared, binary.asm["ptx"], binary.asm["cubin"])
