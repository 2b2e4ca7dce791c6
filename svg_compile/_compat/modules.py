"""What torch keeps of a module besides its parameters: hooks, and what `torch.compile` puts around it."""

from __future__ import annotations

from torch import nn

# The attributes of a module that hold hooks: dictionaries from a handle's number to the hook.
HOOK_TABLES = frozenset(
    name for name in vars(nn.Module()) if name.endswith(("_hooks", "_pre_hooks")) and name.startswith("_")
)


def uncompiled(module: nn.Module) -> nn.Module:
    """A module without the wrapper that `torch.compile(module)` returns."""
    while isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
        module = inner
    return module
