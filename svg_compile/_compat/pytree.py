"""Nests of tuples, lists and dictionaries, flattened and mapped. torch has no public name for these in Python."""

from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only

__all__ = ["tree_flatten", "tree_leaves", "tree_map", "tree_map_only"]
