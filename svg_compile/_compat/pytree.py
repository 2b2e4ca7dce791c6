"""Nests of tuples, lists and dictionaries, flattened and mapped. torch has no public name for these in Python."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only

__all__ = ["tensors_in", "tree_flatten", "tree_leaves", "tree_map", "tree_map_only"]


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a nest, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
