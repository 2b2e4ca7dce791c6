"""State of torch.compile: the options of a compile, its caches, and the calls that Dynamo traces."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch


def isolated_compile(function: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of static shapes whose cache entries and recompile limit are its own, where torch has that."""
    more = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
    # Keywords by name of the installed version: the stubs of another one may not know them.
    compile_: Any = torch.compile
    return compile_(function, backend=backend, dynamic=False, **more)


@dataclass(frozen=True)
class CompileCall:
    """How `torch.compile` was called: its backend, whether shapes are dynamic, and `options` or `mode`."""

    backend: Callable[..., Any]
    dynamic: bool | None
    arguments: Mapping[str, Any]


def compile_call_of(module: torch.nn.Module) -> CompileCall | None:
    """How a module was compiled, by `module.compile` or `torch.compile(module)`; None where torch does not say."""
    wrapper = getattr(module, "dynamo_ctx", None)
    if wrapper is not None:
        return compile_call(getattr(wrapper, "callback", None))
    call = module._compiled_call_impl
    cells = zip(call.__code__.co_freevars, call.__closure__ or ()) if isinstance(call, FunctionType) else ()
    return compile_call(next((cell.cell_contents for name, cell in cells if name == "callback"), None))


def compile_call(callback: Any) -> CompileCall | None:
    """How a compiled callable was compiled, by what `let_dynamo_watch` returns of it; None where torch does not say."""
    while (inner := getattr(callback, "_torchdynamo_orig_backend", None)) is not None:
        callback = inner
    backend, arguments = getattr(callback, "compiler_fn", None), getattr(callback, "kwargs", None)
    if not callable(backend) or not isinstance(arguments, dict):
        return None
    return CompileCall(backend, getattr(callback, "dynamic", None), dict(arguments))


def let_dynamo_watch(callback: Any) -> Any:
    """Have Dynamo watch this thread's calls for another compiled callable, None for none; returns the one before."""
    from torch._C._dynamo.eval_frame import set_eval_frame

    return set_eval_frame(callback)


def break_graph() -> None:
    """End the graph that Dynamo has in hand: what called this is run as Python. Elsewhere nothing happens."""
    torch._dynamo.graph_break()


def at_recompile_limit(module: torch.nn.Module) -> bool:
    """True if the forward of a module's class has reached Dynamo's recompile limit."""
    code = getattr(type(module).forward, "__code__", None)
    entries = [] if code is None else torch._C._dynamo.eval_frame._debug_get_cache_entry_list(code)
    call = torch._C._dynamo.eval_frame._debug_get_cache_entry_list(torch.nn.Module._call_impl.__code__)
    return max(len(entries), len(call)) >= torch._dynamo.config.recompile_limit


def forget_compiled(module: torch.nn.Module) -> None:
    """Drop what Dynamo has compiled for the forward of a module's class, so that its next call compiles."""
    code = getattr(type(module).forward, "__code__", None)
    if code is not None:
        torch._C._dynamo.eval_frame.reset_code(code)


def forget_all_compiled(model: torch.nn.Module) -> None:
    """Drop what Dynamo has compiled of the files that a model's modules are written in, behind graph breaks too."""
    from torch._dynamo import convert_frame

    forwards = (getattr(type(module).forward, "__code__", None) for module in model.modules())
    files = {code.co_filename for code in forwards if code is not None} - {
        torch.nn.Module._call_impl.__code__.co_filename
    }
    for seen in list(convert_frame.input_codes.seen):
        code = seen()
        if code is not None and code.co_filename in files:
            torch._C._dynamo.eval_frame.reset_code(code)


def call_under_way() -> CompileCall | None:
    """How the compiled callable that runs now was compiled; None where none runs, or torch does not say."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch._dynamo.eval_frame" and "callback" in frame.f_locals:
            found = compile_call(frame.f_locals["callback"])
            if found is not None:
                return found
        frame = frame.f_back  # type: ignore[assignment]
    return None


def recompile_limit(count: int) -> contextlib.AbstractContextManager[Any]:
    """Within it one function may be compiled `count` times; one more is an error. By default it would run eagerly."""
    import torch._dynamo

    return torch._dynamo.config.patch(recompile_limit=count, fail_on_recompile_limit_hit=True)


def guard_absent_hooks() -> None:
    """From now on a graph that this thread compiles of modules without hooks is not run for modules that have some.

    Settings of Dynamo are of a thread. By default it guards only hooks that are there, so a model with hooks may run
    what another one of its class was compiled to without.
    """
    if torch._dynamo.config.skip_nnmodule_hook_guards:
        torch._dynamo.config.skip_nnmodule_hook_guards = False


def no_graph_of_its_own(function: Callable[..., Any]) -> None:
    """Run a Python function as it is where a compiled callable has no graph around it; within a graph Dynamo still
    traces it.

    A hook of a module that is compiled whole is called outside of its graph, and Dynamo would compile a frame for each.
    """
    from torch._dynamo.eval_frame import skip_code

    skip_code(function.__code__)
