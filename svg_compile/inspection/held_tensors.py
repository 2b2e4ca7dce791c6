"""The tensors that a module holds by itself: buffers, attributes, entries of containers and of plain objects of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from svg_compile.inspection.bare_clone import is_plain_object


def held_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of each, parameters among them, without those of the modules in it."""
    seen = {id(module)}
    for name, value in vars(module).items():
        yield from _held(name, value, seen)


def _held(path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, (list, tuple)):
        parts = list(enumerate(value))
    else:
        parts = list(vars(value).items()) if is_plain_object(value) else []
    for name, part in parts:
        yield from _held(f"{path}.{name}", part, seen)
