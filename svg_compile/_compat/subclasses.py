"""Tensors of classes of their own, as quantised weights are: how a clone of one is made, and who may refer to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from svg_compile._compat.graphs import is_fake

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def is_quantised(tensor: Tensor) -> bool:
    """True if a tensor is of another library's class."""
    return type(tensor) not in _PLAIN and not is_fake(tensor)


def referable(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Those of a model's parameters that may be referred to weakly; all of them where none may.

    Offloading swaps what quantised weights hold by torch.utils.swap_tensors, which refuses tensors that have weak
    references.
    """
    given = list(tensors)
    return [tensor for tensor in given if not is_quantised(tensor)] or given


def rebuilt(tensor: Tensor, part: Callable[[Tensor], Any]) -> Tensor:
    """A tensor of the same class, without its attributes: of new parts, where it tells what it is made of.

    Else it is an alias with attributes of its own: whoever sets one, or `data`, does not touch the tensor.
    """
    cls: Any = type(tensor)
    if is_traceable_wrapper_subclass(tensor):
        names, context = tensor.__tensor_flatten__()
        parts = {name: part(getattr(tensor, name)) for name in names}
        twin: Tensor = cls.__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())
    else:
        with torch._C.DisableTorchFunctionSubclass():
            twin = torch.Tensor._make_subclass(cls, tensor.data, tensor.requires_grad)
    if getattr(tensor, "_is_param", False) and not getattr(twin, "_is_param", False):
        twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
    return twin
