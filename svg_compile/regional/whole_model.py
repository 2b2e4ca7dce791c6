"""Models compiled block by block: give each block what only the whole model shows.

A block's graph (`compile_repeated_blocks`, `torch.compile` on single blocks) holds neither the token grid, nor the
timestep, nor the layer's number. The model around it runs as plain Python, so a hook on it sees each call:

    once for each kind of call (`call_guards`), the whole model is traced, which proves the grid of every attention;
    each attention's module gets a hook that marks its input with that grid (`svg_compile.regional.hooks`);
    the dispatcher of a block asks here for its layer's number and the call's timestep.

A model that is compiled whole is its own witness, and the hook does nothing; but where hooks of step caches or
offloading break its graph at every block, its blocks are served likewise, and so they are, from its second forward on,
where the backend has met attention behind a graph break of the model's own.
"""

from __future__ import annotations

import inspect
import threading
import warnings
import weakref
from collections.abc import Mapping
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from svg_compile._compat.compiled import (
    CompileCall,
    call_under_way,
    compile_call_of,
    forget_all_compiled,
    forget_compiled,
    guard_absent_hooks,
    let_dynamo_watch,
    no_graph_of_its_own,
)
from svg_compile._compat.graphs import is_fake
from svg_compile._compat.modules import add_end_hook, listed_blocks
from svg_compile._compat.pytree import tensors_in
from svg_compile._compat.subclasses import referable
from svg_compile.inspection.opened import opened
from svg_compile.passes.timestep_names import timestep_among
from svg_compile.regional.blocks import blocks_as_compiled, compiled_blocks, is_in
from svg_compile.regional.call_guards import arguments_of
from svg_compile.regional.forward import Forward, enter, leave, under_way
from svg_compile.regional.hooks import Mark, MarkEnd, ModelHook
from svg_compile.regional.known_calls import KnownCalls
from svg_compile.regional.plain_attention import PlainAttentions
from svg_compile.regional.unserved import why_unserved
from svg_compile.regional.wrappers import hides_grid


class Regions:
    """The compiled blocks of one model, served while anybody holds this.

    Markers without an owner are inactive, but stay: removing and re-adding them would recompile the blocks each time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.holders: set[int] = set()
        self._marks: dict[str, Mark] = {}
        self._known = KnownCalls(self._know)
        self._warned = False
        # Two threads may make the first call of a kind at once.
        self._lock = threading.RLock()
        self._model = weakref.ref(model)
        for function in (ModelHook.__call__, Mark.__call__, MarkEnd.__call__, Mark.leave, let_dynamo_watch):
            no_graph_of_its_own(function)
        self._plain = PlainAttentions(self._model)
        self._served: set[str] = set()
        number = next(_NUMBERS)
        _BY_NUMBER[number] = self
        self._hooks = before, after = ModelHook(number, _before, _in_pieces), ModelHook(number, _after, _in_pieces)
        # How a whole model was compiled that breaks its own graph before its attention.
        self._broken: CompileCall | None = None
        self._broken_anew = False
        self._handles: list[Any] = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, always_call=True),
        ]

    def remove(self) -> bool:
        """Take the hooks off a model that has no markers; returns whether they are off."""
        for handle in () if self._marks else self._handles:
            handle.remove()
        return not self._marks

    def in_pieces(self) -> bool:
        """True if hooks on modules hide the grid from the model's own graph, so that its blocks get markers."""
        model = self._model()
        return model is not None and bool(self.holders) and (self._broken is not None or hides_grid(model))

    def note_break(self, call: CompileCall | None) -> bool:
        """Attention of the model, which was compiled whole by `call`, stands behind a graph break that hides its grid.

        Returns whether its next forward is compiled anew, with its blocks marked.
        """
        if call is not None and self._broken is None and self.holders:
            self._broken, self._broken_anew = call, True
            for hook in self._hooks:
                hook.broken = True
        return self._broken_anew

    def before(self, whole: bool, call: CompileCall | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward begins. whole: a compiled callable runs it, which was compiled by `call`."""
        model = self._model()
        if model is None or not self.holders:
            return
        blocks = dict(compiled_blocks(model)) or (dict(listed_blocks(model)) if whole and self.in_pieces() else {})
        if not blocks:
            return
        call = call or (self._broken if whole else None)
        arguments = arguments_of(model, args, kwargs)
        if any(map(is_fake, tensors_in(opened(arguments)))):
            # An export: nothing runs.
            return
        with self._lock:
            if self._broken_anew:
                self._broken_anew = False
                forget_all_compiled(model)
            kind = self._known.grids(model, blocks, arguments, args, kwargs)
            markers, sparse = ({}, ()) if kind is None else (kind.markers, kind.sparse)
            for path in markers:
                if path not in self._marks:
                    self._mark(model, path, blocks)
        device = next((leaf.device for leaf in tensors_in(opened(arguments))), torch.device("cpu"))
        if self._marks:
            # Other models of the class may be compiled without markers; this one must not run their code.
            guard_absent_hooks()
        timestep = arguments.get(timestep_among(arguments) or "")
        forward = Forward(self, None if kind is None else markers, sparse, timestep, served=self._served)
        calls = {at: compile_call_of(block) for at, block in blocks_as_compiled(model)}
        for path, mark in list(self._marks.items()):
            marker = markers.get(path)
            mark.tell(
                marker, device, None if marker is None else partial(self._plain.beside, forward, calls, call, path)
            )
        enter(forward)

    def end_forward(self) -> None:
        """This thread's forward is over: tell the blocks nothing more."""
        for mark in list(self._marks.values()):
            mark.tell(None, torch.device("cpu"))
        leave(self)

    def after(self, finished: bool) -> None:
        """A forward is over; finished: without an error."""
        forward, model = under_way(self), self._model()
        self.end_forward()
        if forward is None or model is None or not finished:
            return
        self._plain.tell(forward)
        if not forward.ran and not self._warned:
            why = why_unserved(forward, model)
            if why is not None:
                self._warned = True
                warnings.warn(why, stacklevel=2)

    def _know(self, blocks: Mapping[str, nn.Module], sparse: tuple[str, ...]) -> None:
        """Note which parameters are of which block, and the number of its first sparse layer."""
        for path, block in blocks.items():
            mine = [number for number, layer in enumerate(sparse) if is_in(layer, path)]
            for parameter in referable(block.parameters()) if mine else ():
                _REGIONS[parameter] = (weakref.ref(self), mine[0])

    def _mark(self, model: nn.Module, path: str, blocks: Mapping[str, nn.Module]) -> None:
        mark = self._marks[path] = Mark()
        module = self._plain.marked[path] = model.get_submodule(path)
        self._handles.append(module.register_forward_pre_hook(mark, with_kwargs=True))
        self._handles.append(add_end_hook(module, MarkEnd(mark)))
        # A block that ran before it was marked was compiled without, and nothing in its guards would notice.
        for at, block in blocks.items():
            if is_in(path, at):
                forget_compiled(block)


_NUMBERS = count()
_BY_NUMBER: weakref.WeakValueDictionary[int, Regions] = weakref.WeakValueDictionary()
# Of each parameter of a compiled block: the regions it belongs to, and the number of the block's first sparse layer.
_REGIONS: Any = WeakTensorKeyDictionary()
_OF_MODEL: weakref.WeakKeyDictionary[nn.Module, Regions] = weakref.WeakKeyDictionary()


@torch.compiler.disable
def _before(
    number: int,
    whole: bool,
    call: CompileCall | None,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    regions = _BY_NUMBER.get(number)
    if regions is not None:
        regions.before(whole, call, args, kwargs)


@torch.compiler.disable
def _after(
    number: int, whole: bool, call: CompileCall | None, model: nn.Module, args: tuple[Any, ...], output: Any
) -> None:
    regions = _BY_NUMBER.get(number)
    if regions is not None:
        regions.after(output is not None)


@torch.compiler.assume_constant_result
def _in_pieces(number: int) -> bool:
    regions = _BY_NUMBER.get(number)
    return regions is not None and regions.in_pieces()


def watch_regions(model: nn.Module, holder: object) -> None:
    """Serve a model's compiled blocks for as long as `holder` does not let go of them."""
    if model not in _OF_MODEL:
        _OF_MODEL[model] = Regions(model)
    _OF_MODEL[model].holders.add(id(holder))


def leave_regions(model: nn.Module, holder: object) -> None:
    """Undo `watch_regions`."""
    regions = _OF_MODEL.get(model)
    if regions is not None:
        regions.holders.discard(id(holder))
        # Where a forward was broken off (Ctrl-C runs no hooks), it is over now.
        regions.end_forward()
        if not regions.holders and regions.remove():
            del _OF_MODEL[model]


def note_break() -> bool:
    """A graph that is being compiled has attention behind a graph break, and shows no grid: tell the model that runs.

    Returns whether its next forward is compiled anew: not where it is not watched, or its blocks are served already.
    """
    regions = _running()
    return regions is not None and regions.note_break(call_under_way())


def watched_under_way() -> bool:
    """True if a running model, compiled whole or by blocks, is attached or inside a `denoising` block."""
    regions = _running()
    return regions is not None and bool(regions.holders)


def _running() -> Regions | None:
    """The regions of the innermost watched model that runs in this thread; None if there is none."""
    frame = inspect.currentframe()
    while frame is not None:
        running = frame.f_locals.get("self")
        if isinstance(running, nn.Module) and running in _OF_MODEL:
            return _OF_MODEL[running]
        frame = frame.f_back
    return None


def region_of(parameter: Tensor | None) -> tuple[Regions | None, int | None]:
    """(regions, number of the layer) of the block that a parameter belongs to; (None, None) for a whole model's."""
    found = None if parameter is None else _REGIONS.get(parameter)
    return (None, None) if found is None else (found[0](), found[1])
