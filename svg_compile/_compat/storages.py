"""The storage that tensors share."""

from __future__ import annotations

from torch import Tensor


def storage_of(tensor: Tensor) -> int:
    """What tells storages apart; of one that is gone, another may have it."""
    return tensor.untyped_storage()._cdata
