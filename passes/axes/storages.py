"""The state of storages: which were written, which have invalid axes, and which may alias which.

A tensor that shares a storage with others is one of their views. Beyond that, the result of a graph that was not run
may be a view of any of that graph's operands, though it has a storage of its own here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from svg_compile._compat.storages import storage_of
from svg_compile.passes.axes.why import Why, under_analysis


class Storages:
    """The storages of the tensors of one run."""

    def __init__(self) -> None:
        # Storages that were written, or may have been.
        self.written: set[int] = set()
        # Those whose content no longer follows any tensor's axes, and since when; kept alive, for their identity is
        # the key.
        self._lost: dict[int, tuple[Any, Why | None]] = {}
        # Tensors that a storage may alias; the storage's own tensor is kept alive, too.
        self._aliases: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def is_lost(self, tensor: Tensor) -> bool:
        """True if a tensor's storage was invalidated."""
        return bool(self._lost) and storage_of(tensor) in self._lost

    def why_lost(self, tensor: Tensor) -> Why | None:
        """The operator that invalidated a tensor's storage."""
        return self._lost[storage_of(tensor)][1]

    def invalidate(self, tensor: Tensor, but: int | None = None) -> None:
        """Nothing is known any more of a tensor, of what shares its storage, and of what it may be a view of.

        but: a storage of which it is known what was written.
        """
        storage = tensor.untyped_storage()
        key = storage_of(tensor)
        self.written.add(key)
        if key not in self._lost:
            self._lost[key] = storage, under_analysis()
            self.invalidate_aliases(key, but)

    def invalidate_aliases(self, storage: int, but: int | None = None) -> None:
        """Invalidate what a storage may be a view of, but one storage."""
        for other in self._aliases[storage][1] if storage in self._aliases else ():
            if storage_of(other) != but:
                self.invalidate(other, but)

    def restore(self, tensor: Tensor) -> None:
        """Mark a tensor's storage as valid again."""
        self._lost.pop(storage_of(tensor), None)

    def may_alias(self, tensor: Tensor, others: list[Tensor]) -> None:
        """`tensor` may be a view of one of the others, though it has another storage here."""
        before = self._aliases[storage_of(tensor)][1] if storage_of(tensor) in self._aliases else []
        self._aliases[storage_of(tensor)] = tensor, [*before, *others]

    def is_uncertain(self, tensor: Tensor) -> bool:
        """True if a tensor's storage was invalidated, or may alias another one."""
        return storage_of(tensor) in self._aliases or storage_of(tensor) in self._lost

    def groups(self, tensors: Sequence[Tensor]) -> list[list[int]]:
        """The places of those tensors that may be views of one storage: several to a group."""
        group: dict[int, int] = {}

        def leader(storage: int) -> int:
            while group.get(storage, storage) != storage:
                storage = group[storage]
            return storage

        for storage, (_, others) in self._aliases.items():
            for other in others:
                group[leader(storage_of(other))] = leader(storage)
        found: dict[int, list[int]] = {}
        for place, tensor in enumerate(tensors):
            found.setdefault(leader(storage_of(tensor)), []).append(place)
        return [places for places in found.values() if len(places) > 1]
