"""ATen's CPU flash attention, and the merge of its results on disjoint sets of keys."""

from __future__ import annotations

import torch
from torch import Tensor

# Partial attention of each query on some keys: the output [..., L, D] and the log-sum-exp of the scores [..., L].
Part = tuple[Tensor, Tensor]

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def flash(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Part:
    """Attention of query [G, L, D] or [G, C, L, D] on key and value of the same rank, last stride 1.

    mask: bool, broadcastable to [G, C, L, K], True for keys to attend. Rows without a key give 0 and -inf.
    """
    if query.dim() == 3:
        out, lse = flash(query[:, None], key[:, None], value[:, None], scale, mask)
        return out[:, 0], lse[:, 0]
    if 0 in (query.shape[2], key.shape[2]):
        # The ATen op divides by the number of keys.
        empty = query.new_full(query.shape[:3], float("-inf"), dtype=torch.promote_types(query.dtype, torch.float32))
        return torch.zeros_like(query), empty
    if mask is None:
        return _flash(query, key, value, 0.0, False, scale=scale)
    bias = torch.zeros(mask.shape, dtype=query.dtype, device="cpu").masked_fill_(~mask, float("-inf"))
    out, lse = _flash(query, key, value, 0.0, False, attn_mask=bias, scale=scale)
    # For a row without a key ATen returns the right output, 0, but the log-sum-exp of a single score of 0.
    return out, lse.masked_fill(~mask.any(-1), float("-inf"))


def merge(first: Part, second: Part, out: Tensor | None = None) -> Part:
    """Attention on the union of two disjoint sets of keys; every row must have a key in the first set."""
    share = torch.sigmoid(second[1] - first[1]).to(first[0].dtype)[..., None]
    return torch.lerp(first[0], second[0], share, out=out), torch.logaddexp(first[1], second[1])
