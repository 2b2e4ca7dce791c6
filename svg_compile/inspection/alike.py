"""The facts that decide how a module runs, as a value: modules of equal facts, called alike, run the same operators.

    the classes of the module and of all that it holds, and the names under which it holds them
    plain attributes, containers, functions with what they close over, objects by their attributes
    of parameters shape, strides, dtype and device; of other tensors their values too, where those are known
    plain values in the files that the classes come from, and on the classes; whether autocast and gradients are on

Any other object is compared by identity, so two modules with different such objects are not alike.
"""

from __future__ import annotations

import enum
import hashlib
import sys
import types
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from svg_compile._compat.subclasses import is_quantised

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, range, slice)
_SEQUENCES = (list, tuple)
# A larger container of a file is data: of it the length counts alone.
_FEW = 4096
# The attribute that a recorder sets on a module.
_LEFT_OUT = frozenset({"forward"})

Values = Callable[[Tensor], "Tensor | None"]


class Facts:
    """The facts of modules of one model. values: a tensor's values, None where nobody knows them."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._homes: dict[frozenset[type], list[Any]] = {}
        # Objects compared by identity are kept alive, so that no other object gets their id.
        self._kept: list[Any] = []

    def of(self, *things: Any) -> Hashable:
        """The facts of these things and of the process that they run in."""
        found = _Walk(self._values, self._kept)
        facts = tuple(found.fact(thing) for thing in things)
        return facts, self._around(frozenset(found.classes)), _torch_state()

    def _around(self, classes: frozenset[type]) -> Hashable:
        """The plain values of the files that classes come from, and of the classes."""
        if classes not in self._homes:
            bases = {base for each in classes for base in each.__mro__ if not _is_foreign(base.__module__)}
            files = {sys.modules[base.__module__] for base in bases if base.__module__ in sys.modules}
            self._homes[classes] = [*sorted(bases, key=repr), *sorted(files, key=repr)]
        return tuple(_plain_values(vars(home)) for home in self._homes[classes])


class _Walk:
    """One traversal of a module's attributes; an object that was met before is represented by its number."""

    def __init__(self, values: Values, kept: list[Any]) -> None:
        self._values = values
        self._met: dict[int, int] = {}
        # The same for temporary objects of this traversal, such as bound methods.
        self._kept = kept
        self.classes: set[type] = set()

    def fact(self, value: Any) -> Hashable:
        if isinstance(value, (enum.Enum, type)):
            self._kept.append(value)
            return "itself", id(value)
        if type(value) in _PLAIN:
            return type(value), repr(value)
        if id(value) in self._met:
            return "again", self._met[id(value)]
        self._met[id(value)] = len(self._met)
        self._kept.append(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, nn.Module):
            self.classes.add(type(value))
            return type(value), self._names(vars(value))
        return self._container(value)

    def _container(self, value: Any) -> Hashable:
        if isinstance(value, Mapping) and isinstance(value, dict):
            own = self._names(vars(value)) if hasattr(value, "__dict__") else ()
            return type(value), tuple((self.fact(key), self.fact(each)) for key, each in value.items()), own
        if isinstance(value, _SEQUENCES):
            return type(value), tuple(map(self.fact, value))
        if isinstance(value, (set, frozenset)) and all(type(each) in _PLAIN for each in value):
            return type(value), tuple(sorted(map(repr, value)))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return self.fact(value.__func__), self.fact(value.__self__)
        if isinstance(value, partial):
            return partial, self.fact(value.func), self.fact(value.args), self.fact(value.keywords)
        if type(value).__new__ is object.__new__ and hasattr(value, "__dict__") and not _slots(type(value)):
            self.classes.add(type(value))
            return type(value), self._names(vars(value))
        return "itself", id(value)

    def _names(self, attributes: Mapping[str, Any]) -> Hashable:
        return tuple((name, self.fact(value)) for name, value in attributes.items() if name not in _LEFT_OUT)

    def _function(self, value: types.FunctionType) -> Hashable:
        cells = []
        for cell in value.__closure__ or ():
            try:
                cells.append(self.fact(cell.cell_contents))
            except ValueError:
                cells.append("empty")
        more = self.fact(value.__defaults__), self.fact(value.__kwdefaults__), self.fact(vars(value))
        return id(value.__code__), id(value.__globals__), tuple(cells), more

    def _tensor(self, value: Tensor) -> Hashable:
        if is_quantised(value):
            flatten = getattr(value, "__tensor_flatten__", None)
            if flatten is None:
                return "itself", id(value)
            names, context = flatten()
            return type(value), tuple(self.fact(getattr(value, name)) for name in names), self.fact(context)
        shape = tensor_facts(value)
        if isinstance(value, nn.Parameter) and value.is_floating_point():
            return shape
        known = self._values(value)
        if known is not None:
            flat = known.detach().cpu().contiguous().view(-1).view(torch.uint8)
            return shape, hashlib.sha256(flat.numpy().tobytes()).digest()
        # Code of the model cannot read values that are not known, so parameters and buffers of one shape are alike.
        # Another tensor may be an input of the model, and is compared by identity.
        return shape if isinstance(value, (nn.Parameter, nn.Buffer)) else (shape, id(value))


def tensor_facts(value: Tensor) -> Hashable:
    """Class, shape, strides, dtype, device and requires_grad of a tensor."""
    return type(value), value.shape, value.stride(), value.dtype, value.device, value.requires_grad


def _slots(cls: type) -> bool:
    """True if objects of a class have state outside of their `__dict__`."""
    return any(name not in ("__dict__", "__weakref__") for base in cls.__mro__ for name in _names_of_slots(base))


def _names_of_slots(cls: type) -> Iterable[str]:
    found = vars(cls).get("__slots__", ())
    return (found,) if isinstance(found, str) else found


def _is_foreign(home: str) -> bool:
    return home.partition(".")[0] in sys.stdlib_module_names or home.partition(".")[0] == "torch"


def _plain_values(names: Mapping[str, Any]) -> Hashable:
    # Names with underscores too: `_LAYER = 3` is as good a global as any.
    shown = ((name, value) for name, value in names.items() if not _is_dunder(name))
    return tuple((name, repr(value) if _is_plain(value) else _length(value)) for name, value in shown)


def _length(value: Any) -> int | None:
    """The length of a container that is too large to compare, or holds other things than plain values."""
    return len(value) if isinstance(value, (*_SEQUENCES, set, frozenset, dict)) else None


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _is_plain(value: Any, depth: int = 3) -> bool:
    if type(value) in _PLAIN:
        return True
    if not depth or not isinstance(value, (*_SEQUENCES, set, frozenset, dict)) or len(value) > _FEW:
        return False
    each = [*value, *(value.values() if isinstance(value, dict) else ())]
    return all(_is_plain(one, depth - 1) for one in each)


def _torch_state() -> Hashable:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        *((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")),
    )
