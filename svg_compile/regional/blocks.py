"""The blocks of a model: which of its modules are compiled, or would be, one by one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from svg_compile._compat.modules import uncompiled


def compiled_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of the outermost compiled modules inside a model, without the wrapper of torch.compile."""
    return ((path, uncompiled(block)) for path, block in blocks_as_compiled(model))


def blocks_as_compiled(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The same, with the wrapper where there is one."""
    for name, child in model.named_children():
        if uncompiled(child) is not child or child._compiled_call_impl is not None:
            yield name, child
        else:
            for path, block in blocks_as_compiled(child):
                yield f"{name}.{path}", block


def is_in(layer: str, block: str) -> bool:
    """True if a layer is a block itself, or a module inside of it."""
    return layer == block or layer.startswith(f"{block}.")
