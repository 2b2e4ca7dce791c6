"""Operators: how they are named, and what stands for them in a graph."""

from __future__ import annotations

from typing import Any

import torch

# `torch.nn.functional.pad` as it stands in a graph.
PAD_TARGETS = (torch.nn.functional.pad, torch._C._nn.pad)


def operators_named(*names: str) -> list[Any]:
    """Those of ATen's operators that the installed torch has."""
    return [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]


def qualified_name(operator: Any) -> str | None:
    """`namespace::operator` of an overload, a packet of overloads or a custom operator; None for anything else."""
    schema = getattr(operator, "_schema", None)
    if isinstance(schema, torch.FunctionSchema):
        return schema.name
    for attribute in ("_qualified_op_name", "_qualname"):
        if isinstance(name := getattr(operator, attribute, None), str):
            return name
    return None


def writes_operands(operator: Any) -> bool:
    """Whether any overload of an operator writes a tensor that it is given."""
    packet = getattr(operator, "_opoverload", operator)
    overloads = [getattr(packet, name) for name in packet.overloads()] if hasattr(packet, "overloads") else [packet]
    return any(overload._schema.is_mutable for overload in overloads if hasattr(overload, "_schema"))
