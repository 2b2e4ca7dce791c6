"""`svg::attention` on Hopper GPUs (sm_90): launches kernels/hopper/kernel.py, eagerly. Not a default.

The same function as kernels/triton/attention.py, for bfloat16 and float16, head dims 64 and 128, no key mask;
`supports` returns the reason where it cannot take a call. Queries and the result may have any strides; keys and values
are read by the copy engine (TMA), which requires rows at multiples of 16 bytes.

The kernel has been compiled and emulated, but has not run on a GPU yet: docs/kernels.md lists what is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from svg_compile.errors import LayoutError
from svg_compile.kernels.hopper.kernel import hopper_attention_fwd_kernel
from svg_compile.kernels.hopper.schedule import box_frames
from svg_compile.kernels.storage import empty_output
from svg_compile.kernels.triton.launch import cdiv, exponent_unit
from svg_compile.kernels.triton.prepare import ORDER_BLOCK, head_order_fwd_kernel

HEAD_DIMS = (64, 128)
BLOCK_M = 128
BLOCK_N = 128
# Ring slots by head dim: 160 KB of shared memory in all, of the 227 KB that a block may have.
STAGES = {64: 4, 128: 2}
# Per thread of a computing partition; the copying partition gets the rest of the 64 K registers, 24 per thread.
REGISTERS = 240


def supports(query: Tensor, key: Tensor, value: Tensor, key_mask: Optional[Tensor]) -> Optional[str]:
    """Why `hopper_attention` cannot take these tensors, or None where it can."""
    if query.device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(query.device) != (9, 0):
        return "the Hopper kernel needs a GPU of compute capability 9.0"
    return unsupported(query, key, value, key_mask)


def unsupported(query: Tensor, key: Tensor, value: Tensor, key_mask: Optional[Tensor]) -> Optional[str]:
    """`supports` without the check of the device: dtypes, sizes, and the copy engine's rules for keys and values."""
    if query.dtype not in (torch.bfloat16, torch.float16) or not query.dtype == key.dtype == value.dtype:
        return f"the Hopper kernel takes bfloat16 or float16, got {query.dtype}, {key.dtype} and {value.dtype}"
    dims = {tensor.shape[3] for tensor in (query, key, value)}
    if len(dims) > 1 or not dims <= set(HEAD_DIMS):
        return f"the Hopper kernel takes one head dim of {HEAD_DIMS}, got {sorted(dims)}"
    if key_mask is not None:
        return "the Hopper kernel takes no key mask"
    for name, tensor in (("key", key), ("value", value)):
        steps = [stride for stride, size in zip(tensor.stride()[:3], tensor.shape[:3]) if size > 1]
        if tensor.stride(3) != 1 or tensor.data_ptr() % 16 or any(step <= 0 or step % 8 for step in steps):
            return f"the copy engine reads rows at multiples of 16 bytes: {name} has strides {tensor.stride()}"
    return None


def descriptor(tensor: Tensor, box: list[int]) -> TensorDescriptor:
    """The copy engine's descriptor of `tensor`: boxes of size `box` over the last dims, zeros beyond the edges."""
    ones = tensor.dim() - len(box)
    # A dim of size 1 may have any stride in PyTorch; the copy engine requires a valid one.
    strides = [stride if size > 1 else box[-1] for stride, size in zip(tensor.stride(), tensor.shape)]
    layout = gl.NVMMASharedLayout(128, 16, rank=tensor.dim())
    return TensorDescriptor(tensor, list(tensor.shape), [*strides[:-1], 1], [1] * ones + box, layout)


def hopper_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor,
    key_mask: Optional[Tensor],
    grid: Sequence[int],
    scale: Optional[float],
) -> Tensor:
    """Sparse attention by the plan (see the module), eagerly: q, k, v [B, H, N, D] -> [B, H, N, D]."""
    reason = supports(query, key, value, key_mask)
    if reason is not None:
        raise LayoutError(f"{reason}.")
    frames, height, width, text_len, text_first, block = grid
    batch, heads, _, head_dim = query.shape
    area, span = height * width, max(frames - 1, 1)
    box = box_frames(frames, BLOCK_N)
    # Frames 1 and up; with one frame there is no band, and the descriptor only has to be valid.
    body_start = (text_len if text_first else 0) + (area if frames > 1 else 0)
    descriptors = []
    for tensor in (key, value):
        body = tensor[:, :, body_start : body_start + span * area].unflatten(2, (span, area))
        descriptors += [
            descriptor(tensor, [BLOCK_N, head_dim]),
            descriptor(body, [box, BLOCK_N // box, head_dim]),
        ]
    out = empty_output(query, value)
    flat_plan = plan.reshape(batch * heads, 2)
    order = plan.new_empty(batch * heads + 1)
    sign, unit = exponent_unit(head_dim**-0.5 if scale is None else scale)
    head_order_fwd_kernel[(cdiv(batch * heads, ORDER_BLOCK),)](
        flat_plan, order, flat_plan.stride(0), flat_plan.stride(1), batch * heads, BLOCK=ORDER_BLOCK
    )
    tiles = cdiv(text_len, BLOCK_M) + cdiv(area, BLOCK_M) + cdiv((frames - 1) * area, BLOCK_M)
    hopper_attention_fwd_kernel[(tiles * batch * heads,)](
        query, *descriptors, out, flat_plan, order, *query.stride(), *out.stride(), *flat_plan.stride(),
        batch * heads, heads, frames, area, text_len, unit,
        SIGN=sign, TEXT_FIRST=bool(text_first), BAND=block, HEAD_DIM=head_dim, BOX_FRAMES=box, BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N, STAGES=STAGES[head_dim], REGISTERS=REGISTERS, num_warps=4,
    )  # fmt: skip
    return out
