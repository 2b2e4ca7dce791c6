"""Operators: how they are named, and what stands for them in a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._C import DispatchKey

# Namespaces of operators whose rules are written down, or that exchange data between processes.
_OF_TORCH = ("aten::", "prims::", "c10d", "_c10d", "svg::")

# `torch.nn.functional.pad` as it stands in a graph.
PAD_TARGETS = (torch.nn.functional.pad, torch._C._nn.pad)


# Functions of Python's `operator` module, and methods in their place, that write their first argument.
_IN_PLACE = {"setitem", "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow"}
_IN_PLACE |= {"iand", "ior", "ixor", "ilshift", "irshift"}


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
    """True if any overload of an operator mutates an operand."""
    return any(schema.is_mutable for schema in _schemas(operator))


def writes(node: fx.Node) -> bool:
    """True if a node of a traced graph may mutate one of its arguments."""
    if node.op not in ("call_function", "call_method"):
        # The names of inputs end as the names of writers do.
        return False
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    if schemas := _schemas(node.target):
        arguments = [argument for schema in schemas for argument in schema.arguments]
        # A packet's overloads with `out` are not meant by a call without it.
        arguments = [each for each in arguments if not each.kwarg_only or each.name in node.kwargs]
        return any(each.alias_info is not None and each.alias_info.is_write for each in arguments)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.strip("_") in _IN_PLACE


def _schemas(operator: Any) -> list[torch.FunctionSchema]:
    """The schemas of an operator, of all overloads of a packet; none of what is no operator."""
    packet = getattr(operator, "_opoverload", operator)
    overloads = [getattr(packet, name) for name in packet.overloads()] if hasattr(packet, "overloads") else [packet]
    return [schema for each in overloads if isinstance(schema := getattr(each, "_schema", None), torch.FunctionSchema)]


def mutates(overload: Any) -> bool:
    """True if this overload mutates an operand."""
    return bool(overload._schema.is_mutable)


def _overload(operator: Any) -> Any:
    """The one overload that a call without a name of one means, None where there is none."""
    packet = getattr(operator, "_opoverload", operator)
    overload = getattr(packet, "default", packet) if hasattr(packet, "overloads") else packet
    return overload if isinstance(getattr(overload, "_schema", None), torch.FunctionSchema) else None


def operator_named(name: str) -> Any:
    """The operator `namespace::operator`; None where no library has defined it."""
    namespace, _, operator = name.partition("::")
    return getattr(getattr(torch.ops, namespace), operator, None)


def parameters_of(operator: Any) -> list[str] | None:
    """The names of an operator's parameters; None where it is none."""
    overload = _overload(operator)
    return None if overload is None else [each.name for each in overload._schema.arguments]


def results_of(operator: Any) -> int:
    """How many values an operator returns."""
    overload = _overload(operator)
    return 0 if overload is None else len(overload._schema.returns)


def arguments_of(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]] | None:
    """By parameter: (what a call passes for it, its default). None for what is no operator, or no call of it."""
    overload = _overload(operator)
    if overload is None or len(args) > len(overload._schema.arguments):
        return None
    found: dict[str, tuple[Any, Any]] = {}
    for number, parameter in enumerate(overload._schema.arguments):
        default = parameter.default_value if parameter.has_default_value() else None
        positional = number < len(args)
        found[parameter.name] = (args[number] if positional else kwargs.get(parameter.name, default), default)
    return found if set(kwargs) <= set(found) else None


def definition_of(operator: Any) -> Callable[..., Any] | None:
    """The operator in terms of others, if torch runs that itself to learn the shape of a result; else None.

    One that other operators are made of by themselves (CompositeImplicitAutograd), and one of another library with a
    kernel for all devices (CompositeExplicitAutograd) and no registered fake implementation: fake tensors go through
    that kernel anyway, so that running it on them does nothing that is not done already.
    """
    name = operator._schema.name
    if name.startswith("prim::"):
        # Python's own attributes of tensors.
        return None
    if operator.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd):
        return partial(operator._op_dk, DispatchKey.CompositeImplicitAutograd)
    if name.startswith(_OF_TORCH) or not operator.has_kernel_for_dispatch_key(DispatchKey.CompositeExplicitAutograd):
        return None
    fake = torch._library.simple_registry.singleton.find(operator.name()).fake_impl.kernel
    if fake is not None or operator.has_kernel_for_dispatch_key(DispatchKey.Meta):
        return None
    return partial(operator._op_dk, DispatchKey.CompositeExplicitAutograd)
