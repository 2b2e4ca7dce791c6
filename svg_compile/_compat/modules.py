"""What torch keeps of a module: its children, its hooks, and the wrapper that `torch.compile` puts around it."""

from __future__ import annotations

from typing import Any

from torch import nn

# The name under which the wrapper holds the module: it stands in the paths of parameters and modules.
WRAPPER = "_orig_mod"
# The attributes of a module that hold hooks: dictionaries from a handle's number to the hook.
HOOK_TABLES = frozenset(
    name for name in vars(nn.Module()) if name.endswith(("_hooks", "_pre_hooks")) and name.startswith("_")
)


def uncompiled(model: Any) -> Any:
    """A module without the wrapper that `torch.compile(module)` returns; any other object as it is."""
    while isinstance(model, nn.Module) and isinstance(inner := model._modules.get(WRAPPER), nn.Module):
        model = inner
    return model


def has_child(module: nn.Module, name: str) -> bool:
    """Whether a module holds another one directly under a name."""
    return name in module._modules
