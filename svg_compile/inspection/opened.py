"""The tensors of a model's arguments, also of those that stand in dataclasses, which torch's own flattening leaves."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from svg_compile._compat.pytree import tree_leaves


def opened(value: Any) -> Any:
    """The value with each dataclass in it, and in its tuples, lists and dictionaries, as a dictionary of its fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: opened(getattr(value, field.name, None)) for field in dataclasses.fields(value)}
        return {"": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if type(value) in (list, tuple):
        return type(value)(opened(part) for part in value)
    if type(value) is dict:
        return {key: opened(part) for key, part in value.items()}
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of a value."""
    return [leaf for leaf in tree_leaves(opened(value)) if isinstance(leaf, Tensor)]
