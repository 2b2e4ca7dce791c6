"""Private state of a module: its children, its hooks, and the wrapper of `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

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
    """True if a module has a direct child of this name."""
    return name in module._modules


def listed_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of the elements of the outermost lists of modules inside a model."""
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{place}", block) for place, block in child.named_children())
        else:
            for path, block in listed_blocks(child):
                yield f"{name}.{path}", block


def add_end_hook(module: nn.Module, hook: Callable[..., Any]) -> RemovableHandle:
    """`module.register_forward_hook(hook, always_call=True)` under one number for all modules.

    Dynamo guards the number of a hook that is always called, so numbers of their own would make it compile modules of
    one class one by one.
    """
    handle = RemovableHandle(
        module._forward_hooks, extra_dict=[module._forward_hooks_with_kwargs, module._forward_hooks_always_called]
    )
    handle.id = _END_HOOK.setdefault("number", handle.id)
    module._forward_hooks[handle.id] = hook
    module._forward_hooks_always_called[handle.id] = True
    return handle


_END_HOOK: dict[str, int] = {}
