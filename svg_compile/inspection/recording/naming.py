"""The names of a model's layers, also where a graph begins at a submodule.

A graph names its layers from the module that it was traced from. That is the model itself where the whole of it is
compiled, and a block of it where blocks are: all blocks then share one graph, and one name. The parameter that the
graph was called with says which block it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from svg_compile._compat.modules import WRAPPER, has_child, uncompiled

# How `svg_compile.explain` shows a layer without a path: the attention is in the model's own forward.
WHOLE_MODEL = "(model)"


def parameter_name(model: nn.Module, parameter: Tensor) -> str | None:
    """The path of a parameter in a model, None where it is none of the model's."""
    return next((name for name, each in model.named_parameters() if each is parameter), None)


def layer_names(model: nn.Module | None, parameter: str | None, layers: Sequence[str]) -> tuple[str, ...]:
    """The layers of a graph, each named from `model` on.

    parameter: the path in `model` of a parameter that the graph was called with, None where that is not known.
    layers: the graph's own names.
    """
    root = () if model is None or parameter is None else _root(model, parameter, [layer for layer in layers if layer])
    paths = (".".join(part for part in (*root, *layer.split(".")) if part not in (WRAPPER, "")) for layer in layers)
    return tuple(path or WHOLE_MODEL for path in paths)


def numbered(names: Iterable[str]) -> tuple[str, ...]:
    """The names, those that come more than once with a number: `attn#0`, `attn#1`."""
    names = tuple(names)
    often, met = Counter(names), Counter[str]()
    out = []
    for name in names:
        out.append(name if often[name] == 1 else f"{name}#{met[name]}")
        met[name] += 1
    return tuple(out)


def _root(model: nn.Module, parameter: str, layers: Sequence[str]) -> tuple[str, ...]:
    """The path of the module that a graph was traced from: the deepest one above the parameter that has the layers."""
    parts = parameter.split(".")
    if not layers:
        return ()
    for depth in range(len(parts) - 1, 0, -1):
        module = model.get_submodule(".".join(parts[:depth]))
        if all(_has(module, layer) for layer in layers):
            return tuple(parts[:depth])
    return ()


def _has(module: nn.Module, path: str) -> bool:
    for name in path.split("."):
        module = uncompiled(module)
        if not has_child(module, name):
            return False
        module = getattr(module, name)
    return True
