"""How one attention is called, and what of the call itself, apart from its tokens, cannot be rewritten."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from svg_compile._compat.sizes import constant, equal, holds
from svg_compile.config import SvgConfig
from svg_compile.decisions import Reason
from svg_compile.kernels.triton.configs import DTYPES, HEAD_DIMS
from svg_compile.passes.attention_mask import token_mask

_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_DEFAULTS = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}

Call = dict[str, Any]


def call_of(node: fx.Node) -> Call:
    """The arguments of an SDPA node by name, defaults filled in."""
    return dict(_DEFAULTS) | dict(zip(_PARAMETERS, node.args)) | dict(node.kwargs)


def example(value: Any) -> Any:
    """The traced example of a node; another value as it is."""
    return value.meta["example_value"] if isinstance(value, fx.Node) else value


def heads_each(call: Call) -> int | None:
    """How many heads of the query share one of key and value: 1, or with grouped queries more; None if that is open."""
    query, key, value = (example(call[name]) for name in ("query", "key", "value"))
    if not all(holds(equal, key.shape[dim], value.shape[dim]) for dim in (0, 1)):
        return None
    heads, groups = query.shape[1], key.shape[1]
    if holds(equal, heads, groups):
        return 1
    known = isinstance(heads, int) and isinstance(groups, int) and call["enable_gqa"] is True
    return heads // groups if known and groups and heads % groups == 0 else None


def refused_call(call: Call, out: Tensor, config: SvgConfig, bias_hides: bool = False) -> tuple[Reason, str] | None:
    """Why a call cannot be rewritten, whatever its tokens are; None if it can. bias_hides: see `token_mask`."""
    query, key, value = (example(call[name]) for name in ("query", "key", "value"))
    if any(tensor.requires_grad for tensor in (query, key, value)):
        return Reason.GRADIENT, ""
    if call["is_causal"] is not False:
        return Reason.CAUSAL, ""
    if constant(example(call["dropout_p"]), 0) != 0:
        return Reason.DROPOUT, f"dropout_p={call['dropout_p']}"
    if not query.dim() == key.dim() == value.dim() == 4:
        return Reason.RANK, f"query {list(query.shape)}, key {list(key.shape)}"
    if not holds(equal, query.shape[0], key.shape[0]) or heads_each(call) is None:
        return Reason.GROUPED_QUERY, f"query {list(query.shape)}, key {list(key.shape)}"
    if call["attn_mask"] is not None and token_mask(call["attn_mask"], key, bias_hides) is None:
        mask = example(call["attn_mask"])
        return Reason.MASK, f"{mask.dtype} {list(mask.shape)}".replace("torch.", "")
    dtypes = [tensor.dtype for tensor in (query, key, value, out)]
    # Autocast may turn the operands into the result's dtype; without it they are of one dtype anyway.
    if not all(dtype in DTYPES for dtype in dtypes):
        return Reason.DTYPE, ", ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes))
    on_gpu = query.device.type == "cuda"
    head_dims = [tensor.shape[-1] for tensor in (query, key, value)]
    if not all(isinstance(size, int) for size in head_dims) or len(set(head_dims)) != 1:
        return Reason.HEAD_DIM, f"{head_dims}"
    if on_gpu and config.engine in ("auto", "triton") and head_dims[0] not in HEAD_DIMS:
        return Reason.HEAD_DIM, f"{head_dims[0]}"
    if query.device.type not in ("cpu", "cuda") or config.engine == ("cpu" if on_gpu else "triton"):
        return Reason.DEVICE, f"{query.device.type}, engine {config.engine!r}"
    if call["scale"] is not None and constant(example(call["scale"])) is None:
        return Reason.SCALE, ""
    return None
