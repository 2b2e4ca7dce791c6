"""Operators of other libraries that compute attention, and how their calls read as `scaled_dot_product_attention`'s.

FlashAttention, torch's own kernels where they are called by name, and operators that are registered compute

    softmax(scale * Q @ K.T) @ V

of operands [B, N, H, D] or [B, H, N, D], or of sequences one behind another, [N, H, D]. A call that asks for more (a
window, slopes, a cap, a page table) is not read, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from svg_compile._compat.operators import (
    arguments_of,
    operator_named,
    parameters_of,
    qualified_name,
    results_of,
    writes_operands,
)

LAYOUTS = ("BNHD", "BHND")
T = TypeVar("T")


@dataclass(frozen=True)
class AttentionOperator:
    """Which parameters of an operator are what.

    scale, causal, mask: None where it has no such parameter; a scale of None is 1/sqrt(D). lengths: the parameters that
    hold the cumulative lengths of packed queries and keys, int32 [sequences + 1]; where they are passed, operands are
    [N, H, D]. neutral: values at which other parameters ask for nothing. free: parameters that change how, not what, is
    computed. A parameter that is not named here must have the default of the operator's schema. alone: whether the
    operator returns the result alone; else it returns it first of several.
    """

    query: str = "q"
    key: str = "k"
    value: str = "v"
    layout: str = "BNHD"
    scale: str | None = "softmax_scale"
    causal: str | None = "causal"
    mask: str | None = None
    lengths: tuple[str, str] | None = None
    neutral: Mapping[str, Any] = field(default_factory=dict)
    free: frozenset[str] = frozenset()
    alone: bool = False


@dataclass(frozen=True)
class AttentionCall:
    """One call. mask, lengths: None where it has none."""

    operator: AttentionOperator
    query: Any
    key: Any
    value: Any
    scale: Any
    causal: Any
    mask: Any
    lengths: tuple[Any, Any] | None


_FLASH_NEUTRAL = {
    "dropout_p": 0.0,
    "window_size_left": -1,
    "window_size_right": -1,
    "softcap": 0.0,
    "alibi_slopes": None,
}
_FLASH_FREE = frozenset({"return_softmax", "deterministic", "num_splits", "pack_gqa", "sm_margin", "zero_tensors"})
_FLASH_FREE |= {"max_seqlen_q", "max_seqlen_k", "scheduler_metadata", "rotary_interleaved"}
_PACKED = ("cu_seqlens_q", "cu_seqlens_k")
_FLASH = AttentionOperator(neutral=_FLASH_NEUTRAL, free=_FLASH_FREE)
_PACKED_FLASH = AttentionOperator(neutral=_FLASH_NEUTRAL, free=_FLASH_FREE, lengths=_PACKED)
_OF_TORCH = AttentionOperator(
    query="query",
    key="key",
    value="value",
    layout="BHND",
    scale="scale",
    causal="is_causal",
    mask="attn_bias",
    neutral={"dropout_p": 0.0},
    free=frozenset({"compute_log_sumexp", "return_debug_mask"}),
)
_KNOWN = {
    # flash-attn 2 and 3, as torch.compile traces their functions, and diffusers' operator around the third.
    "flash_attn::_flash_attn_forward": _FLASH,
    "flash_attn::_flash_attn_varlen_forward": _PACKED_FLASH,
    "flash_attn_3::_flash_attn_forward": _PACKED_FLASH,
    "_diffusers_flash_attn_3::_flash_attn_forward": _FLASH,
    # ComfyUI's operator around flash_attn_func.
    "flash_attention::flash_attn": AttentionOperator(scale=None, neutral={"dropout_p": 0.0}, alone=True),
    **{
        f"aten::_scaled_dot_product_{name}": _OF_TORCH
        for name in (
            *("flash_attention", "efficient_attention", "cudnn_attention", "fused_attention_overrideable"),
            "flash_attention_for_cpu",
        )
    },
}
_REGISTERED: dict[str, AttentionOperator] = {}


def register_attention_op(
    operator: Any,
    *,
    query: str = "q",
    key: str = "k",
    value: str = "v",
    layout: str = "BNHD",
    scale: str | None = "softmax_scale",
    causal: str | None = "causal",
    mask: str | None = None,
    neutral: Mapping[str, Any] | None = None,
    free: frozenset[str] | set[str] | tuple[str, ...] = (),
) -> None:
    """Declare that an operator computes softmax(scale * Q K^T + mask) V: its calls are made sparse as SDPA's are.

    operator: what `torch.ops.namespace.name` or `torch.library.custom_op` give. query, key, value, scale, causal, mask:
    its parameters by name, None where it has none (a scale that is missing, or None in a call, is 1/sqrt(D)). layout:
    "BNHD" where operands and result are [batch, tokens, heads, channels], "BHND" where they are [batch, heads, tokens,
    channels]. neutral: values of further parameters at which they ask for nothing, {"dropout_p": 0.0}; a further
    parameter without one must have its default. free: parameters that do not change the result. The result is the
    operator's only one, or the first of several of which no other is used.

    It holds for the process. A declaration that is not true gives wrong results. Raises TypeError for what is no
    operator, ValueError for a parameter that it does not have, a layout that is none, or an operator that writes its
    operands.
    """
    name = qualified_name(operator)
    if name is None or (parameters := parameters_of(operator)) is None:
        raise TypeError(f"expected an operator, as torch.ops.namespace.name, not {operator!r}")
    if layout not in LAYOUTS:
        raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, not {layout!r}")
    named = [each for each in (query, key, value, scale, causal, mask, *(neutral or {}), *free) if each is not None]
    if unknown := [each for each in named if each not in parameters]:
        raise ValueError(f"{name} has no parameter {unknown[0]!r}; it has {', '.join(parameters)}")
    if writes_operands(operator):
        raise ValueError(f"{name} writes its operands")
    _REGISTERED[name] = AttentionOperator(
        query=query,
        key=key,
        value=value,
        layout=layout,
        scale=scale,
        causal=causal,
        mask=mask,
        neutral=dict(neutral or {}),
        free=frozenset(free),
        alone=results_of(operator) == 1,
    )


def attention_operator(target: Any) -> AttentionOperator | None:
    """The description of an attention operator; None for any other operator or object."""
    name = qualified_name(target)
    return None if name is None else _REGISTERED.get(name) or _KNOWN.get(name)


def defined_operators() -> dict[Any, AttentionOperator]:
    """The known and registered operators of libraries that are imported, torch's own left out."""
    named = {name: each for name, each in (_KNOWN | _REGISTERED).items() if not name.startswith("aten::")}
    found = {name: operator_named(name) for name in named}
    return {operator: named[name] for name, operator in found.items() if operator is not None}


def read_call(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AttentionCall | str | None:
    """A call as attention; None of any other operator; "parameter=value" where a parameter asks for more."""
    operator = attention_operator(target)
    given = None if operator is None else arguments_of(target, args, kwargs)
    if operator is None or given is None:
        return None
    named = {operator.query, operator.key, operator.value, operator.scale, operator.causal, operator.mask}
    named |= set(operator.lengths or ())
    for name, (value, default) in given.items():
        if name not in named | operator.free and not _same(value, operator.neutral.get(name, default)):
            return f"{name}={value}"
    value_of = {name: value for name, (value, _) in given.items()}
    lengths = None
    if operator.lengths is not None:
        queries, keys = (value_of.get(name) for name in operator.lengths)
        if (queries is None) != (keys is None):
            return operator.lengths[queries is not None]
        lengths = None if queries is None else (queries, keys)
    scale, causal, mask = (
        None if name is None else value_of.get(name) for name in (operator.scale, operator.causal, operator.mask)
    )
    query, key, value = (value_of[name] for name in (operator.query, operator.key, operator.value))
    return AttentionCall(operator, query, key, value, scale, bool(causal), mask, lengths)


def sdpa_arguments(call: AttentionCall) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    """Operands [B, H, N, D] and the other arguments of `scaled_dot_product_attention`, out of tensors or of proxies."""
    query, key, value = (heads_first(call, each) for each in (call.query, call.key, call.value))
    mask = call.mask
    if call.lengths is not None:
        mask = in_first(call.lengths[1], call.key).unsqueeze(0).unsqueeze(0).unsqueeze(0)
    return (query, key, value), {"attn_mask": mask, "dropout_p": 0.0, "is_causal": call.causal, "scale": call.scale}


def in_first(ends: Any, rows: Any) -> Any:
    """bool [N], tensor or proxy: which of packed rows [N, H, D] are those of the first sequence, by cumulative ends."""
    return rows.new_ones(rows.size(0), dtype=torch.int32).cumsum(0).le(ends.select(0, 1))


def heads_first(call: AttentionCall, tensor: Any) -> Any:
    """An operand or a result of a call as [B, H, N, D], a view."""
    tensor = tensor if call.lengths is None else tensor.unsqueeze(0)
    return tensor.transpose(1, 2) if call.operator.layout == "BNHD" else tensor


def result_of(call: AttentionCall, out: Any) -> Any:
    """SDPA's result [B, H, N, D] as the operator gives it, but for the order in which it is stored."""
    out = out.transpose(1, 2) if call.operator.layout == "BNHD" else out
    return out if call.lengths is None else out.squeeze(0)


def axes_of_result(call: AttentionCall, axes: Sequence[T]) -> list[T]:
    """The entries of `axes`, one for each dimension of SDPA's result, in the order of the operator's result."""
    samples, heads, tokens, channels = axes
    rest = [tokens, heads, channels] if call.operator.layout == "BNHD" else [heads, tokens, channels]
    return [samples, *rest] if call.lengths is None else rest


def _same(value: Any, neutral: Any) -> bool:
    """True if an argument of a call is the constant `neutral`; tensors and values computed by the graph are not."""
    if value is None or neutral is None:
        return value is neutral
    return isinstance(value, (bool, int, float)) and value == neutral
