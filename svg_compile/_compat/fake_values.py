"""Fake tensors of which some know their values, so that a traced model may read what follows from constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from svg_compile._compat.pytree import tensors_in, tree_map
from svg_compile._compat.storages import storage_of

# Values of at most this many elements are kept and computed with.
MOST_ELEMENTS = 2**20
# A tensor of at most this many elements says how large something is, not what is in a video.
FEW = 64
# Raised by an operator whose result, or its shape, depends on an unknown value.
READS_VALUE = (DataDependentOutputException, DynamicOutputShapeException)
_ATEN = torch.ops.aten


class LostWrite(RuntimeError):
    """An unknown value was written into a tensor with data, which cannot represent it."""


class ValueMode(FakeTensorMode):
    """A fake tensor mode that also computes values, where all operands' values are known.

    Real tensors that meet its fake ones are taken by their values. `unknown` values, of weights and of the graphs'
    results, have a shape, a dtype and a device only: reading one raises one of `READS_VALUE`.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        # Storages that belong to the caller: their values may be read, and are forgotten where they would be written.
        self._borrowed: set[int] = set()
        # Called with each operator that runs on a fake tensor: itself, its arguments and what it returned.
        self.listener: Callable[[Any, Any, Any, Any], object] | None = None
        self._depth = 0
        # True if so many elements of a tensor were read that they could be a video's values.
        self.data_was_read = False

    def unknown(self, like: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of the shape and strides of `like` (which may be a meta tensor), with unknown values."""
        with self:
            return torch.empty_strided(like.shape, like.stride(), dtype=dtype, device=device)

    def known(self, tensor: Tensor) -> Tensor:
        """A fake tensor with the values of a real one, which it owns from now on."""
        made = self.fake_tensor_converter.from_real_tensor(self, tensor, make_constant=True)
        return made if self.value(made) is not None else self.unknown(tensor, tensor.dtype, tensor.device)

    def borrowed(self, tensor: Tensor) -> Tensor:
        """As `known`, for a tensor that must not be mutated."""
        self._borrowed.add(storage_of(tensor))
        return self.known(tensor)

    def is_borrowed(self, tensor: Tensor) -> bool:
        """True if a tensor's values must not be mutated: a real tensor, or one made by `borrowed`."""
        value = self.value(tensor)
        return value is tensor or (value is not None and storage_of(value) in self._borrowed)

    def value(self, tensor: Tensor) -> Tensor | None:
        """The value of a tensor of this mode, or of a real one; None if it is unknown."""
        if isinstance(tensor, FakeTensor):
            return tensor.constant if tensor.fake_mode is self else None
        return tensor if self.may_turn_const(tensor) else None

    def forget(self, tensor: Tensor) -> None:
        """Make the values of a fake tensor, and of all that share its storage, unknown."""
        if isinstance(tensor, FakeTensor) and tensor.constant is not None:
            self.fake_tensor_converter.invalidate_constant_aliases(tensor.constant)

    def may_turn_const(self, t: Tensor) -> bool:
        plain = type(t) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) and t.layout is torch.strided
        return plain and t.device.type != "meta" and not t.is_quantized and t.numel() <= MOST_ELEMENTS

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._depth += 1
        try:
            out = self._dispatch(func, types, args, kwargs or {})
        finally:
            self._depth -= 1
        # Report only the outermost operator, not those that it decomposes into.
        if self.listener is not None and not self._depth and isinstance(func, torch._ops.OpOverload):
            self.listener(func, args, kwargs or {}, out)
        return out

    def _dispatch(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(func, torch._ops.OpOverload):
            self._before_write(func, args, kwargs)
            if func is _ATEN._local_scalar_dense.default:
                self._note_read(args[0])
            args, kwargs = tree_map(self._with_value, (args, kwargs))
            if func is _ATEN.masked_select.default and (picked := _picked(*args, **kwargs)) is not None:
                func, args, kwargs = _ATEN.index.Tensor, picked, {}
            if func is _ATEN.index.Tensor:
                args = (args[0], [index for each in args[1] for index in _as_places(each)], *args[2:])
        return super().dispatch(func, types, args, kwargs)

    def _note_read(self, tensor: Tensor) -> None:
        value = self.value(tensor)
        if value is not None:
            count = value.untyped_storage().nbytes() // value.element_size()
            self.data_was_read = self.data_was_read or count > FEW

    def _with_value(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor) or not self.may_turn_const(value):
            return value
        return self.known(value.detach())

    def _before_write(self, func: Any, args: Any, kwargs: Any) -> None:
        """Refuse to write an unknown value into real data; forget values that belong to the caller instead of them."""
        targets = list(written(func, args, kwargs))
        unknown = any(self.value(leaf) is None for leaf in tensors_in((args, kwargs)))
        for target in targets:
            if not isinstance(target, FakeTensor):
                if unknown:
                    raise LostWrite(f"{func} writes an unknown value")
            elif target.constant is not None and storage_of(target.constant) in self._borrowed:
                self.forget(target)


def written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors among the arguments that an operator writes."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from tensors_in(given)


def _picked(self: Any, mask: Any) -> tuple[Any, list[Any]] | None:
    """(tensor, index) of a selection by a mask whose values are known, so that the shape of it is; None by others."""
    if not isinstance(mask, FakeTensor) or mask.constant is None:
        return None
    shape = torch.broadcast_shapes(self.shape, mask.shape)
    return self.expand(shape), [mask.expand(shape)]


def _as_places(index: Any) -> list[Any]:
    """A boolean index as the places where it is true, so that the shape of the result is known; others as they are."""
    if isinstance(index, FakeTensor) and index.constant is not None and index.dtype in (torch.bool, torch.uint8):
        return list(torch.ops.aten.nonzero(index).unbind(1))
    return [index]
