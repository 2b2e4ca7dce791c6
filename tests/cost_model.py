"""Estimates a kernel's speed from its machine code: the cycles that each of its loops needs on Hopper.

    python tests/cost_model.py        prints the table of docs/benchmarks/log.md

A loop is the code between a label and a branch back to it. The model counts three kinds of instructions: those for
the tensor cores, the exponentials, and all that a scheduler has to issue. A multiprocessor has four schedulers, each
with a quarter of the warps; it issues one instruction a clock, and works out 4 exponentials and the tensor cores 2048
products (multiply and add, bf16) a clock for all. Two bounds follow:

    apart       products, then everything else: the time of a kernel in which they wait for each other
    together    the longest of the three: the time if they overlap completely

Clocks are those at which an H200 multiplies matrices at 790 TFLOP/s. Memory is left out: a tile's bytes are printed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from svg_compile.kernels.triton.configs import ATTENTION, PROFILE, TileConfig, tiles_for
from triton_binaries import BINARIES, attention_binary, missing_binary, profile_binary

SCHEDULERS, MULTIPROCESSORS = 4, 132
PRODUCTS, EXPONENTIALS, LANES = 2048, 4, 32
CLOCK = 790e12 / (MULTIPROCESSORS * 2 * PRODUCTS)
_COPY_BYTES = {"LDGSTS": 4, "LDG": 4}


@dataclass(frozen=True)
class Loop:
    """One pass of a loop, counted in a warp: products of its own, exponentials, instructions, bytes that it copies."""

    products: int
    exponentials: int
    instructions: int
    bytes: int

    def cycles(self, warps: int) -> tuple[float, float]:
        """(apart, together) for so many warps that do this on one multiprocessor."""
        each = warps / SCHEDULERS
        tensor = self.products * warps / PRODUCTS
        other = max(self.instructions * each, self.exponentials * LANES / EXPONENTIALS * each)
        return tensor + other, max(tensor, other)

    def tflops(self, warps: int) -> tuple[float, float]:
        """The same as TFLOP/s on all multiprocessors."""
        flops = 2 * self.products * warps * MULTIPROCESSORS * CLOCK / 1e12
        apart, together = self.cycles(warps)
        return flops / apart, flops / together


def disassembled(cubin: bytes) -> tuple[str, ...]:
    """Labels and instructions, without addresses."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        text = subprocess.run([BINARIES / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True)
    lines = re.findall(r"^(\.L_x_\d+):|/\*[0-9a-f]{4,}\*/\s+([^;]+);", text.stdout, re.MULTILINE)
    return tuple(label or instruction.strip() for label, instruction in lines)


def loops(code: tuple[str, ...]) -> list[Loop]:
    """The innermost loops that multiply on the tensor cores, in the order of the code."""
    places = {line: number for number, line in enumerate(code) if line.startswith(".L_x_")}
    jumps = ((number, re.search(r"BRA.*?(\.L_x_\d+)", line)) for number, line in enumerate(code))
    spans = [(places[jump[1]], number + 1) for number, jump in jumps if jump and places.get(jump[1], number) < number]
    around = set()
    for number, line in enumerate(code):
        if _products(line) and (holding := [span for span in spans if span[0] < number < span[1]]):
            around.add(min(holding, key=lambda span: span[1] - span[0]))
    # Code between two inner loops belongs to no tile.
    inner = [one for one in sorted(around) if not any(one[0] < other[0] < one[1] for other in around)]
    return [count(code[start:end]) for start, end in inner]


def count(lines: tuple[str, ...]) -> Loop:
    """The work of a warp in these lines, each executed once."""
    instructions = [line for line in lines if not line.startswith(".L_x_")]
    return Loop(
        products=sum(_products(line) for line in instructions),
        exponentials=sum("MUFU.EX2" in line for line in instructions),
        instructions=len(instructions),
        bytes=sum(_bytes(line) for line in instructions),
    )


def _products(line: str) -> int:
    """Products of an instruction for the tensor cores, as one warp's share."""
    group = re.search(r"HGMMA\.(\d+)x(\d+)x(\d+)", line)
    if group:
        return int(group[1]) * int(group[2]) * int(group[3]) // 4
    return 16 * 8 * 16 if "HMMA.16816" in line else 0


def _bytes(line: str) -> int:
    """Bytes that an instruction brings from memory, for all lanes of a warp."""
    name = re.match(r"(?:@!?U?P\w+ )?(LDGSTS|LDG)\b(\S*)", line)
    if not name:
        return 0
    width = re.search(r"\.(64|128)\b", name[2])
    return (int(width[1]) // 8 if width else _COPY_BYTES[name[1]]) * LANES


def rows() -> list[tuple[str, int, int, Loop]]:
    """(kernel and loop, head dim, warps, loop) of what runs on sm_90."""
    from test_hopper_compile import compiled as hopper_binary

    found: list[tuple[str, int, int, Loop]] = []
    for head_dim in (128, 64):
        tile: TileConfig = tiles_for(ATTENTION, {}, "sm_90", torch.bfloat16, head_dim)[0]
        code = disassembled(attention_binary("sm_90", torch.bfloat16, head_dim, tile).cubin)
        for name, loop in zip(("whole tiles", "whole tiles, temporal", "masked tiles"), loops(code), strict=True):
            found.append((f"attention, {name}", head_dim, tile.num_warps, loop))
        tile = tiles_for(PROFILE, {}, "sm_90", torch.bfloat16, head_dim)[0]
        (loop,) = loops(disassembled(profile_binary("sm_90", torch.bfloat16, head_dim, tile).cubin))
        found.append(("profile", head_dim, tile.num_warps, loop))
        (loop,) = loops(disassembled(profile_binary("sm_90", torch.bfloat16, head_dim, tile, by_plan=True).cubin))
        found.append(("profile, rows by the plan", head_dim, tile.num_warps, loop))
        (loop,) = loops(disassembled(missing_binary("sm_90", torch.bfloat16, head_dim, tile).cubin))
        found.append(("what each half-width misses", head_dim, tile.num_warps, loop))
        # Two partitions compute, with the same code; each has its masked tiles first. The copy engine brings its keys.
        masked, whole, *_ = loops(hopper_binary(torch.bfloat16, head_dim, 32, False).code)
        found.append(("Hopper path, whole tiles", head_dim, 8, whole))
        found.append(("Hopper path, masked tiles", head_dim, 8, masked))
    return found


def main() -> None:
    heads = (
        "loop",
        "D",
        "warps",
        "instructions",
        "exponentials",
        "KB",
        "cycles apart",
        "together",
        "TF apart",
        "together",
    )
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for name, head_dim, warps, loop in rows():
        cycles, flops = loop.cycles(warps), loop.tflops(warps)
        figures = (loop.instructions, loop.exponentials, round(loop.bytes * warps / 1024))
        cells = (name, head_dim, warps, *figures, *(round(number) for number in (*cycles, *flops)))
        print(f"| {' | '.join(str(cell) for cell in cells)} |")


if __name__ == "__main__":
    main()
