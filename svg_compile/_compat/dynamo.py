"""Facts about the frame that Dynamo traces, and the sources of its graph's inputs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import torch


def is_parameter_or_buffer(placeholder: torch.fx.Node) -> bool:
    """True if a placeholder of a Dynamo graph is a parameter or buffer of the model rather than an argument."""
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
    """True if a placeholder is a tensor that a module or a Python module holds as it is: an attribute or a global, or
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
    """The leaves of a value: the value itself, or the entries of tuples, with `containers` also of lists and dicts."""
    if isinstance(value, tuple) or (containers and isinstance(value, (list, dict))):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _leaves(entry, containers)
    else:
        yield value


def _is_state(source: Any, local: dict[str, Any], given: set[int]) -> bool:
    """True if a graph input is an attribute of a module, or of an object that the callable was called with."""
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
