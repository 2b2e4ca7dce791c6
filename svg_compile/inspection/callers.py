"""Who runs now, by the frames of the Python stack: the module of a traced model, and the line of its code."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, MethodType
from typing import Any

import torch
from torch import nn

from svg_compile.passes import node_origin

# Code that is no model's: its lines say nothing to a reader.
_OURS = str(Path(__file__).parent.parent)
_NOT_THE_MODELS = (str(Path(torch.__file__).parent), _OURS, str(Path(node_origin.__file__).parent), "<")


class Callers:
    """The modules of one model, by their paths."""

    def __init__(self, model: Any) -> None:
        modules = list(model.named_modules()) if isinstance(model, nn.Module) else []
        self._paths = {id(module): path for path, module in modules}
        self._known = {path for path, _ in modules}

    def layer(self, within: str = "") -> str:
        """The path of the module that runs; `within` is one as a graph has it, which knows the function it was traced
        from: below that function's `self`, or below another of its arguments. Behind a graph break these may be what
        stood on the interpreter's stack: a module, or a method of one, whose arguments were being computed.
        """
        for frame in frames():
            local = frame.f_locals
            first, _, rest = within.partition(".")
            owner = local.get(first)
            owner = owner.__self__ if isinstance(owner, MethodType) else owner
            if id(owner) in self._paths:
                return self._join(self._paths[id(owner)], rest)
            if id(local.get("self")) in self._paths:
                return self._join(self._paths[id(local["self"])], within)
        return within

    def _join(self, path: str, within: str) -> str:
        whole = f"{path}.{within}".strip(".")
        return whole if whole in self._known else path or within


def frames() -> Iterator[FrameType]:
    """The frames of this thread, innermost first, without those of this package."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_OURS):
            yield frame
        frame = frame.f_back


def place() -> str:
    """file:line of the model's code that runs; "" where there is none."""
    return next((line_of(frame) for frame in frames() if is_a_models(frame.f_code.co_filename)), "")


def stack() -> tuple[str, ...]:
    """file:line of each line on the way there, outermost first."""
    return tuple(line_of(frame) for frame in frames() if is_a_models(frame.f_code.co_filename))[::-1]


def line_of(frame: FrameType) -> str:
    """file:line that a frame is at."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def is_a_models(file: str) -> bool:
    """True if a file may be a model's code: it is not part of torch or of this package."""
    return not file.startswith(_NOT_THE_MODELS)
