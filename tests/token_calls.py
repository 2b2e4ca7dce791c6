"""Attention in random programs: how it is called at a program's end, and attention layers in the middle of one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from other_attention import define_flash

define_flash()
flash = torch.ops.flash_attn._flash_attn_forward
packed_flash = torch.ops.flash_attn._flash_attn_varlen_forward
of_torch = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
# Of scores: two tokens of different numbers are so far apart that only one of them counts.
_SHARP = 50.0


def by_flash(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    rows = (each.transpose(1, 2) for each in (query, key, value))
    out: Tensor = flash(*rows, 0.0, scale, False, -1, -1, 0.0, None, False)[0]
    return out.transpose(1, 2)


def by_packed_flash(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """One sequence of the function of many; of the samples, the first one."""
    rows = [each[0].transpose(0, 1) for each in (query, key, value)]
    ends = [torch.tensor([0, each.shape[0]], dtype=torch.int32) for each in rows[:2]]
    longest = [each.shape[0] for each in rows[:2]]
    out: Tensor = packed_flash(*rows, *ends, *longest, 0.0, scale, False)[0]
    return out.transpose(0, 1).unsqueeze(0)


def grouped(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Two heads of the query for each of the keys."""
    query = query.repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=True)


def by_grouped_flash(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return by_flash(query.repeat_interleave(2, 1), key, value, scale)


def plain(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def by_torch(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    out: Tensor = of_torch(query, key, value, 0.0, False, scale=scale)[0]
    return out


# How attention is called: of query, key and value [B, H, N, D] and a scale.
CALLS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "plain": plain,
    "flash": by_flash,
    "packed flash": by_packed_flash,
    "grouped": grouped,
    "grouped flash": by_grouped_flash,
    "torch's own": by_torch,
}


def layer(x: Tensor, call: str) -> Tensor:
    """An attention layer that leaves the numbers of tokens as they are: each attends to those of its own number alone.

    The score of tokens n and m is SHARP * (2nm - m*m), whose largest value over m is at m = n. A head of one channel
    has no room for it, and has no layer.
    """
    width = x.shape[-1]
    if width < 2:
        return x
    # Padding along the channels is less than any number.
    number = x.amax(-1, keepdim=True)
    query = F.pad(torch.cat([number, torch.ones_like(number)], -1), (0, width - 2))
    key = F.pad(torch.cat([2 * _SHARP * number, -_SHARP * number * number], -1), (0, width - 2))
    # Of several tokens with one number the mean, which rounding may have moved.
    return CALLS[call](query, key, x, 1.0).round()
