"""A structural clone of a model, to be traced in its place: what happens to it happens to nobody else.

    the same classes and submodules, tied where they are tied; parameters, buffers and other tensors replaced by what
    the caller makes of them; attributes, lists, dictionaries and plain objects (processors, states) copied
    no compiled calls, no wrapped forwards and no hooks of libraries that move weights, cast them or skip work

Hooks that may move tokens stay on the clone where Dynamo can trace them, and a wrapped forward is refused by name.
"""

from __future__ import annotations

import enum
import sys
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from svg_compile._compat.modules import HOOK_TABLES, uncompiled
from svg_compile._compat.spread import GATHERED, class_of, spread_weights
from svg_compile._compat.subclasses import is_quantised, rebuilt
from svg_compile.errors import WrappedForward

# Libraries whose hooks leave the tokens of every attention as they are: they move or cast weights and inputs, skip
# blocks or reuse their results, and gather what is spread over processes.
_HARMLESS = ("diffusers.hooks.", "accelerate.hooks", "cache_dit.", "torch.distributed.", "svg_compile.")
# Where they keep the hooks of a module, and the forward that they replaced.
_HOOKS_OF = ("_diffusers_hook", "_hf_hook")
KEPT_FORWARD = "_original_forward"
_FORWARDS_OF = ("_old_forward", KEPT_FORWARD)
_LEFT_OFF = (*_HOOKS_OF, *_FORWARDS_OF, *GATHERED, "forward", "_compiled_call_impl")
# The attribute that splits the tokens over processes; without it each process has the whole sequence.
_PARALLEL = "_parallel_config"

TensorMap = Callable[[Tensor, "torch.dtype | None"], Tensor]


def bare_clone(value: Any, tensor: TensorMap) -> Any:
    """The clone of a module, or of anything that holds modules and tensors.

    tensor: (tensor, dtype to compute in, None for its own) -> what stands for it in the clone; called once a tensor.
    Raises WrappedForward where a module's forward was replaced by what is not known to leave tokens alone.
    """
    return _Cloner(tensor).clone(value, "")


class _Cloner:
    def __init__(self, tensor: TensorMap) -> None:
        self.tensor = tensor
        # By id: the original, kept alive, and its clone.
        self.made: dict[int, tuple[Any, Any]] = {}

    def clone(self, value: Any, path: str, dtype: torch.dtype | None = None) -> Any:
        """The clone of a value; the value itself where it holds nothing that could be written."""
        if id(value) in self.made:
            return self.made[id(value)][1]
        if isinstance(value, nn.Module):
            return self._module(value, path)
        if isinstance(value, Tensor):
            twin = rebuilt(value, partial(self.clone, path=path, dtype=dtype)) if is_quantised(value) else None
            return self._note(value, self.tensor(value, dtype)) if twin is None else self._filled(value, twin, path)
        kind = type(value)
        if kind in (list, set, dict, OrderedDict, defaultdict):
            return self._container(value, path, dtype)
        if isinstance(value, tuple):
            parts = [self.clone(part, path, dtype) for part in value]
            if all(new is old for new, old in zip(parts, value)):
                return value
            return kind(*parts) if hasattr(kind, "_fields") else tuple(parts)
        if isinstance(value, types.MethodType):
            owner = self.clone(value.__self__, path)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if isinstance(value, partial):
            return partial(
                self.clone(value.func, path), *self.clone(value.args, path), **self.clone(value.keywords, path)
            )
        return self._object(value, path) if is_plain_object(value) else value

    def _note(self, value: Any, twin: Any) -> Any:
        self.made[id(value)] = (value, twin)
        return twin

    def _filled(self, value: Tensor, twin: Tensor, path: str) -> Tensor:
        """The clone of a quantised tensor with the attributes of its own: scales, states, the module it is in."""
        self._note(value, twin)
        for name, entry in vars(value).items():
            if name not in vars(twin):
                setattr(twin, name, self.clone(entry, path))
        return twin

    def _container(self, value: Any, path: str, dtype: torch.dtype | None) -> Any:
        empty = defaultdict(value.default_factory) if isinstance(value, defaultdict) else type(value)()
        twin = self._note(value, empty)
        if isinstance(value, Mapping):
            twin.update({key: self.clone(entry, path, dtype) for key, entry in value.items()})
        elif isinstance(value, list):
            twin.extend(self.clone(entry, path, dtype) for entry in value)
        else:
            twin.update(self.clone(entry, path, dtype) for entry in value)
        return twin

    def _object(self, value: Any, path: str) -> Any:
        twin = self._note(value, object.__new__(type(value)))
        for name, entry in vars(value).items():
            vars(twin)[name] = None if name == _PARALLEL else self.clone(entry, path)
        return twin

    def _module(self, module: nn.Module, path: str) -> nn.Module:
        plain = uncompiled(module)
        if plain is not module:
            return self._note(module, self.clone(plain, path))
        forward = _forward_of(module, path)
        dtype = next((found for hook in _hooks(module) if (found := _compute_dtype(hook)) is not None), None)
        cls = class_of(module)
        twin = self._note(module, cls.__new__(cls))
        self._note_spread(module, path, dtype)
        for name, entry in vars(module).items():
            if name in _LEFT_OFF:
                continue
            if name == "_modules":
                entry = {key: self.clone(child, f"{path}.{key}".lstrip(".")) for key, child in entry.items()}
            elif name in HOOK_TABLES:
                entry = self._kept_hooks(entry, path)
            elif name == _PARALLEL:
                entry = None
            else:
                entry = self.clone(entry, path, dtype)
            vars(twin)[name] = entry
        if forward is not None:
            vars(twin)["forward"] = types.MethodType(forward, twin)
        return twin

    def _note_spread(self, module: nn.Module, path: str, dtype: torch.dtype | None) -> None:
        """Let what a process computes with stand for the weights of a module that are spread over processes."""
        try:
            for weight, used in spread_weights(module):
                if id(weight) not in self.made:
                    self._note(weight, self.tensor(used, dtype))
        except ValueError as error:
            raise WrappedForward(f"{error}, in {path or 'the model'} ({type(module).__name__})") from error

    def _kept_hooks(self, hooks: Any, path: str) -> Any:
        """The hooks of a table but those of libraries that leave tokens alone."""
        kept = {key: hook for key, hook in hooks.items() if not _is_harmless(hook)}
        return type(hooks)((key, self.clone(hook, path)) for key, hook in kept.items())


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks that diffusers and accelerate put around a module's forward."""
    found: list[Any] = []
    for hook in (vars(module).get(name) for name in _HOOKS_OF):
        several = getattr(hook, "hooks", None)
        if several is None:
            found += [] if hook is None else [hook]
        else:
            found += several.values() if isinstance(several, Mapping) else several
    return found


def _compute_dtype(hook: Any) -> torch.dtype | None:
    """The dtype that a casting hook has a module's weights in while it runs."""
    dtype = getattr(hook, "compute_dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else None


def _forward_of(module: nn.Module, path: str) -> types.FunctionType | None:
    """The function that a module runs in the place of its class' forward; None where it runs that one.

    Raises WrappedForward where it runs anything but a method of its own and harmless hooks around that.
    """
    where = f"{path or 'the model'} ({type(module).__name__})"
    for hook in _hooks(module):
        if not _is_harmless(hook):
            raise WrappedForward(f"the hook {_name(hook)} around {where} is not known to leave the tokens alone")
    forward, kept = vars(module).get("forward"), dict(vars(module))
    while forward is not None and not is_own_method(forward, module):
        # What torch.compile returned for a forward keeps the forward; so do hooks, by functools.update_wrapper, which
        # may name the hook itself, or be another attribute of the module.
        inner = getattr(forward, "_torchdynamo_orig_callable", None)
        if inner is None and _is_harmless(getattr(forward, "func", forward)):
            inner = getattr(forward, "__wrapped__", None) or kept.pop(KEPT_FORWARD, None)
        if inner is None:
            raise WrappedForward(f"the forward of {where} was replaced by {_name(forward)}")
        forward = inner
    function: types.FunctionType | None = getattr(forward, "__func__", None)
    return None if function is getattr(type(module), "forward", None) else function


def is_own_method(forward: Any, module: nn.Module) -> bool:
    """True if a callable is a method of the module's class bound to the module, which works on the clone, too.

    A function from elsewhere may keep state between calls, as step caches do that leave blocks out.
    """
    function = getattr(forward, "__func__", None)
    if function is None or getattr(forward, "__self__", None) is not module:
        return False
    return any(each is function for kind in type(module).__mro__ for each in vars(kind).values())


def _is_harmless(hook: Any) -> bool:
    hook = getattr(hook, "func", hook) if isinstance(hook, partial) else hook
    owner = getattr(hook, "__self__", None)
    home = getattr(hook, "__module__", None) or type(hook).__module__
    if owner is not None and not isinstance(owner, (nn.Module, types.ModuleType)):
        home = type(owner).__module__
    return str(home).startswith(_HARMLESS)


def _name(value: Any) -> str:
    value = getattr(value, "func", value)
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def is_plain_object(value: Any) -> bool:
    """True if a value is an instance of an ordinary Python class, and no module-level singleton of its class' file."""
    kind = type(value)
    if kind.__new__ is not object.__new__ or not hasattr(value, "__dict__") or isinstance(value, (type, enum.Enum)):
        return False
    home = kind.__module__.partition(".")[0]
    if home in sys.stdlib_module_names or home in ("torch", "numpy", "builtins"):
        return False
    return not any(value is one for one in vars(sys.modules.get(kind.__module__, types)).values())
