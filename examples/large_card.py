"""A card of 80 GB: the model lies on it, a step cache leaves out what hardly changes, and what runs is sparse.

    pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-14B-Diffusers", torch_dtype=torch.bfloat16).to("cuda")
    prepare(pipe.transformer, torch.device("cuda"))
    compile_blocks(pipe.transformer, "svg")
    svg_compile.attach(pipe)

The cache breaks the model's graph at every block anyway, so that the blocks are compiled; without one compile the
whole: `pipe.transformer.compile(backend="svg")`. This script does the same to the example model, on whatever machine
this is:

    python examples/large_card.py
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FirstBlockCacheConfig

from miniature import OPTIONS, arguments, compare

# How much the first block's result may change for the other blocks to be left out. Sparse steps and skipped ones both
# cost quality: choose it on the sparse model.
THRESHOLD = 0.05


def prepare(model: Any, device: torch.device) -> None:
    """Skip the blocks behind the first one where that has hardly changed since they last ran."""
    model.to(device)
    model.enable_cache(FirstBlockCacheConfig(threshold=THRESHOLD))


def compile_blocks(model: Any, backend: str) -> None:
    """One compile for all blocks. The options are those of this backend; Inductor takes none of them."""
    options = OPTIONS if backend == "svg" else None
    model.compile_repeated_blocks(backend=backend, options=options, dynamic=False)


def main(argv: list[str] | None = None) -> tuple[float, int]:
    return compare(arguments(__doc__, argv), prepare, compile_blocks)


if __name__ == "__main__":
    main()
