"""Every shipped configuration compiled for its GPU, which need not be there, and its binary's resources.

The quick cases are the head dims of the large models; the slow ones are the whole table.
"""

from __future__ import annotations

import re
from dataclasses import astuple
from itertools import product
from typing import Any

import pytest
import torch

from svg_compile.errors import LayoutError
from svg_compile.kernels import widths
from svg_compile.kernels.triton import configs as triton_configs
from svg_compile.kernels.triton import decide as triton_decide
from svg_compile.kernels.triton import fit as triton_fit
from svg_compile.kernels.triton import need as triton_need
from svg_compile.kernels.triton import prepare as triton_prepare
from svg_compile.kernels.triton import profile as triton_profile
from svg_compile.kernels.triton import repair as triton_repair
from svg_compile.kernels.triton.configs import ATTENTION, ATTENTION_CHOICES, PROFILE, PROFILE_CHOICES, TileConfig
from svg_compile.kernels.triton.launch import split_channels
from triton_binaries import (
    REGISTER_LIMIT,
    SHARED_LIMIT,
    TARGETS,
    Binary,
    attention_binary,
    compiled,
    missing_binary,
    profile_binary,
)

QUICK = [(arch, torch.bfloat16, dim, False) for arch, dim in product(("sm_80", "sm_90", "sm_100", "gfx942"), (64, 128))]
HEAD_DIMS = (16, 32, 64, 72, 80, 96, 128, 160, 192, 256)
SLOW = [
    case
    for case in product(TARGETS, (torch.bfloat16, torch.float16, torch.float32), HEAD_DIMS, (False, True))
    if case not in QUICK and not (case[1] is torch.float16 and case[2] not in (64, 128))
]
PLAN_POINTERS = dict.fromkeys(("widths", "when", "previous", "plan"), "*i32")
PLAN_POINTERS |= dict.fromkeys(("partial", "sums", "errors"), "*fp32")
PLAN_CONSTANTS = {"SPLITS": 16, "VALUE_DIM": 72, "WIDTH": 128, "BLOCK_M": 64, "ROWS": 16}
REPAIR_POINTERS = {"out": "*bf16", "fit": "*fp32", "exact": "*fp32", "mapped": "*i32"}
EXACT_CONSTANTS = {"VALUE_DIM": 72, "WIDTH": 128, "BLOCK_M": 16, "stride_od": 1}
PLAN_STAGES = tuple(
    {"HAS_WHEN": when, "HAS_PREVIOUS": kept} for when, kept in ((False, False), (True, False), (True, True))
)
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
# What max_autotune may choose besides the default, in bfloat16.
MORE_ATTENTION, MORE_PROFILE = (
    [
        pytest.param(arch, dim, tile, marks=pytest.mark.slow, id=f"{arch}-{dim}-{astuple(tile)}")
        for arch, dim in product(TARGETS, HEAD_DIMS)
        for tile in triton_configs.tiles_for(table, choices, arch, torch.bfloat16, dim)[1:]
    ]
    for table, choices in ((ATTENTION, ATTENTION_CHOICES), (PROFILE, PROFILE_CHOICES))
)


def default(table: triton_configs.Table, arch: str, dtype: torch.dtype, dim: int) -> TileConfig:
    """The table's line, as the launcher looks it up on that architecture."""
    return triton_configs.tiles_for(table, {}, arch, dtype, dim)[0]


def check_resources(binary: Binary, arch: str, dtype: torch.dtype = torch.bfloat16) -> None:
    # float32 is there for tests; its products are scalar, and ptxas trades a few bytes for occupancy.
    assert binary.spills <= (0 if dtype.itemsize == 2 else 64)
    assert binary.registers <= REGISTER_LIMIT[arch]
    assert binary.shared <= SHARED_LIMIT[arch]


@pytest.mark.parametrize(("arch", "dtype", "head_dim", "key_mask"), CASES)
def test_attention_compiles_without_spills(arch: str, dtype: torch.dtype, head_dim: int, key_mask: bool) -> None:
    tile = default(ATTENTION, arch, dtype, head_dim)
    binary = attention_binary(arch, dtype, head_dim, tile, key_mask=key_mask)
    check_resources(binary, arch, dtype)
    if arch == "sm_90" and dtype.itemsize == 2:
        assert "wgmma.mma_async" in binary.assembly
    if arch == "sm_100" and dtype.itemsize == 2:
        assert "tcgen05.mma" in binary.assembly


@pytest.mark.parametrize(("arch", "dtype", "head_dim", "key_mask"), CASES)
def test_profile_compiles_without_spills(arch: str, dtype: torch.dtype, head_dim: int, key_mask: bool) -> None:
    tile = default(PROFILE, arch, dtype, head_dim)
    check_resources(profile_binary(arch, dtype, head_dim, tile, key_mask=key_mask), arch, dtype)


@pytest.mark.parametrize(("arch", "dtype", "head_dim", "key_mask"), CASES)
def test_profile_that_may_be_skipped_uses_no_more(arch: str, dtype: torch.dtype, head_dim: int, key_mask: bool) -> None:
    tile = default(PROFILE, arch, dtype, head_dim)
    check_resources(profile_binary(arch, dtype, head_dim, tile, key_mask=key_mask, stages=True), arch, dtype)


@pytest.mark.parametrize(("arch", "dtype", "head_dim", "key_mask"), CASES)
def test_half_widths_by_need_compile_without_spills(
    arch: str, dtype: torch.dtype, head_dim: int, key_mask: bool
) -> None:
    tile = default(PROFILE, arch, dtype, head_dim)
    missing = missing_binary(arch, dtype, head_dim, tile, stages=key_mask)
    if dtype.itemsize == 2:
        check_resources(missing, arch, dtype)
    # Of float32, which is there for tests, the widest heads spill more than the profile itself.
    assert missing.spills <= (0 if dtype.itemsize == 2 else 256)
    binary = profile_binary(arch, dtype, head_dim, tile, key_mask=key_mask, stages=True, by_plan=True)
    check_resources(binary, arch, dtype)


@pytest.mark.parametrize("key_mask", [False, True])
@pytest.mark.parametrize(("arch", "head_dim", "tile"), MORE_ATTENTION)
def test_choices_of_attention_compile_without_spills(
    arch: str, head_dim: int, tile: TileConfig, key_mask: bool
) -> None:
    check_resources(attention_binary(arch, torch.bfloat16, head_dim, tile, key_mask=key_mask), arch)


@pytest.mark.parametrize(("arch", "head_dim", "tile"), MORE_PROFILE)
def test_choices_of_the_profile_compile_without_spills(arch: str, head_dim: int, tile: TileConfig) -> None:
    check_resources(profile_binary(arch, torch.bfloat16, head_dim, tile, key_mask=True, stages=True), arch)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_no_index_table_is_loaded(arch: str) -> None:
    """What is read from memory as whole numbers is the plan, the head's place in the order, and a zero: no table."""
    assembly = attention_binary(arch, torch.bfloat16, 128, default(ATTENTION, arch, torch.bfloat16, 128)).assembly
    words = re.findall(r"ld(?:\.volatile)?\.global(?!\S*\.v\d)\S*\.[bus]32 ", assembly)
    assert len(words) == 4, words


@pytest.mark.parametrize("arch", ["sm_90"])
def test_full_tiles_carry_no_mask_arithmetic(arch: str) -> None:
    """Only the third loop, the edges', selects: one selection a score and few others, not one in each of the loops."""
    assembly = attention_binary(arch, torch.bfloat16, 128, default(ATTENTION, arch, torch.bfloat16, 128)).assembly
    before_edges = assembly[: assembly.index("ld.volatile")]
    scores = 128 * 128 // 256
    assert before_edges.count("selp.f32") + before_edges.count("selp.b32") < scores


@pytest.mark.parametrize("sizes", [{"frames": 1, "text_len": 1}, {"area": 1, "heads": 1, "batch_heads": 1}])
def test_sizes_of_one_compile(sizes: dict[str, int]) -> None:
    """Triton turns arguments that are 1 into constants, which have not all of a tensor's methods."""
    case = ("sm_90", torch.bfloat16, 64)
    attention_binary(*case, default(ATTENTION, *case), key_mask=True, text_first=True, **sizes)
    sizes = {name: size for name, size in sizes.items() if name != "batch_heads"}
    profile_binary(*case, default(PROFILE, *case), key_mask=True, **sizes)


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_small_kernels_compile(arch: str) -> None:
    tile = TileConfig(16, 16, 4, 2)
    kernels: tuple[Any, ...] = (
        (triton_prepare.head_order_fwd_kernel, {"plan": "*i32", "order": "*i32"}, {"BLOCK": 64}),
        (triton_prepare.hidden_range_fwd_kernel, {"key_mask": "*i1", "hidden": "*i32"}, {"BLOCK": 4096}),
        (triton_fit.sampled_rows_fwd_kernel, {**PLAN_POINTERS, "rows": "*fp32"}, PLAN_CONSTANTS),
        (triton_repair.exact_rows_fwd_kernel, {**REPAIR_POINTERS, "sampled": "*i64"}, EXACT_CONSTANTS),
        *((triton_decide.profile_plan_fwd_kernel, PLAN_POINTERS, PLAN_CONSTANTS | stages) for stages in PLAN_STAGES),
    )
    need = {"errors": "*fp32", "missing": "*fp32", "uniform": "*i32", "ladder": "*i32", "cost": "*fp32"}
    need |= {"when": "*i32", "previous": "*i32", "share": "*fp32", "plan": "*i32", "mean": "*fp32"}
    for stages in (False, True):
        options = {"HAS_WHEN": stages, "HAS_PREVIOUS": stages, "HAS_SHARE": stages, "RUNGS": triton_profile._RUNGS}
        search = {"UNIFORM": widths.UNIFORM, "LEAST_PRICE": widths.LEAST_PRICE, "MOST_PRICE": widths.MOST_PRICE}
        search |= {"STEPS": widths.STEPS, "FILLS": widths.FILLS, "SLACK": widths.SLACK, "HEADS": 64}
        kernels += ((triton_need.plan_by_need_fwd_kernel, need, options | search),)
        parts = {name: options[name] for name in ("HAS_PREVIOUS", "RUNGS")} | {"SPLITS": 16, "BLOCK_M": 64}
        kernels += ((triton_need.missing_fwd_kernel, need, parts),)
    for kernel, pointers, constants in kernels:
        check_resources(compiled(kernel, arch, torch.bfloat16, pointers, constants, tile), arch)


@pytest.mark.parametrize("head_dim", [64, 72, 128, 256])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_the_repair_compiles_without_spills(arch: str, head_dim: int) -> None:
    parts = split_channels(head_dim, head_dim)
    constants = {"VALUE_DIM": head_dim, "VALUE_LOW": parts["VALUE_LOW"], "VALUE_HIGH": parts["VALUE_HIGH"]}
    tile = triton_repair.repair_tile(head_dim)
    constants |= {"INNER": tile.block_n, "BLOCK_M": tile.block_m, "stride_d": 1}
    kernel = triton_repair.repair_fwd_kernel
    check_resources(compiled(kernel, arch, torch.bfloat16, REPAIR_POINTERS, constants, tile), arch)


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_the_inverse_compiles_without_spills(arch: str, block: int) -> None:
    """A matrix has at most as many rows as are sampled: 64, unless an option asks for more."""
    pointers = {"matrices": "*fp64", "inverse": "*fp64"}
    tile = TileConfig(16, 16, triton_fit.inverse_warps(block), 2)
    check_resources(
        compiled(triton_fit.inverse_fwd_kernel, arch, torch.bfloat16, pointers, {"BLOCK": block}, tile), arch
    )


def test_head_dims_are_split_into_powers_of_two() -> None:
    for size in range(1, 257):
        split = split_channels(size, size)
        assert (split["LOW"], split["HIGH"]) == (split["VALUE_LOW"], split["VALUE_HIGH"])
        for part in (split["LOW"], split["HIGH"]):
            assert part == 0 or (part >= 16 and part & (part - 1) == 0)
        assert size <= split["LOW"] + split["HIGH"] <= max(16, 2 * size)


def test_the_tables_cover_what_is_supported() -> None:
    tables = ((ATTENTION, ATTENTION_CHOICES), (PROFILE, PROFILE_CHOICES))
    for name, dtype, dim in product((*TARGETS, "interpreter"), triton_configs.DTYPES, triton_configs.HEAD_DIMS):
        for table, choices in tables:
            tiles = triton_configs.tiles_for(table, choices, name, dtype, dim)
            assert tiles[0] == default(table, name, dtype, dim)
            assert len(set(tiles)) == len(tiles)
            # The size of what the profile's first kernel leaves to the second.
            assert table is ATTENTION or len({tile.block_m for tile in tiles}) == 1
            if table is ATTENTION and name != "interpreter" and dtype.itemsize == 2:
                assert 2 <= len(tiles) <= 7
    with pytest.raises(LayoutError, match="head dims 16 to 256, got 264"):
        default(ATTENTION, "sm_90", torch.bfloat16, 264)
