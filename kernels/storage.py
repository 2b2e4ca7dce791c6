"""Memory layout of operands and results: results have the layout that models use, so that no copy follows an op."""

from __future__ import annotations

from torch import Tensor

from svg_compile._compat.gpu import in_one_buffer, is_traced, triton_op


def empty_output(query: Tensor, value: Tensor) -> Tensor:
    """Uninitialised [B, H, N, D] over [B, N, H, D] storage, as every engine and the fake implementation return it."""
    batch, heads, tokens, _ = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[3]).transpose(1, 2)


@triton_op("svg::settled")
def settled(operand: Tensor) -> Tensor:
    """An operand of several ops, q, k, v [B, H, N, D] or a key mask [B, N], as one buffer that all their kernels read.

    Without this Inductor would realise q twice, once for the profile and once for attention. An operand whose strides
    have gaps, such as a slice of a fused projection, is made dense: if it is not yet computed, Inductor would allocate
    the gaps as well. Only a traced graph needs this; eagerly the result is a copy, as an op may not return its input.
    """
    dense = _dense(operand)
    return in_one_buffer(dense) if is_traced(dense) else dense.clone()


def _dense(operand: Tensor) -> Tensor:
    """The operand without gaps in its strides: unchanged, or contiguous as [B, N, H, D]."""
    if operand.is_contiguous() or operand.dim() < 4:
        return operand.contiguous()
    rows = operand.transpose(1, 2)
    return operand if rows.is_contiguous() else rows.contiguous().transpose(1, 2)
