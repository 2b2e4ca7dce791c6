"""Where a node of a traced graph comes from: its layer's module path and its line in the model's code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from torch import fx

from svg_compile._compat.modules import WRAPPER

# Parts of a traced path that are no module: Dynamo's locals, and how a hook that wraps `forward` reaches its module.
_NO_MODULE = {"", "L", "self", "_modules", "__dict__", WRAPPER, "forward", "original_forward", "_old_forward"}
_NO_MODULE |= {"function_reference", "fn_ref", "func", "cell_contents", "_diffusers_hook", "_hf_hook"}
_WITH_INDEX = ("__closure__", "__defaults__", "args")


def layer_of(node: fx.Node) -> str:
    """The module path of the layer that made the node, "" where the graph does not say."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values()]
    if not paths:
        return ""
    return ".".join(_modules_in(re.sub(r"\[['\"]?([^'\"\]]+)['\"]?\]", r".\1", paths[-1]).split(".")))


def _modules_in(parts: list[str]) -> Iterator[str]:
    """The parts of a path that name modules: without attributes of functions, as behind a hook."""
    previous = ""
    for part in parts:
        dunder = part.startswith("__") and part.endswith("__")
        if not (dunder or part in _NO_MODULE or (previous in _WITH_INDEX and part.isdecimal())):
            yield part
        previous = part


def stack_of(node: fx.Node) -> tuple[str, ...]:
    """file:line of every source line on the way to the node, outermost first; empty where the graph does not say."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return tuple(f"{file}:{line}" for file, line in frames)


def source_of(node: fx.Node) -> str:
    """The innermost source line that made the node in the model's own file, which defines its outermost module.

    Libraries' dispatchers call SDPA in one place for all models: that line would say nothing. "" where there is none.
    """
    stack = stack_of(node)
    modules = (node.meta.get("nn_module_stack") or {}).values()
    outermost = next((entry[1] for entry in modules if isinstance(entry[1], type)), None)
    file = getattr(sys.modules.get(getattr(outermost, "__module__", "")), "__file__", None)
    own = [frame for frame in stack if frame.rpartition(":")[0] == file]
    return (own or list(stack) or [""])[-1]
