"""Modules as torch keeps them: their children, and the wrapper that `torch.compile` puts around one."""

from __future__ import annotations

from typing import Any

from torch import nn

# The name under which the wrapper holds the module: it stands in the paths of parameters and modules.
WRAPPER = "_orig_mod"


def uncompiled(model: Any) -> Any:
    """A module without the wrapper that `torch.compile(module)` returns; any other object as it is."""
    while isinstance(model, nn.Module) and isinstance(inner := model._modules.get(WRAPPER), nn.Module):
        model = inner
    return model


def has_child(module: nn.Module, name: str) -> bool:
    """Whether a module holds another one directly under a name."""
    return name in module._modules
