"""Run a model's Python code and leave the model as it was: attributes, buffers, inputs, random numbers.

A model on the meta device gets tensors without data that claim a real device for the time, so that a model of any
size can be traced on any machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from svg_compile._compat.graphs import is_fake, new_fake_mode, version_of
from svg_compile._compat.pytree import tensors_in, tree_leaves, tree_map

_META = torch.device("meta")


def module_of(model: Callable[..., Any]) -> nn.Module | None:
    """The module that a callable is, or is a method of."""
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def untouched(module: nn.Module | None, inputs: Any, device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Yields `inputs` to call the model with; meta tensors among them, and of the model, pretend to be on `device`.

    Also returned: the fake tensor mode of the tensors without data, None where all have data.
    At the end every attribute of the modules and what their lists, sets and dictionaries hold is what it was, and so
    are buffers, inputs and the random number generators. A parameter that Python code writes in place stays written.
    """
    modules = list(module.modules()) if module is not None else []
    attributes = [(vars(each), dict(vars(each))) for each in modules]
    containers = [(value, _copy(value)) for each in modules for value in vars(each).values() if _is_container(value)]
    written = [buffer for each in modules for buffer in each._buffers.values()] + tree_leaves(inputs)
    values = [
        (tensor, version_of(tensor), tensor.detach().clone())
        for tensor in written
        if isinstance(tensor, Tensor) and tensor.device != _META and not is_fake(tensor)
    ]
    devices = {tensor.device for tensor, _, _ in values} if torch.cuda.is_available() else set()
    python_random = random.getstate()
    try:
        with torch.random.fork_rng([each for each in devices if each.type == "cuda"]):
            for each in modules:
                # Disable `module.compile()`'s wrapper, or it would run instead of being traced.
                vars(each)["_compiled_call_impl"] = None
            mode = _mode_without_data(modules, inputs)
            yield (inputs if mode is None else _with_stand_ins(modules, inputs, device, mode)), mode
    finally:
        random.setstate(python_random)
        for live, saved in containers:
            _restore(live, saved)
        for live, saved in attributes:
            _restore(live, saved)
        for tensor, version, value in values:
            if version_of(tensor) != version:
                with torch.no_grad():
                    tensor.copy_(value)


def _mode_without_data(modules: list[nn.Module], inputs: Any) -> Any:
    """The fake tensor mode to use where a parameter, buffer or input has no data: its own, or a new one for meta."""
    tensors = tensors_in(inputs)
    for each in modules:
        tensors += [
            value for names in (each._parameters, each._buffers) for value in names.values() if value is not None
        ]
    fakes: list[Any] = [tensor for tensor in tensors if is_fake(tensor)]
    if fakes:
        return fakes[0].fake_mode
    return new_fake_mode() if any(tensor.device == _META for tensor in tensors) else None


def _with_stand_ins(modules: list[nn.Module], inputs: Any, device: torch.device, mode: Any) -> Any:
    # One stand-in a tensor: tied weights stay tied.
    made: dict[int, Tensor] = {}

    def stand_in(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.device != _META or is_fake(value):
            return value
        if id(value) not in made:
            with mode:
                fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
            is_parameter = isinstance(value, nn.Parameter)
            made[id(value)] = nn.Parameter(fake, value.requires_grad) if is_parameter else fake
        return made[id(value)]

    for each in modules:
        for names in (each._parameters, each._buffers, vars(each)):
            for name, value in list(names.items()):
                if (new := stand_in(value)) is not value:
                    names[name] = new
    return tree_map(stand_in, inputs)


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list, set))


def _copy(value: Any) -> Any:
    return set(value) if isinstance(value, set) else list(value.items()) if isinstance(value, dict) else list(value)


def _restore(live: Any, saved: Any) -> None:
    """Put a container's own elements back; one that has them still is not written at all."""
    if isinstance(live, dict):
        pairs = list(saved.items()) if isinstance(saved, dict) else saved
        same = len(live) == len(pairs) and all(a == c and b is d for (a, b), (c, d) in zip(live.items(), pairs))
        if not same:
            live.clear()
            live.update(pairs)
    elif isinstance(live, list):
        if len(live) != len(saved) or any(a is not b for a, b in zip(live, saved)):
            live[:] = saved
    elif live != saved:
        live.clear()
        live.update(saved)
