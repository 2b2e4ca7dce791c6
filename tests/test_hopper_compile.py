"""The Hopper kernel cross-compiled, and checks of its machine code.

Registers, spills and shared memory as for the other kernels; and the order of things, which is what the kernel is for:
products on the tensor cores, bulk copies, barriers, and the softmax between the start of a product and the wait for it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

REASON = "this Triton has no Gluon for Hopper"
hopper_attention = pytest.importorskip("svg_compile.kernels.hopper.attention", reason=REASON, exc_type=ImportError)

from triton.experimental.gluon import language as gl  # noqa: E402
from triton.experimental.gluon._runtime import GluonASTSource  # noqa: E402

from svg_compile.kernels.hopper.kernel import hopper_attention_fwd_kernel as kernel  # noqa: E402

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_LIMIT = 232448
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
# (dtype, head dim, frames of a box, text first)
QUICK = [(torch.bfloat16, 128, 32, False), (torch.bfloat16, 64, 2, True)]
SLOW = [
    case
    for dtype in NAMES
    for dim in (64, 128)
    for frames in (1, 2, 4, 8, 16, 32, 64, 128)
    if (case := (dtype, dim, frames, frames % 3 == 1)) not in QUICK
]
CASES = [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]


@dataclass(frozen=True)
class Binary:
    """registers at the start, bytes of stack a thread, of shared memory, boxes of the copies, PTX, machine code."""

    registers: int
    stack: int
    shared: int
    boxes: list[list[int]]
    ptx: str
    code: tuple[str, ...]


@lru_cache(maxsize=2)
def compiled(dtype: torch.dtype, head_dim: int, frames: int, text_first: bool, sign: int = 1) -> Binary:
    """The kernel as `hopper_attention` launches it: strides multiples of 16, channels contiguous."""
    box = [1, 1, frames, 128 // frames, head_dim]
    types = {
        "_flat": f"tensordesc<{NAMES[dtype]}[1,1,128,{head_dim}],{gl.NVMMASharedLayout(128, 16, rank=4)!r}>",
        "_box": f"tensordesc<{NAMES[dtype]}[{','.join(map(str, box))}],{gl.NVMMASharedLayout(128, 16, rank=5)!r}>",
    }
    constants: dict[str, Any] = {
        "SIGN": sign,
        "TEXT_FIRST": text_first,
        "BAND": 128,
        "HEAD_DIM": head_dim,
        "BOX_FRAMES": frames,
        "BLOCK_M": hopper_attention.BLOCK_M,
        "BLOCK_N": hopper_attention.BLOCK_N,
        "STAGES": hopper_attention.STAGES[head_dim],
        "REGISTERS": hopper_attention.REGISTERS,
        **dict.fromkeys(("stride_qd", "stride_od", "stride_pi"), 1),
    }
    pointers = {"query": NAMES[dtype], "out": NAMES[dtype], "plan": "i32", "order": "i32"}
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        described = next((text for end, text in types.items() if name.endswith(end)), None)
        plain = f"*{pointers[name]}" if name in pointers else "fp32" if name == "unit" else "i32"
        signature[name] = "constexpr" if name in constants else described or plain
        if name in pointers or (name.startswith("stride") and name not in constants):
            aligned[(index,)] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = GluonASTSource(kernel, signature, values, aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        usage, code = (
            subprocess.run([BINARIES / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    # Labels and instructions, without addresses.
    lines = re.findall(r"^(\.L_x_\d+):|/\*[0-9a-f]{4,}\*/\s+([^;]+);", code, re.MULTILINE)
    metadata = binary.metadata
    boxes = [item["block_size"] for item in metadata.tensordesc_meta]
    code_lines = tuple(label or instruction for label, instruction in lines)
    return Binary(registers, stack + local, metadata.shared, boxes, binary.asm["ptx"], code_lines)


def stack_limit(head_dim: int, frames: int) -> int:
    """Bytes a thread. The assembler of Triton 3.6 leaves nothing on the stack.

    That of 3.9 leaves a thread's number there, and of the widest and the narrowest boxes some of the numbers of masked
    tiles, which all others keep in registers.
    """
    if triton.__version__.startswith("3.6."):
        return 0
    return 72 if head_dim == 128 and frames in (1, 128) else 8


def count(text: str, lines: tuple[str, ...]) -> int:
    return sum(text in line for line in lines)


def loops_over_tiles(code: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The innermost loop around each wait for all products but one: two in each computing partition."""
    places = {line: number for number, line in enumerate(code) if line.startswith(".L_x")}
    jumps = [(number, re.search(r"BRA.*?(\.L_x_\d+)", line)) for number, line in enumerate(code)]
    loops = [(places[jump[1]], number + 1) for number, jump in jumps if jump and places[jump[1]] < number]
    waits = [number for number, line in enumerate(code) if "DEPBAR.LE gsb0, 0x1" in line]
    bounds = [min((loop for loop in loops if loop[0] < wait < loop[1]), key=lambda x: x[1] - x[0]) for wait in waits]
    return [code[start:end] for start, end in bounds]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_machine_code(case: tuple[torch.dtype, int, int, bool]) -> None:
    binary = compiled(*case)
    code, head_dim = binary.code, case[1]
    assert binary.registers == 168
    assert binary.stack <= stack_limit(head_dim, case[2])
    assert binary.shared <= SHARED_LIMIT

    # Each partition keeps to the registers that it is given.
    regions = [number for number, line in enumerate(code) if "USETMAXREG" in line]
    for start, end in zip(regions, [*regions[1:], len(code)]):
        given = int(code[start].rsplit(",", 1)[-1].split()[-1], 16)
        used = max((int(name) for line in code[start:end] for name in re.findall(r"\bR(\d+)", line)), default=0)
        assert given != 24 or used < 24
        assert used < hopper_attention.REGISTERS

    # Copies by the copy engine: keys and values, each in one of two shapes.
    assert count("UTMALDG.4D", code) == count("UTMALDG.5D", code) == 2
    assert count("LDGSTS", code) == 0
    # Of 64 channels, which are the 128 bytes of a swizzled row.
    assert binary.boxes == [[1, 1, 128, 64], [1, 1, case[2], 128 // case[2], 64]] * 2
    # The waits that the source has, and none that the assembler would add to keep products apart. The end of both
    # computing partitions is the same code, which some compilers keep once.
    waits = count("WARPGROUP.DEPBAR", code)
    assert waits in (11, 12)
    # Of both computing partitions: two products in each of two loops, the first tile's scores, the last one's output.
    loops = loops_over_tiles(code)
    scores, output = head_dim // 16, 128 // 16
    assert count("HGMMA", code) == 2 * 3 * (scores + output) - (12 - waits) * output
    assert count(" HMMA", code) == 0
    assert len(loops) == 4
    for loop in loops:
        assert count("HGMMA", loop) == scores + output
        # From "the scores are there" to "the output is finished": the whole softmax, 64 exponentials and more.
        started = next(number for number, line in enumerate(loop) if "DEPBAR.LE gsb0, 0x1" in line)
        finished = next(number for number, line in enumerate(loop) if "DEPBAR.LE gsb0, 0x0" in line)
        assert started < finished
        assert count("MUFU.EX2", loop) == count("MUFU.EX2", loop[started:finished]) == 66
        assert count("HGMMA", loop[:started]) == scores + output
    # The loops over full tiles: no mask, and nothing on the stack.
    full = [loop for loop in loops if count("FSEL", loop) == 0]
    assert len(full) == 2
    for loop in full:
        assert count("LDL", loop) + count("STL", loop) == 0


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_the_barriers(case: tuple[torch.dtype, int, int, bool]) -> None:
    """Waits, arrivals and fences are those of the protocol, and an arrival is for all warps of its partition."""
    binary = compiled(*case)
    ptx = binary.ptx
    slots = hopper_attention.STAGES[case[1]]
    assert ptx.count("mbarrier.init") == 4 * slots
    assert len(re.findall(r"mbarrier\.init\S* \[\S+\], 2;", ptx)) == 2 * slots
    # The copying partition waits for two slots and expects two tiles; a computing one waits as the module says
    # (the last wait is in the part that may be there once).
    assert ptx.count("mbarrier.try_wait") in (2 + 2 * 7, 2 + 2 * 7 - 1)
    assert ptx.count("mbarrier.arrive.expect_tx") == 2
    assert len(re.findall(rf"expect_tx\S* _, \[\S+\], {128 * case[1] * 2};", ptx)) == 2
    steps = re.findall(
        r"(wgmma\.wait_group|wgmma\.mma_async|bar\.sync|mbarrier\.arrive\.shared|fence\.proxy\.async|st\.shared)", ptx
    )
    arrivals = [number for number, step in enumerate(steps) if step == "mbarrier.arrive.shared"]
    assert len(arrivals) == 2 * 5
    for arrival in arrivals:
        assert steps[arrival - 2 : arrival] == ["wgmma.wait_group", "bar.sync"]
    # Queries: stored, fenced by the threads that stored them, and then a barrier before the first product.
    fences = [number for number, step in enumerate(steps) if step == "fence.proxy.async"]
    assert len(fences) == 3
    for fence in fences[1:]:
        product = steps.index("wgmma.mma_async", fence)
        assert "st.shared" in steps[fences[0] : fence]
        assert "bar.sync" in steps[fence:product]


@pytest.mark.slow
def test_a_negative_scale_compiles() -> None:
    assert compiled(torch.bfloat16, 64, 4, False, sign=-1).stack <= stack_limit(64, 4)
