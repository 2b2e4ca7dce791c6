"""What Dynamo knows of a frame and of its placeholders, and compiling without leaving a trace."""

from __future__ import annotations

import contextlib
import inspect
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

import torch


def is_parameter_or_buffer(placeholder: torch.fx.Node) -> bool:
    """Whether a placeholder of a Dynamo graph is a parameter or buffer of the model rather than an argument."""
    from torch._dynamo.source import is_from_unspecialized_param_buffer_source

    source = getattr(placeholder, "_dynamo_source", None)
    if source is None:
        source = getattr(placeholder.meta.get("grapharg"), "source", None)
    if source is not None:
        return bool(is_from_unspecialized_param_buffer_source(source))
    return isinstance(placeholder.meta.get("example_value"), torch.nn.Parameter)


def example_of(placeholder: torch.fx.Node) -> torch.Tensor | None:
    """The tensor that the call being compiled passes as a graph input; None where Dynamo does not say."""
    example = getattr(placeholder.meta.get("grapharg"), "example", None)
    return example if isinstance(example, torch.Tensor) else None


def is_plain_state(placeholder: torch.fx.Node) -> bool:
    """Whether a placeholder is a tensor that a module or a Python module holds as it is: an attribute or a global, or
    an entry of a tuple, list or dict there. False outside of a compile, and where the source is not understood.
    """
    from torch._dynamo.source import AttrSource, GlobalSource, LocalSource

    traced, source = _traced_frame(), getattr(placeholder.meta.get("grapharg"), "source", None)
    if traced is None or source is None:
        return False
    attribute = False
    while getattr(source, "base", None) is not None:
        attribute = attribute or isinstance(source, AttrSource)
        source = source.base
    if isinstance(source, GlobalSource):
        return True
    owner = traced.f_locals.get(source.local_name) if isinstance(source, LocalSource) else None
    return attribute and isinstance(owner, torch.nn.Module)


def made_between_graphs(placeholders: Iterable[torch.fx.Node]) -> set[torch.fx.Node]:
    """A graph's tensor inputs that the compiled callable computed before, on the other side of a graph break.

    A graph traced from the callable's start gets only what the caller passed. A graph after a break, or of a function
    called from code that is not traced, may also get tensors computed earlier: those are returned. Outside of a compile
    the set is empty. Inside of one whose frames are not understood it holds every tensor input: nothing is trusted.
    """
    if torch._guards.TracingContext.try_get() is None:
        return set()
    placeholders = list(placeholders)
    unknown = {node for node in placeholders if isinstance(node.meta.get("example_value"), torch.Tensor)}
    traced, (wrapper, inner) = _traced_frame(), _caller()
    if traced is None or wrapper is None:
        return unknown
    rest = traced.f_code.co_name.startswith("torch_dynamo_resume_in")
    if not rest and not inner:
        return set()
    # A container's entries may have been replaced before the break.
    passed = (*wrapper.f_locals["args"], *wrapper.f_locals["kwargs"].values())
    given = {id(leaf) for value in passed for leaf in _leaves(value, containers=not rest)}
    found = set()
    for node in placeholders:
        argument = node.meta.get("grapharg")
        if argument is None:
            found |= {node} & unknown
        elif isinstance(argument.example, torch.Tensor) and id(argument.example) not in given:
            if not _is_state(argument.source, traced.f_locals, given):
                found.add(node)
    return found


def _caller() -> tuple[Any, bool]:
    """(frame of torch.compile's wrapper around the compiled callable, whether the traced function is called by code
    other than torch's within it). The frame is None where it is not found.
    """
    between: list[str] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        # Python 3.13 gives a proxy, whose keys() is a list.
        if module == "torch._dynamo.eval_frame" and {"args", "kwargs"} <= set(frame.f_locals):
            return frame, any(not name.startswith("torch.") for name in between)
        # Frames of the compile itself are no callers.
        between = [] if module == "torch._dynamo.convert_frame" else [*between, module]
        frame = frame.f_back
    return None, False


def _leaves(value: Any, containers: bool) -> Iterator[Any]:
    """What a value consists of: itself, or the entries of a tuple; of lists and dicts where `containers`."""
    if isinstance(value, tuple) or (containers and isinstance(value, (list, dict))):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _leaves(entry, containers)
    else:
        yield value


def _is_state(source: Any, local: dict[str, Any], given: set[int]) -> bool:
    """Whether a graph input is an attribute of a module, or of an object that the callable was called with."""
    from torch._dynamo.source import AttrSource, LocalSource

    attribute = False
    while getattr(source, "base", None) is not None:
        attribute = attribute or isinstance(source, AttrSource)
        source = source.base
    owner = local.get(source.local_name) if isinstance(source, LocalSource) else None
    return attribute and (owner is None or isinstance(owner, torch.nn.Module) or id(owner) in given)


def pin_source(placeholder: torch.fx.Node, name: str) -> None:
    """Tell AOTAutograd that a placeholder which Dynamo did not make comes from nowhere that a guard could look at."""
    from torch._dynamo.source import ConstantSource

    placeholder._dynamo_source = ConstantSource(source_name=name)


def argument_name(placeholder: torch.fx.Node) -> str | None:
    """The name under which the traced call got a graph input, None for what is no argument of its own.

    A keyword behind `**kwargs` is known by its key; a positional argument behind `*args`, as decorators of `forward`
    take it, by the parameter of the module's own forward.
    """
    return _name_of(getattr(placeholder, "_dynamo_source", None))


def constant_arguments() -> dict[str, float]:
    """The numbers among the arguments of the call being traced that Dynamo made constants of the graph, by name."""
    frame = _traced_frame()
    found: dict[str, float] = {}
    if frame is None:
        return found
    matches = ("CONSTANT_MATCH", "EQUALS_MATCH")
    sources = [guard.originating_source for guard in frame.output.guards if guard.create_fn_name() in matches]
    # A float that was an input at first, and that Inductor could not make a tensor of, is fixed by a shape guard.
    environment = frame.output.shape_env
    for symbol, origins in getattr(environment, "var_to_sources", {}).items():
        if getattr(environment.replacements.get(symbol), "is_number", False):
            sources += [origin.base if type(origin).__name__ == "FloatTensorSource" else origin for origin in origins]
    for source in sources:
        name, value = _name_of(source), _value_of(source, frame.f_locals)
        if name is not None and isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = value
    return found


def traced_module() -> torch.nn.Module | None:
    """The module whose call is being traced, None outside a compile and for plain functions."""
    frame = _traced_frame()
    values = () if frame is None else frame.f_locals.values()
    return next((value for value in values if isinstance(value, torch.nn.Module)), None)


def _traced_frame() -> Any:
    """Dynamo's record of the function being compiled, None outside a compile."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        return InstructionTranslator.current_tx().output.root_tx
    except (AttributeError, RuntimeError):
        return None


def _name_of(source: Any) -> str | None:
    from torch._dynamo.source import LocalSource

    if isinstance(source, LocalSource):
        return source.local_name
    base, index = getattr(source, "base", None), getattr(source, "index", None)
    if not isinstance(base, LocalSource):
        return None
    if isinstance(index, str):
        return index
    return _positional_name(base.local_name, index) if isinstance(index, int) else None


def _value_of(source: Any, local: dict[str, Any]) -> Any:
    from torch._dynamo.source import LocalSource

    if isinstance(source, LocalSource):
        return local.get(source.local_name)
    return local[source.base.local_name][source.index] if _name_of(source) is not None else None


def _positional_name(varargs: str, index: int) -> str | None:
    """The parameter of a module's forward that entry `index` of the traced frame's `*varargs` is passed to."""
    frame = _traced_frame()
    if frame is None or inspect.getargs(frame.f_code).varargs != varargs:
        return None
    named = [frame.f_locals.get(name) for name in frame.f_code.co_varnames[: frame.f_code.co_argcount]]
    given = [*named, *frame.f_locals[varargs]]
    at = next((place for place, value in enumerate(given) if isinstance(value, torch.nn.Module)), None)
    if at is None:
        return None
    parameters = list(inspect.signature(type(given[at]).forward).parameters)
    place = len(named) + index - at
    return parameters[place] if 0 <= place < len(parameters) else None


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
    switch = config.patch(disable=False) if config.disable else contextlib.nullcontext()
    try:
        with stance, switch, random_numbers_go_on():
            yield breaks
    finally:
        for seen in list(known.seen):
            code = seen()
            entries = [] if code is None else torch._C._dynamo.eval_frame._debug_get_cache_entry_list(code)
            ours = [entry for entry in entries if _backend_of(entry) is backend]
            for entry in ours:
                _drop_entry(entry)
            if code is not None and id(code) not in before and len(ours) == len(entries):
                # Code that nobody else has compiled is as good as new.
                torch._C._dynamo.eval_frame.reset_code(code)
                known.seen_ids.discard(id(code))
                known.seen.remove(seen)
        del graph_break_reasons[reasons:]
        for name in list(counters):
            counters[name].clear()
            counters[name].update(counted.get(name, {}))
            if name not in counted:
                del counters[name]


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


def isolated_compile(function: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of static shapes whose cache entries and recompile limit are its own, where torch has that."""
    more = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
    # Keywords by name of the installed version: the stubs of another one may not know them.
    compile_: Any = torch.compile
    return compile_(function, backend=backend, dynamic=False, **more)


def at_recompile_limit(module: torch.nn.Module) -> bool:
    """Whether Dynamo compiles the forward of a module's class no more, as it was compiled too often."""
    code = getattr(type(module).forward, "__code__", None)
    entries = [] if code is None else torch._C._dynamo.eval_frame._debug_get_cache_entry_list(code)
    call = torch._C._dynamo.eval_frame._debug_get_cache_entry_list(torch.nn.Module._call_impl.__code__)
    return max(len(entries), len(call)) >= torch._dynamo.config.recompile_limit


def forget_compiled(module: torch.nn.Module) -> None:
    """Have the forward of a module's class compiled anew when it is next called; other classes keep theirs."""
    code = getattr(type(module).forward, "__code__", None)
    if code is not None:
        torch._C._dynamo.eval_frame.reset_code(code)


def recompile_limit(count: int) -> contextlib.AbstractContextManager[Any]:
    """Within it one function may be compiled `count` times; one more is an error. By default it would run eagerly."""
    import torch._dynamo

    return torch._dynamo.config.patch(recompile_limit=count, fail_on_recompile_limit_hit=True)


def guard_absent_hooks() -> None:
    """From now on a graph that was compiled of modules without hooks is not run for modules that have some.

    By default Dynamo guards only hooks that are there, so a model with hooks may run what another one of its class was
    compiled to without.
    """
    torch._dynamo.config.skip_nnmodule_hook_guards = False


def no_graph_of_its_own(function: Callable[..., Any]) -> None:
    """Run a Python function as it is where a compiled callable has no graph around it; within a graph Dynamo still
    traces it.

    A hook of a module that is compiled whole is called beside its graph, and Dynamo would compile a frame for each.
    """
    from torch._dynamo.eval_frame import skip_code

    skip_code(function.__code__)


def in_compiled_call() -> bool:
    """Whether Dynamo watches this thread's calls now: a compiled callable runs, and no function that it leaves out.

    Call it where nothing is traced, from a frame that Dynamo leaves alone.
    """
    from torch._C._dynamo.eval_frame import get_eval_frame_callback

    return callable(get_eval_frame_callback())
