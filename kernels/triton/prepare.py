"""Inputs of the attention kernel that follow from plan and mask: the order of the heads, and the hidden keys' range.

    order int32 [B * H + 1]     the heads' numbers, longest first, so that no long head runs last; then a zero
    hidden int32 [B, 2]         first hidden key and one past the last, of a key mask bool [B, N] in any strides

Both are small launches before the large one, because plan and mask are on the device and the host must not read them.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

ORDER_BLOCK = 64
MASK_BLOCK = 4096


@triton.jit
def head_order_fwd_kernel(plan, order, stride_head, stride_item, batch_heads, BLOCK: tl.constexpr):
    """order int32 [B * H + 1]: the heads, longest first (dense, then by half-width, then by number), and a zero."""
    head = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = head < batch_heads
    kind = tl.load(plan + head.to(tl.int64) * stride_head, mask=mine, other=0)
    width = tl.load(plan + head.to(tl.int64) * stride_head + stride_item, mask=mine, other=0)
    cost = tl.where((kind == 0) | (kind == 1), width, 2147483647)
    place = tl.zeros([BLOCK], tl.int32)
    for start in range(0, batch_heads, BLOCK):
        other = start + tl.arange(0, BLOCK)
        there = other < batch_heads
        kind = tl.load(plan + other.to(tl.int64) * stride_head, mask=there, other=0)
        width = tl.load(plan + other.to(tl.int64) * stride_head + stride_item, mask=there, other=0)
        other_cost = tl.where((kind == 0) | (kind == 1), width, 2147483647)
        tie = (other_cost[None, :] == cost[:, None]) & (other[None, :] < head[:, None])
        before = there[None, :] & ((other_cost[None, :] > cost[:, None]) | tie)
        place += tl.sum(before.to(tl.int32), 1)
    tl.store(order + place, head, mask=mine)
    tl.store(order + batch_heads, 0)


@triton.jit
def hidden_range_fwd_kernel(key_mask, hidden, stride_batch, stride_token, tokens, BLOCK: tl.constexpr):
    """hidden int32 [B, 2]: the first hidden key and one past the last; (tokens, 0) if every key is visible."""
    batch = tl.program_id(0)
    key_mask += batch.to(tl.int64) * stride_batch
    first = tl.full([BLOCK], 2147483647, tl.int32)
    last = tl.zeros([BLOCK], tl.int32)
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)
        seen = tl.load(key_mask + token.to(tl.int64) * stride_token, mask=token < tokens, other=1) != 0
        first = tl.where(seen, first, tl.minimum(first, token))
        last = tl.where(seen, last, token + 1)
    tl.store(hidden + 2 * batch, tl.minimum(tl.min(first, 0), tokens))
    tl.store(hidden + 2 * batch + 1, tl.max(last, 0))


@triton.jit
def clean_end(begin, end, hidden_first, hidden_end):
    """End of the part of [begin, end) before the hidden keys; `end` if no hidden key is inside."""
    return tl.where((hidden_first < end) & (hidden_end > begin), tl.maximum(hidden_first, begin), end)
