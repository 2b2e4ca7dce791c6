"""Attention that runs as plain Python in a module whose grid is proven.

Hooks at every layer (layerwise casting, leaf-level and sequential offloading), caches that switch compiling off in
their forward (MagCache) and Dynamo's recompile limit leave no graph of the block that a marker could stand in; a block
that calls a function outside of compilation for its attention has none in its graphs. There the attention is compiled
by itself: while the marked module runs, its calls of `scaled_dot_product_attention`, or of another operator that
`passes.attention_operators` reads, go to one small compiled function, which marks the query with the grid; the passes,
the schedule, plans and recordings are those of any other graph. The rest of the module runs as Python.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from svg_compile._compat.compiled import CompileCall
from svg_compile._compat.graphs import SDPA
from svg_compile._compat.operators import results_of
from svg_compile._compat.subclasses import referable
from svg_compile.config import split_options
from svg_compile.passes.attention_operators import (
    AttentionCall,
    in_first,
    read_call,
    result_of,
    sdpa_arguments,
)
from svg_compile.passes.grid_marker import OF_BLOCK, Marker, entries_of
from svg_compile.passes.packed_sequences import of_the_second, sequences
from svg_compile.regional.blocks import is_in
from svg_compile.regional.forward import Attending, Forward

Attend = Callable[..., Tensor]


def attention_by_itself(call: CompileCall) -> Attend | None:
    """The function that runs one attention sparse, compiled as the model was; None where its options ask for none."""
    config, _ = split_options(call.arguments.get("options"), call.arguments.get("mode"))
    if config.always_dense or not config.eager_attention:
        return None

    def attend(text: str, sizes: Sequence[Tensor], query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        marked = torch.ops.svg.mark(query, text, sizes)
        return torch.nn.functional.scaled_dot_product_attention(marked, *args, **kwargs)

    # Code of its own has a recompile limit of its own.
    attend.__code__ = attend.__code__.replace()
    compile_: Any = torch.compile
    compiled: Attend = compile_(attend, backend=call.backend, dynamic=call.dynamic, **call.arguments)
    return compiled


def of_this_backend(call: CompileCall) -> bool:
    """True if a compile's backend, and so its options, are this package's."""
    return getattr(call.backend, "__module__", "").partition(".")[0] == "svg_compile"


def why_not_alone(marker: Marker) -> str:
    """Why the grids of a module's calls of attention are ambiguous outside of a graph; "" where they can."""
    if marker.text.startswith(OF_BLOCK):
        return "the block itself calls it; put it into a module of its own, or take off what keeps the block uncompiled"
    if len({entry for entry in entries_of(marker) if entry[1]}) > 1:
        return "its module holds attentions of several grids"
    return ""


@dataclass
class PlainAttention(TorchFunctionMode):
    """While it is entered one marked module's attentions run sparse; Dynamo does not watch the module."""

    forward: Forward
    attending: Attending
    attend: Attend
    marker: Marker
    sizes: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        expected = len(entries_of(self.marker))
        if self.calls == expected:
            self.forward.served.add(self.attending.layer)
        elif self.calls or self.attending.layer not in self.forward.served:
            # Another attention function, or another branch: what ran was not what the trace saw. One that has run as
            # traced before, and does not run now, is left out by a cache.
            self.forward.dense[self.attending.layer] = (
                f"it called scaled_dot_product_attention {self.calls} times, and {expected} times when the whole model "
                "was traced; if it uses another attention backend, select the native one"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = None if func is SDPA else read_call(func, args, kwargs)
        call = read if isinstance(read, AttentionCall) and sequences(read) is not None else None
        if func is not SDPA and call is None:
            return func(*args, **kwargs)
        entries, self.calls = entries_of(self.marker), self.calls + 1
        text, sizes = entries[self.calls - 1] if self.calls <= len(entries) else ("", ())
        if not sizes:
            return func(*args, **kwargs)
        given, named = (args, dict(kwargs)) if call is None else sdpa_arguments(call)
        query, *given = given if given else (named.pop("query"),)
        self.forward.attending = self.attending
        try:
            # All of the module's grids are the same: the first numbers that its marker carries.
            out = self.attend(text, self.sizes[: len(sizes)], query, *given, **named)
        finally:
            self.forward.attending = None
        if call is None:
            return out
        out = result_of(call, out)
        if call.lengths is not None and sequences(call) == 2:
            given, named = of_the_second(call, func, args, kwargs)
            rest = func(*given, **named)
            first = in_first(call.lengths[0], call.query)[:, None, None]
            out = torch.where(first, out, rest if call.operator.alone else rest[0])
        # Contiguous, as the operator stores it. Its other results are missing: code that reads one fails.
        out = out.contiguous()
        return out if call.operator.alone else (out, *[None] * (results_of(func) - 1))


class PlainAttentions:
    """The contexts of one model's marked modules that run as plain Python."""

    def __init__(self, model: Callable[[], nn.Module | None]) -> None:
        self._model = model
        # The marked modules, by path: a cache may put others in their places while the model runs.
        self.marked: weakref.WeakValueDictionary[str, nn.Module] = weakref.WeakValueDictionary()
        # The function that runs one attention, by how the model was compiled.
        self._alone: dict[str, Attend | None] = {}
        self._told: set[str] = set()

    def beside(
        self,
        forward: Forward,
        blocks: Mapping[str, CompileCall | None],
        whole: CompileCall | None,
        path: str,
        sizes: tuple[Tensor, ...],
    ) -> PlainAttention | None:
        """The context manager in which a marked module runs; None if its attention stays dense.

        blocks, whole: how the blocks were compiled, by path, and the whole model, if it was.
        """
        model, marker = self._model(), (forward.markers or {})[path]
        if model is None or not marker.has_grid:
            return None
        own = [compiled for at, compiled in blocks.items() if is_in(path, at)]
        call = own[0] if own else whole
        why = "the options of its compile are not known"
        why = why if call is None or not of_this_backend(call) else why_not_alone(marker)
        if why or call is None:
            forward.dense[path] = why
            return None
        key = repr(call)
        if key not in self._alone:
            self._alone[key] = attention_by_itself(call)
        attend, module = self._alone[key], self.marked.get(path)
        if attend is None or module is None:
            return None
        attending = Attending(model, path, next(iter(referable(module.parameters())), None), forward.sparse.index(path))
        return PlainAttention(forward, attending, attend, marker, sizes)

    def tell(self, forward: Forward) -> None:
        """Warn of attentions of a forward that stayed dense, once for each reason."""
        for path, why in forward.dense.items():
            if why not in self._told:
                self._told.add(why)
                more = f" and {len(forward.dense) - 1} more" if len(forward.dense) > 1 else ""
                warnings.warn(
                    f"svg: the attention of {path}{more} ran as plain Python, in no compiled graph, and stayed dense: "
                    f"{why}.",
                    stacklevel=3,
                )
