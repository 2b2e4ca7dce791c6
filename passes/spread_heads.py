"""Which processes the heads of an attention are spread over.

    parts = all_to_all_single(q.flatten(), ..., group)     each process gives its tokens of all heads ...
    q     = wait_tensor(parts).reshape(...).permute(...)   ... and gets all tokens of its own heads
    out   = scaled_dot_product_attention(q, k, v)

What is found decides only whose heads share the pairs of a density. Heads in another order, or an exchange of something
else, make half-widths of another sharing, never another mask; and a process that does not arrive at the attention does
not arrive at the exchange before it either.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from svg_compile._compat.collectives import exchange_of
from svg_compile._compat.sizes import size_hint
from svg_compile.kernels.spread import Spread
from svg_compile.passes.attention_call import example

# The key under which the rewrite notes it in the meta data of a profile.
SPREAD = "svg_spread"


def spread_heads(query: Any) -> Spread | None:
    """The processes that exchanged tokens for heads, to make this query; None where no exchange is found.

    Looks back through views, copies, casts and products with a scalar: operators that keep the number of elements.
    """
    while isinstance(query, fx.Node) and isinstance(example(query), Tensor):
        exchange = exchange_of(query)
        if exchange is not None:
            return Spread(*exchange)
        before = query.args[0] if query.args else None
        if not isinstance(before, fx.Node) or not isinstance(example(before), Tensor):
            return None
        if size_hint(example(before).numel()) != size_hint(example(query).numel()):
            return None
        query = before
    return None
