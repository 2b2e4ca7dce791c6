"""Attention masks that hide tokens, from all heads alike.

keys     bool [B or 1, 1, 1, N]          hidden tokens are no keys, whatever made the mask
bias     float [B or 1, 1, 1, N]         the same, where each value is proven to be 0 or to hide a key
         repeated over heads and rows, or as it is
pairs    rows & rows.transpose(2, 3)     hidden tokens are no queries either: rows that see nothing, which give 0
         bool [B or 1, 1, N, N]          (rows: a mask of keys, as it is or repeated over all rows)
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from svg_compile._compat.graphs import SDPA_TARGETS
from svg_compile._compat.sizes import equal, holds

_AND = (operator.and_, torch.logical_and, torch.bitwise_and, "logical_and", "bitwise_and")


@dataclass(frozen=True)
class TokenMask:
    """Which tokens are hidden. rows: the node bool [B or 1, 1, 1 or N, N], all rows alike, True for visible keys,
    or floating point, 0 for those; pairs: the node that joined it with its transpose, None where keys alone are hidden.
    """

    rows: fx.Node
    pairs: fx.Node | None = None


def token_mask(mask: fx.Node, keys: Tensor, bias_hides: bool = False) -> TokenMask | None:
    """Read the mask of an attention over keys [B, H, N, D]; None where it hides anything but tokens.

    bias_hides: each value of a mask that is no boolean one is proven to be 0 or to hide a key.
    """
    shown = _shown(mask)
    source = _unrepeated(mask)
    if source is not None and (shown.dtype is torch.bool or (bias_hides and shown.dtype.is_floating_point)):
        if _one_value_a_key(_shown(source), keys):
            return TokenMask(source)
    if shown.dim() != 4 or not all(holds(equal, size, keys.shape[2]) for size in shown.shape[2:]):
        return None
    joined = mask
    while _is_cast(joined):
        joined = joined.args[0]  # type: ignore[assignment]
    if joined.target not in _AND or len(joined.args) != 2 or joined.kwargs:
        return None
    for rows, columns in (joined.args, joined.args[::-1]):
        if not isinstance(rows, fx.Node) or not isinstance(columns, fx.Node):
            continue
        # Whatever else had these nodes in hand could have written into them, and the halves were alike no more.
        alone = set(rows.users) <= {joined, columns} and set(columns.users) == {joined}
        if alone and _transposes(columns, rows) and _rows_alike(rows, keys) and _feeds_attention_alone(joined):
            return TokenMask(rows, joined)
    return None


def _shown(node: fx.Node) -> Tensor:
    shown: Tensor = node.meta["example_value"]
    return shown


def _unrepeated(node: fx.Node) -> fx.Node | None:
    """The mask that was repeated over heads and rows, [.., 1, 1, N] -> [.., H, R, N]; the node itself where none was.

    None where it is written in between, which would make heads or rows differ.
    """
    source = node.args[0] if node.op == "call_method" and node.target in ("repeat", "expand") else None
    if not isinstance(source, fx.Node) or _shown(source).dim() != 4 or _shown(node).dim() != 4:
        return node
    batch, heads, rows, columns = _shown(source).shape
    wide = _shown(node).shape
    if not (holds(equal, heads, 1) and holds(equal, rows, 1) and holds(equal, columns, wide[3])):
        return node
    if not (holds(equal, batch, wide[0]) or holds(equal, batch, 1)):
        return node
    return source if _feeds_attention_alone(node) and set(source.users) == {node} else None


def _hides_keys(mask: Tensor, keys: Tensor) -> bool:
    return mask.dtype is torch.bool and _one_value_a_key(mask, keys)


def _one_value_a_key(mask: Tensor, keys: Tensor) -> bool:
    if mask.dim() != 4:
        return False
    batch, heads, rows, columns = mask.shape
    one_batch = holds(equal, batch, 1) or holds(equal, batch, keys.shape[0])
    return one_batch and holds(equal, heads, 1) and holds(equal, rows, 1) and holds(equal, columns, keys.shape[2])


def _rows_alike(node: fx.Node, keys: Tensor) -> bool:
    """A mask of keys, or one repeated over rows (and over the batch)."""
    if _hides_keys(_shown(node), keys):
        return True
    if node.op != "call_method" or node.target not in ("repeat", "expand"):
        return False
    source = node.args[0]
    if not isinstance(source, fx.Node) or not _hides_keys(_shown(source), keys):
        return False
    shown = _shown(node)
    batch = holds(equal, shown.shape[0], 1) or holds(equal, shown.shape[0], keys.shape[0])
    return (
        batch and shown.dim() == 4 and holds(equal, shown.shape[1], 1) and holds(equal, shown.shape[3], keys.shape[2])
    )


def _transposes(node: fx.Node, source: fx.Node) -> bool:
    if node.target not in ("transpose", torch.transpose) or len(node.args) != 3 or node.args[0] is not source:
        return False
    dims = node.args[1:]
    return all(isinstance(dim, int) for dim in dims) and {dim % 4 for dim in dims} == {2, 3}  # type: ignore[operator]


def _is_cast(node: fx.Node) -> bool:
    """A cast of bool to bool, which gives the tensor itself."""
    if node.op != "call_method" or not isinstance(node.args[0], fx.Node):
        return False
    named = node.target == "bool" or (node.target == "to" and node.args[1:] == (torch.bool,) and not node.kwargs)
    return named and _shown(node.args[0]).dtype is torch.bool


def _feeds_attention_alone(node: fx.Node) -> bool:
    return all(user.target in SDPA_TARGETS or (_is_cast(user) and _feeds_attention_alone(user)) for user in node.users)
