"""Several GPUs: Ulysses. Each holds the whole model and a part of the tokens, and attends all of them with its share of
the heads, sparse.

    torchrun --nproc_per_node 8 examples/several_gpus.py

    pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-14B-Diffusers", torch_dtype=torch.bfloat16).to(device)
    prepare(pipe.transformer, device)
    compile_blocks(pipe.transformer, "svg")
    svg_compile.attach(pipe)

The number of tokens and of heads must be divisible by that of GPUs. This script does the same to the example model; on
a machine without GPUs its processes share the CPUs (`--nproc_per_node 2`).
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig

from miniature import OPTIONS, arguments, compare


def prepare(model: Any, device: torch.device) -> None:
    """Spread the tokens over the processes that torchrun has started."""
    model.to(device)
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=dist.get_world_size()))


def compile_blocks(model: Any, backend: str) -> None:
    """One compile for all blocks. The options are those of this backend; Inductor takes none of them."""
    options = OPTIONS if backend == "svg" else None
    model.compile_repeated_blocks(backend=backend, options=options, dynamic=False)


def join() -> None:
    """Join the processes that torchrun has started."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
    else:
        # diffusers divides by the number of accelerators, of which this machine has none.
        torch.accelerator.device_count = lambda: 1
        dist.init_process_group("gloo")


def main(argv: list[str] | None = None) -> tuple[float, int]:
    args = arguments(__doc__, argv)
    join()
    try:
        return compare(args, prepare, compile_blocks)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
