"""Tiny launches of every kernel, for compute-sanitizer --tool memcheck python tests/gpu/sanitize.py"""

from __future__ import annotations

import os

# PyTorch's own allocator would hide accesses that leave a tensor.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")

import torch

from svg_compile.kernels import ops
from svg_compile.layout import VideoLayout


def main() -> None:
    for layout in (VideoLayout(3, 5, 7, 9, block=16), VideoLayout(5, 9, 15, 130, True), VideoLayout(1, 3, 3)):
        grid = layout.grid
        for head_dim in (64, 72, 128):
            shape = (2, layout.tokens, 2, head_dim)
            tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)]
            for key_mask in (None, torch.rand(2, layout.tokens, device="cuda") < 0.8):
                plan = torch.tensor([[[0, 1], [1, 1]], [[2, 0], [1, 0]]], dtype=torch.int32, device="cuda")
                options = ([0.5, 0.7], 40, True, None, "triton", ops.ABI)
                torch.ops.svg.profile(*tensors, key_mask, grid, *options, None, None, None)
                for anew in (0, 1):
                    when = torch.tensor([1, anew], dtype=torch.int32, device="cuda")
                    torch.ops.svg.profile(*tensors, key_mask, grid, *options, when, plan, None)
                torch.ops.svg.attention(*tensors, plan, key_mask, grid, None, "triton", ops.ABI)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
