"""A model's arguments with their dataclasses as dictionaries: torch's own flattening leaves these closed."""

from __future__ import annotations

import dataclasses
from typing import Any


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
