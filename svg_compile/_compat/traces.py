"""Tracing by Dynamo that leaves nothing behind: no compiled code, no counters, no random numbers drawn twice."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterator
from types import CellType, FunctionType
from typing import Any

import torch


@contextlib.contextmanager
def leaving_no_trace(backend: Any) -> Iterator[Callable[[], list[tuple[str, list[Any]]]]]:
    """Let Dynamo trace for `backend` in the block, and forget it at its end: what others compiled stays.

    Tracing happens whatever stance or switch is set, and rewinds no random numbers. Yields a function that returns the
    graph breaks so far, each its reason and the frames of the user's code, and then those that left no frames.
    """
    from torch._dynamo import config, convert_frame, eval_frame
    from torch._dynamo.utils import counters, graph_break_reasons

    def breaks() -> list[tuple[str, list[Any]]]:
        found = [(str(reason.reason), list(reason.user_stack)) for reason in graph_break_reasons[reasons:]]
        before = counted.get("unimplemented", {})
        return found + [(str(text), []) for text, n in counters["unimplemented"].items() if n > before.get(text, 0)]

    known = convert_frame.input_codes
    before, reasons = {id(seen()) for seen in known.seen}, len(graph_break_reasons)
    counted = {name: dict(counter) for name, counter in counters.items()}
    as_it_is = eval_frame._stance.stance == "default"
    stance = contextlib.nullcontext() if as_it_is else torch.compiler.set_stance("default")
    # Weak references to what was traced go at the end, as after a compile by a backend of torch's own.
    weak = "invalidate_compile_context_weakrefs"
    changed: dict[str, Any] = {weak: True} if hasattr(config, weak) else {}
    if config.disable:
        changed["disable"] = False
    switch = config.patch(changed) if changed else contextlib.nullcontext()
    try:
        with stance, switch, random_numbers_go_on():
            yield breaks
    finally:
        # Held until the references to them are gone, whose callbacks would look for what is forgotten here.
        codes = _forget_traced(known, before, backend)
        del codes
        del graph_break_reasons[reasons:]
        for name in list(counters):
            counters[name].clear()
            counters[name].update(counted.get(name, {}))
            if name not in counted:
                del counters[name]


def _forget_traced(known: Any, before: set[int], backend: Any) -> list[Any]:
    """Drop what Dynamo has compiled for `backend`; returns all the code that it knows."""
    codes = [seen() for seen in known.seen]
    for seen, code in zip(list(known.seen), codes, strict=True):
        entries = [] if code is None else torch._C._dynamo.eval_frame._debug_get_cache_entry_list(code)
        ours = [entry for entry in entries if _backend_of(entry) is backend]
        for entry in ours:
            _drop_entry(entry)
        if code is not None and id(code) not in before and len(ours) == len(entries):
            # Code that nobody else has compiled is as good as new.
            torch._C._dynamo.eval_frame.reset_code(code)
            known.seen_ids.discard(id(code))
            known.seen.remove(seen)
    return codes


def with_code_of_its_own(function: Any) -> Any:
    """A copy of a plain function, and of those that it wraps, which are new functions to Dynamo.

    Dynamo gives up on a code object for good, for all who call it, where it once broke off in a loop.
    """
    if not isinstance(function, FunctionType):
        return function
    cells = tuple(_copied(cell) for cell in function.__closure__ or ())
    code, names = function.__code__.replace(), function.__globals__
    copy = FunctionType(code, names, function.__name__, function.__defaults__, cells)
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    copy.__dict__.update(vars(function))
    return copy


def _copied(cell: CellType) -> CellType:
    # What a decorator wraps; a cell that is empty, or holds anything else, is shared.
    try:
        wraps = isinstance(cell.cell_contents, FunctionType)
    except ValueError:
        return cell
    return CellType(with_code_of_its_own(cell.cell_contents)) if wraps else cell


def _backend_of(entry: Any) -> Any:
    """The backend that a cache entry was compiled by, without what torch.compile wraps around it."""
    return getattr(entry.backend, "compiler_fn", entry.backend)


_TRACING = threading.local()
_PATCHES = threading.Lock()
_patched: list[int] = [0]
_ORIGINAL: dict[str, Any] = {}


@contextlib.contextmanager
def random_numbers_go_on() -> Iterator[None]:
    """Within it Dynamo, which rewinds the process' random numbers after each frame, does not in this thread.

    Nothing that it traces draws any, and what other threads drew in the meantime they would draw once more.
    """
    owners = {"random.setstate": random, "torch.set_rng_state": torch.random, "torch.cuda.set_rng_state": torch.cuda}

    def quiet(name: str) -> Callable[..., Any]:
        def set_state(*args: Any, **kwargs: Any) -> Any:
            module = str(sys._getframe(1).f_globals.get("__name__"))
            if getattr(_TRACING, "depth", 0) and (name == "random.setstate" or module.startswith("torch._dynamo")):
                return None
            return _ORIGINAL[name](*args, **kwargs)

        return set_state

    with _PATCHES:
        _patched[0] += 1
        if _patched[0] == 1:
            for name, owner in owners.items():
                attribute = name.rpartition(".")[2]
                _ORIGINAL[name] = getattr(owner, attribute)
                setattr(owner, attribute, quiet(name))
    _TRACING.depth = getattr(_TRACING, "depth", 0) + 1
    try:
        yield
    finally:
        _TRACING.depth -= 1
        with _PATCHES:
            _patched[0] -= 1
            if not _patched[0]:
                for name, owner in owners.items():
                    setattr(owner, name.rpartition(".")[2], _ORIGINAL[name])


def _drop_entry(entry: Any) -> None:
    from torch._dynamo.guards import DeletedGuardManagerWrapper

    state = entry.guard_manager.extra_state
    if state is not None:
        state.invalidate(entry, DeletedGuardManagerWrapper("svg_compile.explain is done with it"))
