"""Collectives over a named process group that compiled graphs may hold, and how they are recognised there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx


def all_gathered(tensor: Tensor, group: str, ranks: int) -> Tensor:
    """The tensors [N, ...] of all `ranks` processes of a group, one after another: [ranks * N, ...]."""
    pending = torch.ops._c10d_functional.all_gather_into_tensor(tensor, ranks, group)
    gathered: Tensor = torch.ops._c10d_functional.wait_tensor(pending)
    return gathered


def exchange_of(node: fx.Node) -> tuple[str, int, int] | None:
    """(group, rank of this process in it, number of its processes) of an all-to-all in a graph; None of other nodes."""
    if not torch.distributed.is_available() or node.target not in _all_to_all():
        return None
    group = node.args[3] if len(node.args) > 3 else node.kwargs.get("group_name")
    if not isinstance(group, str):
        return None
    # torch has a type of its own for these strings.
    name: Any = group
    try:
        process_group = torch.distributed.distributed_c10d._resolve_process_group(name)
    except (AttributeError, LookupError, RuntimeError, ValueError):
        # A group that this process does not know, or a torch that looks groups up in another way.
        return None
    return group, process_group.rank(), process_group.size()


def _all_to_all() -> tuple[Any, ...]:
    packet = torch.ops._c10d_functional.all_to_all_single
    return packet, packet.default
