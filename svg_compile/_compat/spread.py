"""Modules whose weights torch.distributed spreads over processes: by `fully_shard` (FSDP2), or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Attributes by which Dynamo recognises modules whose weights are gathered before the forward.
GATHERED = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")


def class_of(module: nn.Module) -> Any:
    """A module's class, without the one that `fully_shard` derives from it and whose `__new__` runs `__init__`."""
    kind = type(module)
    return kind.__bases__[-1] if is_gathered(module) else kind


def is_gathered(module: nn.Module) -> bool:
    """True if `fully_shard` was called on a module: its hooks gather the weights before its forward."""
    bases = type(module).__bases__
    return len(bases) == 2 and bases[0].__module__.startswith("torch.distributed.")


def is_spread(weight: Any) -> bool:
    """True if a weight is distributed over several processes."""
    return hasattr(weight, "placements") and hasattr(weight, "to_local")


def spread_weights(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """(weight, what a process computes with in its place) of a module's own weights that are spread over processes.

    That holds no values: the whole weight where `fully_shard` gathers it first, else the part of this process. Raises
    ValueError where a weight is both gathered and used in parts.
    """
    gathered = any(name in vars(module) for name in GATHERED)
    for weight in module._parameters.values():
        if is_spread(weight):
            spread: Any = weight
            if gathered and sum(not placement.is_replicate() for placement in spread.placements) > 1:
                raise ValueError("weights are sharded by fully_shard and by tensor parallelism at once")
            size = spread.shape if gathered else spread.to_local().shape
            used = torch.empty(size, dtype=spread.dtype, device="meta")
            yield spread, nn.Parameter(used, requires_grad=spread.requires_grad)
