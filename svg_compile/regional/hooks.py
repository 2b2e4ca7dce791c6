"""The two hooks that regional compiles put on a user's model, which pickle and copy as if they were not there.

`ModelHook` stands on the model and sees each of its forwards; `Mark` on the module of each attention, where it puts a
marker (`svg_compile.passes.grid_marker`) into the graph that Dynamo traces. What a forward tells its attentions is of
the thread that it runs in: forwards of one model in several threads do not see each other's. Whether Dynamo traces is
asked by `is_dynamo_compiling`, since `is_compiling` is also true while another thread compiles.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from svg_compile._compat.compiled import break_graph, compile_call, let_dynamo_watch
from svg_compile.passes.grid_marker import Marker, carriers


class _Here(threading.local):
    """Per-thread state that the running forward passes to the hooks of an attention's module."""

    text: str | None = None
    outside: bool = False
    sizes: tuple[Tensor, ...] = ()
    beside: Callable[[tuple[Tensor, ...]], AbstractContextManager[object] | None] | None = None
    entered: AbstractContextManager[object] | None = None
    watching: Any = None


class _LeftOutOfPickles:
    def __reduce__(self) -> Any:
        # A hook that does nothing, and needs nothing of this package where it is loaded.
        return getattr, (contextlib.nullcontext(), "__exit__")


class Mark(_LeftOutOfPickles):
    """The forward pre-hook of one attention's module, or of a block that calls attention between its graphs.

    It marks what Dynamo traces. Where the module runs as plain Python, it runs within what `beside` returns.
    """

    def __init__(self) -> None:
        self.here = _Here()
        self._carriers: dict[Any, tuple[Tensor, ...]] = {}

    def tell(self, marker: Marker | None, device: torch.device, beside: Any = None) -> None:
        """Set what this thread's forward under way tells the attention; None tells nothing."""
        # A forward that was broken off (Ctrl-C runs no hooks) has left it.
        self.leave()
        self.here.beside = beside
        if marker is None:
            self.here.text = None
            return
        key = (marker.sizes, device)
        if key not in self._carriers:
            self._carriers[key] = carriers(marker.sizes, device)
        self.here.text, self.here.sizes, self.here.outside = marker.text, self._carriers[key], marker.outside

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            here = self.here
            if here.text is not None and here.beside is not None:
                here.watching = let_dynamo_watch(None)
                try:
                    here.entered = here.beside(here.sizes)
                finally:
                    if here.entered is None:
                        let_dynamo_watch(here.watching)
                if here.entered is not None:
                    here.entered.__enter__()
            return None
        text = self.here.text
        if text is None:
            return None
        if self.here.outside:
            # Dynamo has a graph in hand that this block would be a part of: it is called outside of it.
            break_graph()
            return None
        sizes = self.here.sizes
        for place, value in enumerate(args):
            if isinstance(value, Tensor):
                return (*args[:place], torch.ops.svg.mark(value, text, sizes), *args[place + 1 :]), kwargs
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                return args, {**kwargs, name: torch.ops.svg.mark(value, text, sizes)}
        return None

    def leave(self) -> bool:
        """End what the module ran within; returns whether it was in anything."""
        entered, self.here.entered = self.here.entered, None
        if entered is not None:
            entered.__exit__(None, None, None)
        return entered is not None


class MarkEnd(_LeftOutOfPickles):
    """The forward hook that ends what a `Mark` began where its module ran as plain Python."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark

    def __call__(self, *given: Any) -> None:
        if not torch.compiler.is_dynamo_compiling() and self.mark.leave():
            let_dynamo_watch(self.mark.here.watching)


class ModelHook(_LeftOutOfPickles):
    """A hook of the model itself: calls `outside(number, whole, call, *the hook's arguments)`, outside of any graph.

    whole: whether a compiled callable calls the model; call: how that was compiled, None where it is not known. Where
    Dynamo has the model's graph in hand the hook does nothing, so that the graph is the same without it; but where the
    model's own hooks break that graph anyway (`in_pieces(number)`), it breaks it once more.
    """

    def __init__(self, number: int, outside: Callable[..., None], in_pieces: Callable[[int], bool]) -> None:
        self.number = number
        self.outside = outside
        self.in_pieces = in_pieces
        # Dynamo guards it: where it changes, the model is compiled anew.
        self.broken = False

    def __call__(self, *given: Any) -> None:
        if not torch.compiler.is_dynamo_compiling():
            watching = let_dynamo_watch(None)
            try:
                call = compile_call(watching)
                self.outside(self.number, call is not None, call, *given)
            finally:
                let_dynamo_watch(watching)
        elif self.broken or self.in_pieces(self.number):
            self.outside(self.number, True, None, *given)
