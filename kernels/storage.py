"""Where operands and results lie in memory: results in the models' own layout, so that no copy follows an op."""

from __future__ import annotations

from torch import Tensor

from svg_compile._compat.gpu import in_one_buffer, is_traced, triton_op


def empty_output(query: Tensor, value: Tensor) -> Tensor:
    """Uninitialised [B, H, N, D] over [B, N, H, D] storage: what every engine and the fake return."""
    batch, heads, tokens, _ = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[3]).transpose(1, 2)


@triton_op("svg::settled")
def settled(operand: Tensor) -> Tensor:
    """An operand of several ops, q, k, v [B, H, N, D] or a key mask [B, N], as one buffer that all their kernels read.

    Inductor would give each launch a buffer of its own: what computes q would write it once for the profile and once
    for attention. An operand whose strides have gaps, as a slice of a fused projection, is made dense: where it is
    still to be computed, Inductor would allocate the gaps as well. A graph alone needs this; of tensors with data the
    result is a copy, as an op may not return what it is given.
    """
    dense = _dense(operand)
    return in_one_buffer(dense) if is_traced(dense) else dense.clone()


def _dense(operand: Tensor) -> Tensor:
    """The operand without gaps in its strides: as it is, or its heads' channels beside each other."""
    if operand.is_contiguous() or operand.dim() < 4:
        return operand.contiguous()
    rows = operand.transpose(1, 2)
    return operand if rows.is_contiguous() else rows.contiguous().transpose(1, 2)
