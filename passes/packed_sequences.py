"""Attention over sequences that are packed one behind another, read as attention over the first of them.

Operands are [N, H, D], and the operator is told where each sequence ends: ends = [0, a, b]. How long a sequence is is a
value, which no graph knows. The rows of the first one are SDPA's, with a mask that hides the keys behind it. Those of a
second one are the operator's own, called for it alone: packed so, the padding of a prompt stands behind the video and
the prompt, and attends to itself.

    row < a    softmax(scale * Q @ K.T) @ V over keys < a
    row >= a   operator(Q, K, V, ends=[a, b])

This holds whatever the ends are. Rows behind the last sequence, which the operator leaves undefined, are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from svg_compile._compat.operators import parameters_of
from svg_compile._compat.sizes import equal, holds
from svg_compile.passes.attention_operators import AttentionCall

# Ends that are passed for so many sequences.
_ENDS = {1: 2, 2: 3}


def sequences(call: AttentionCall) -> int | None:
    """How many sequences the operands of a call, as tensors, hold: 1 or 2, and 1 where they are not packed.

    None where it is more, or not proven.
    """
    if call.lengths is None:
        return 1
    if not all(isinstance(each, Tensor) and each.dim() == 1 for each in call.lengths):
        return None
    counts = (count for count, ends in _ENDS.items() if all(holds(equal, each.shape[0], ends) for each in call.lengths))
    return next(counts, None)


def of_the_second(
    call: AttentionCall, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call of two sequences, as tensors or proxies, for the second one alone."""
    names, given, named = parameters_of(target) or [], list(args), dict(kwargs)
    for name in call.operator.lengths or ():
        at = names.index(name)
        if at < len(given):
            given[at] = given[at].narrow(0, 1, 2)
        else:
            named[name] = named[name].narrow(0, 1, 2)
    return given, named
