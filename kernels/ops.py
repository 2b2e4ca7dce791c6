"""The two ops that the rewrite puts into a graph, `svg::profile` and `svg::attention`, and what runs them.

    svg::profile(q, k, v, key_mask, grid..., density, sampled_rows, scale, engine, abi) -> plan
    svg::attention(q, k, v, plan, key_mask, grid..., scale, engine, abi) -> out

q, k, v are [B, H, N, D] in any strides; out is [B, H, N, D] over [B, N, H, D] storage, as the models keep it; plan is
int32 [B, H, 2] = (kind, half-width in blocks); key_mask is bool [B, N], True where a key may be seen.

Everything that changes a result is an argument, so that Inductor's caches, which hash the graph, tell two results
apart; `abi` stands for the implementation: a checksum of the sources below.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor

from svg_compile import layout as layout_module
from svg_compile.errors import LayoutError
from svg_compile.kernels.storage import empty_output
from svg_compile.layout import VideoLayout


def _sources() -> int:
    """A checksum of all that decides what the ops compute: an edit or an upgrade makes old cache entries miss."""
    package = Path(layout_module.__file__).parent
    files = sorted([*Path(__file__).parent.glob("*.py"), package / "mask.py", package / "layout.py"])
    checksum = 0
    for file in files:
        checksum = zlib.crc32(file.read_bytes(), checksum)
    return checksum


ABI = _sources()
# The ops read every stride, so Inductor may hand over its operands as they lie; the default tag would have it copy
# them once for each op.
_ANY_STRIDES = (torch.Tag.flexible_layout,)


def engine_for(query: Tensor, engine: str) -> str:
    """The engine that runs on the tensor's device: "cpu", "triton" or "reference"."""
    on_cpu = query.device.type == "cpu"
    if engine == "auto":
        return "cpu" if on_cpu else "triton"
    if engine == "cpu" and not on_cpu:
        raise LayoutError(f'engine "cpu" runs on CPU tensors, got one on {query.device}: use engine "auto".')
    if engine == "triton" and on_cpu:
        raise LayoutError('engine "triton" runs on CUDA and ROCm tensors, got one on the CPU: use engine "auto".')
    return engine


def _settled(tensor: Tensor) -> Tensor:
    """A [B, H, N, D] operand of a Triton kernel whose strides are those that it will have when the kernel runs.

    Traced kernels take strides as constants, while Inductor promises them only the order of the strides. For a dense
    tensor the one follows from the other; a slice of a wider tensor, whose strides have gaps, is made dense.
    """
    if type(tensor) in (Tensor, torch.nn.Parameter):
        return tensor
    rows = tensor.transpose(1, 2)
    return tensor if tensor.is_contiguous() or rows.is_contiguous() else rows.contiguous().transpose(1, 2)


@torch.library.custom_op("svg::attention_host", mutates_args=(), tags=_ANY_STRIDES)
def _attention_host(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor,
    key_mask: Optional[Tensor],
    frames: int,
    height: int,
    width: int,
    text_len: int,
    text_first: bool,
    block: int,
    scale: Optional[float],
    engine: str,
    abi: int,
) -> Tensor:
    """`svg::attention` by ATen calls: the CPU engine, or the oracle. Opaque to Inductor."""
    layout = VideoLayout(frames, height, width, text_len, text_first, block)
    if engine == "reference":
        from svg_compile.kernels import reference

        exact = reference.sparse_attention(query, key, value, plan, layout, key_mask=key_mask, scale=scale)
        return empty_output(query, value).copy_(exact)
    from svg_compile.kernels.cpu_attention import sparse_attention

    return sparse_attention(query, key, value, plan, layout, key_mask=key_mask, scale=scale)


@_attention_host.register_fake
def _(query, key, value, plan, key_mask, *constants):  # type: ignore[no-untyped-def]
    return empty_output(query, value)


@torch.library.custom_op("svg::profile_host", mutates_args=(), tags=_ANY_STRIDES)
def _profile_host(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Optional[Tensor],
    frames: int,
    height: int,
    width: int,
    text_len: int,
    text_first: bool,
    block: int,
    density: float,
    sampled_rows: int,
    scale: Optional[float],
    engine: str,
    abi: int,
) -> Tensor:
    """`svg::profile` by ATen calls: the CPU engine, or the oracle. Opaque to Inductor."""
    layout = VideoLayout(frames, height, width, text_len, text_first, block)
    options = dict(density=density, sampled_rows=sampled_rows, key_mask=key_mask, scale=scale)
    if engine == "reference":
        from svg_compile.kernels import reference

        return reference.profile_heads(query, key, value, layout, **options)
    from svg_compile.kernels.cpu_profile import profile_heads

    return profile_heads(query, key, value, layout, **options)


@_profile_host.register_fake
def _(query, key, value, key_mask, *constants):  # type: ignore[no-untyped-def]
    return query.new_empty(query.shape[0], query.shape[1], 2, dtype=torch.int32)


@torch.library.triton_op("svg::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor,
    key_mask: Optional[Tensor],
    frames: int,
    height: int,
    width: int,
    text_len: int,
    text_first: bool,
    block: int,
    scale: Optional[float],
    engine: str,
    abi: int,
) -> Tensor:
    """Sparse attention by a plan: q, k, v [B, H, N, D], plan int32 [B, H, 2], key_mask bool [B, N] -> [B, H, N, D]."""
    grid = (frames, height, width, text_len, text_first, block)
    if engine_for(query, engine) != "triton":
        return torch.ops.svg.attention_host(query, key, value, plan, key_mask, *grid, scale, engine, abi)
    from svg_compile.kernels.triton_attention import sparse_attention

    query, key, value = _settled(query), _settled(key), _settled(value)
    return sparse_attention(query, key, value, plan, key_mask, *grid, scale)


@torch.library.triton_op("svg::profile", mutates_args=())
def profile(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Optional[Tensor],
    frames: int,
    height: int,
    width: int,
    text_len: int,
    text_first: bool,
    block: int,
    density: float,
    sampled_rows: int,
    scale: Optional[float],
    engine: str,
    abi: int,
) -> Tensor:
    """Profile the heads: q, k, v [B, H, N, D], key_mask bool [B, N] -> plan int32 [B, H, 2] = (kind, half-width)."""
    grid = (frames, height, width, text_len, text_first, block)
    if engine_for(query, engine) != "triton":
        return torch.ops.svg.profile_host(query, key, value, key_mask, *grid, density, sampled_rows, scale, engine, abi)
    from svg_compile.kernels.triton_profile import profile_heads

    query, key, value = _settled(query), _settled(key), _settled(value)
    return profile_heads(query, key, value, key_mask, *grid, density, sampled_rows, scale)
