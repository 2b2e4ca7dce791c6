"""The clone that is traced instead of a model, on fake tensors of which only a few have values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from svg_compile._compat.fake_values import ValueMode
from svg_compile._compat.graphs import is_fake
from svg_compile._compat.modules import uncompiled
from svg_compile._compat.pytree import tensors_in
from svg_compile._compat.traces import with_code_of_its_own
from svg_compile.inspection.bare_clone import KEPT_FORWARD, bare_clone
from svg_compile.inspection.opened import opened

# Weights of at most this many elements are read where Python code asks for them.
_SMALL_WEIGHT = 2**16


def traced_clone(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    mode: ValueMode,
    values: Callable[[Tensor], bool],
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """(a clone of the model, its inputs): all tensors fake, on one device, as hooks would bring them there."""
    plain = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    module = uncompiled(plain) if isinstance(plain, nn.Module) else None
    device = _device(module, (args, dict(kwargs)))

    def stand_in(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) and not is_fake(tensor):
            # A quantised weight: Dynamo sees into it.
            return tensor
        dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        is_weight = isinstance(tensor, nn.Parameter)
        same = tensor.device == device and dtype == tensor.dtype
        readable = same and mode.may_turn_const(tensor) and values(tensor)
        if readable and is_weight and tensor.numel() <= _SMALL_WEIGHT:
            fake = mode.borrowed(tensor.detach())
        elif readable and not is_weight:
            fake = mode.known(tensor.detach().clone())
        else:
            fake = mode.unknown(tensor, dtype, device)
        return nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_weight else fake

    method: Any = model
    target = module if plain is model else MethodType(method.__func__, module) if module is not None else model
    clone, given_args, given_kwargs = bare_clone((target, args, dict(kwargs)), stand_in)
    if isinstance(clone, nn.Module) and module is not None and KEPT_FORWARD in vars(module):
        # Dynamo breaks off in the loop over the blocks that a cache has replaced, and gives up on the forward.
        clone.forward = MethodType(with_code_of_its_own(type(clone).forward), clone)
    return clone, given_args, given_kwargs


def _device(module: nn.Module | None, inputs: Any) -> torch.device:
    """Where the model runs: where its inputs are, else its weights; where they part, on the accelerator."""
    tensors = tensors_in(opened(inputs))
    tensors += [] if module is None else [*module.parameters(), *module.buffers()]
    devices = [tensor.device for tensor in tensors if tensor.device.type != "meta"]
    devices += [torch.device("cpu")]
    return next((device for device in devices if device.type != "cpu"), devices[0])
