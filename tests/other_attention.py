"""Attention operators as other libraries define them, on CPUs: FlashAttention's names and parameters, and unknown ones.

Each counts its calls.
"""

from __future__ import annotations

import importlib.util
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

CALLS: Counter[str] = Counter()


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None, causal: bool = False) -> Tensor:
    """[B, N, H, D]."""
    operands = (each.transpose(1, 2) for each in (query, key, value))
    grouped = query.shape[2] != key.shape[2]
    return F.scaled_dot_product_attention(*operands, scale=scale, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


def _sums(query: Tensor) -> Tensor:
    """The log-sum-exp of rows, [B, H, N]; of no value, as nothing here reads it."""
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], dtype=torch.float32)


@torch.library.custom_op("svg_tests::rows_first", mutates_args=())
def rows_first(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None, window: int) -> tuple[Tensor, Tensor]:
    CALLS["rows_first"] += 1
    return _attend(q, k, v, softmax_scale).contiguous(), _sums(q)


@rows_first.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None, window: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q, memory_format=torch.contiguous_format), _sums(q)


@torch.library.custom_op("svg_tests::heads_first", mutates_args=())
def heads_first(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    CALLS["heads_first"] += 1
    return F.scaled_dot_product_attention(query, key, value).contiguous()


@heads_first.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("svg_tests::some_attention", mutates_args=())
def some_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    CALLS["some_attention"] += 1
    return _attend(q, k, v, None).contiguous()


@some_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    CALLS["flash"] += 1
    out = torch.empty_like(q).copy_(_attend(q, k, v, softmax_scale, causal))
    return out, _sums(q), q.new_empty(0), q.new_empty(2, dtype=torch.int64)


def _packed_flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    CALLS["packed flash"] += 1
    out = torch.zeros_like(q)
    queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for a, b, c, d in zip(queries, queries[1:], keys, keys[1:]):
        out[a:b] = _attend(q[None, a:b], k[None, c:d], v[None, c:d], softmax_scale, causal)[0]
    return out, q.new_zeros(q.shape[1], q.shape[0]), q.new_empty(0), q.new_empty(2, dtype=torch.int64)


def _shapes(q: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = q.new_empty(q.shape[-2], q.shape[0]) if q.dim() == 3 else _sums(q)
    return torch.empty_like(q), sums, q.new_empty(0), q.new_empty(2, dtype=torch.int64)


def define_flash() -> None:
    """flash-attn 2's two operators, by their names and parameters, where the library itself is not installed."""
    if importlib.util.find_spec("flash_attn") is not None or hasattr(torch.ops.flash_attn, "_flash_attn_forward"):
        return
    for name, function in (("_flash_attn_forward", _flash), ("_flash_attn_varlen_forward", _packed_flash)):
        torch.library.custom_op(f"flash_attn::{name}", function, mutates_args=()).register_fake(_shapes)
