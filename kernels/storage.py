"""Where results are stored: in the models' own layout, so that no copy follows an op."""

from __future__ import annotations

from torch import Tensor


def empty_output(query: Tensor, value: Tensor) -> Tensor:
    """Uninitialised [B, H, N, D] over [B, N, H, D] storage: what every engine and the fake return."""
    batch, heads, tokens, _ = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[3]).transpose(1, 2)
