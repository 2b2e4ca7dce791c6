"""Every private or version-dependent torch API that svg_compile touches, in one place."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import sympy
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

SDPA_TARGETS = (
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)


def fake_mode_of(graph_module: torch.fx.GraphModule) -> Any:
    """The fake tensor mode that the graph was traced with, None where it has no tensor inputs.

    Dynamo hands the backend a second mode in its tracing context; the values on the nodes belong to the first. Both
    share one shape environment, so guards reach Dynamo from either.
    """
    for node in graph_module.graph.nodes:
        if isinstance(value := node.meta.get("example_value"), FakeTensor):
            return value.fake_mode
    return None


@contextlib.contextmanager
def keep_torch_state() -> Iterator[None]:
    """Put gradient mode and autocast back as they were, whatever runs inside."""
    grad_enabled = torch.is_grad_enabled()
    devices = ("cpu", "cuda")
    autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    cached = torch.is_autocast_cache_enabled()
    nesting = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad_enabled)
        for device, enabled, dtype in autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(cached)
        while torch.autocast_increment_nesting() - 1 > nesting:
            torch.autocast_decrement_nesting()
            torch.autocast_decrement_nesting()
        torch.autocast_decrement_nesting()


@contextlib.contextmanager
def symbolic_run(fake_mode: Any) -> Iterator[None]:
    """Run a graph on fake tensors as Dynamo does: symbolic sizes reach every operator.

    Sizes that depend on data may be made without anybody binding them.
    """
    environment = fake_mode.shape_env
    fresh = contextlib.nullcontext() if environment is None else environment.ignore_fresh_unbacked_symbols()
    with fresh, enable_python_dispatcher(), fake_mode:
        yield


def is_parameter_or_buffer(placeholder: torch.fx.Node) -> bool:
    """Whether a placeholder of a Dynamo graph is a parameter or buffer of the model rather than an argument."""
    from torch._dynamo.source import is_from_unspecialized_param_buffer_source

    source = getattr(placeholder, "_dynamo_source", None)
    if source is None:
        source = getattr(placeholder.meta.get("grapharg"), "source", None)
    if source is not None:
        return bool(is_from_unspecialized_param_buffer_source(source))
    return isinstance(placeholder.meta.get("example_value"), torch.nn.Parameter)


def _hint(size: Any) -> int | None:
    """The size of the traced example, None for a size that depends on data."""
    if isinstance(size, int):
        return size
    node = size.node
    return node.hint if node.has_hint() else None


def size_hint(size: Any) -> int:
    """The size of the traced example as an int; 0 where it depends on data."""
    return _hint(size) or 0


# Facts already decided, per shape environment: deciding one symbolic fact costs milliseconds, and layers repeat them.
_DECIDED: Any = WeakKeyDictionary()


def holds(fact: Callable[..., Any], *sizes: Any) -> bool:
    """Whether a fact about sizes holds, for every input that will reach this compiled graph.

    Plain ints decide directly. Symbolic sizes: proven, or true of the traced example and then guarded, so that an
    input of which it is untrue recompiles. A fact untrue of the example is False without a guard: callers must treat
    False as "not proven". `fact` must be a module-level function, for its decisions are remembered.
    """
    symbolic = next((size for size in sizes if not isinstance(size, int)), None)
    if symbolic is None:
        return bool(fact(*sizes))
    # The cheap answers first: the same expression, then the example.
    terms = tuple(map(expression, sizes))
    if fact in (equal, at_most) and terms[0] == terms[1]:
        return True
    hints = [_hint(size) for size in sizes]
    if None not in hints and not fact(*hints):
        return False
    decided = _DECIDED.setdefault(symbolic.node.shape_env, {})
    key = (fact, *terms)
    if key not in decided:
        claim = fact(*sizes)
        decided[key] = statically_known_true(claim) if None in hints else bool(claim)
    return bool(decided[key])


def settled(fact: Callable[..., Any], *sizes: Any) -> bool:
    """Whether a fact holds, guarded either way: an input that decides otherwise recompiles. False where it is open."""
    if all(isinstance(size, int) for size in sizes):
        return bool(fact(*sizes))
    if None in map(_hint, sizes):
        return statically_known_true(fact(*sizes))
    return bool(fact(*sizes))


def product_is(factors: Sequence[Any], size: Any) -> bool:
    """`holds` of: the product of `factors` is `size`; mostly decided without a symbolic product."""
    hints = [_hint(factor) for factor in (*factors, size)]
    known = [hint for hint in hints if hint is not None]
    if len(known) == len(hints) and math.prod(known[:-1]) != known[-1]:
        return False
    if all(isinstance(factor, int) for factor in (*factors, size)):
        return True
    product, whole = sympy.Mul(*map(expression, factors)), sympy.sympify(expression(size))
    return bool(product == whole or sympy.expand(product) == sympy.expand(whole)) or holds(
        equal, product_of(factors), size
    )


def within(factors: Sequence[Any], size: Any) -> bool:
    """Whether the product of `factors` divides `size` in the traced example; nothing is proven or guarded by it."""
    hints = [_hint(factor) for factor in (*factors, size)]
    if any(not hint for hint in hints):
        return False
    known = [hint for hint in hints if hint is not None]
    return known[-1] % math.prod(known[:-1]) == 0


def equal(left: Any, right: Any) -> Any:
    """Fact: two sizes are equal."""
    return left == right


def divides(divisor: Any, size: Any) -> Any:
    """Fact: `divisor` is positive and divides `size`."""
    return False if isinstance(divisor, int) and divisor == 0 else size % divisor == 0


def at_most(small: Any, large: Any) -> Any:
    """Fact: one size is not above another."""
    return small <= large


def negative(size: Any) -> Any:
    """Fact: a position counts from the end."""
    return size < 0


def product_of(sizes: Sequence[Any]) -> Any:
    """The product of sizes."""
    total: Any = 1
    for size in sizes:
        total = size if isinstance(total, int) and total == 1 else total * size
    return total


def expression(size: Any) -> Any:
    """A size as a sympy expression, or the int that it is."""
    return size if isinstance(size, int) else size.node.expr


def constant(value: Any, only: float | None = None) -> int | float | None:
    """A number as a Python number; a symbolic one by a guard that fixes it to the traced example's.

    None where it is no number, or depends on data. With `only`, a symbolic number is fixed to that value or left.
    """
    if isinstance(value, (int, float)):
        return value
    if not isinstance(value, (torch.SymInt, torch.SymFloat)) or not value.node.has_hint():
        return None
    if only is not None and value.node.hint != only:
        return None
    return int(value) if isinstance(value, torch.SymInt) else float(value)


def is_symbolic(size: Any) -> bool:
    """Whether a size is symbolic."""
    return not isinstance(size, int)


def to_fake(fake_mode: Any, tensor: torch.Tensor) -> torch.Tensor:
    """A fake twin of a constant tensor, of static shape."""
    if isinstance(tensor, FakeTensor):
        return tensor
    return fake_mode.from_tensor(tensor, static_shapes=True)


def copy_graph(graph: torch.fx.Graph) -> torch.fx.Graph:
    """A copy of a graph that Dynamo accepts in its place: `copy.deepcopy` drops what Dynamo pins to placeholders."""
    twin = copy.deepcopy(graph)
    for old, new in zip(graph.nodes, twin.nodes, strict=True):
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    return twin


def pin_source(placeholder: torch.fx.Node, name: str) -> None:
    """Tell AOTAutograd that a placeholder which Dynamo did not make comes from nowhere that a guard could look at."""
    from torch._dynamo.source import ConstantSource

    placeholder._dynamo_source = ConstantSource(source_name=name)


@contextlib.contextmanager
def output_code(collect: Callable[[str], object]) -> Iterator[None]:
    """Give `collect` each piece of code that Inductor generates, or finds in its cache, in the block."""
    from torch._inductor.graph import GraphLowering

    previous = GraphLowering.save_output_code
    GraphLowering.save_output_code = collect  # type: ignore[assignment]
    try:
        yield
    finally:
        GraphLowering.save_output_code = previous


def trace_artifact(name: str, text: Callable[[], str]) -> None:
    """Put a text into torch's structured trace (TORCH_TRACE), where tlparse shows it; free when no trace is taken."""
    from torch._logging import trace_structured

    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": "string"}, payload_fn=text)


def copy_graph_module(graph_module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """A copy of a Dynamo graph module with graphs of its own; parameters, constants and node values are shared.

    It can be changed and compiled beside the original within one backend call.
    """
    twin = torch.fx.GraphModule(graph_module, copy_graph(graph_module.graph), type(graph_module).__name__)
    for name, child in graph_module.named_children():
        if isinstance(child, torch.fx.GraphModule) and hasattr(twin, name):
            setattr(twin, name, copy_graph_module(child))
    for name, value in vars(graph_module).items():
        # What Dynamo pins to its graph module (_param_name_to_source, ...), which AOTAutograd looks for.
        vars(twin).setdefault(name, value)
    twin.meta = dict(graph_module.meta)
    return twin


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
    for guard in () if frame is None else frame.output.guards:
        if guard.create_fn_name() in ("CONSTANT_MATCH", "EQUALS_MATCH"):
            source = guard.originating_source
            name, value = _name_of(source), _value_of(source, frame.f_locals)
            if name is not None and isinstance(value, (int, float)) and not isinstance(value, bool):
                found[name] = value
    return found


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
    """The parameter of a module's forward that entry `index` of the traced frame's `*varargs` stands for."""
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
def leaving_no_trace() -> Iterator[Callable[[], list[tuple[str, list[Any]]]]]:
    """Let Dynamo trace in the block, and forget it at its end: what was compiled before stays, what came is dropped.

    Tracing happens whatever stance or switch is set. Yields a function that returns the graph breaks so far, each its
    reason and the frames of the user's code, and then those that left no frames.
    """
    from torch._dynamo import config, convert_frame
    from torch._dynamo.utils import counters, graph_break_reasons

    def entries(code: Any) -> list[Any]:
        return list(torch._C._dynamo.eval_frame._debug_get_cache_entry_list(code))

    def breaks() -> list[tuple[str, list[Any]]]:
        found = [(str(reason.reason), list(reason.user_stack)) for reason in graph_break_reasons[reasons:]]
        before = counted.get("unimplemented", {})
        return found + [(str(text), []) for text, n in counters["unimplemented"].items() if n > before.get(text, 0)]

    known = convert_frame.input_codes
    codes = [code for code in (seen() for seen in known.seen) if code is not None]
    held = {id(entry.guard_manager) for code in codes for entry in entries(code)}
    count, reasons = len(known.seen), len(graph_break_reasons)
    counted = {name: dict(counter) for name, counter in counters.items()}
    try:
        with torch.compiler.set_stance("default"), config.patch(disable=False):
            yield breaks
    finally:
        # Code that nobody had compiled before is as good as new; elsewhere only what came in the block goes.
        for code in [code for code in (seen() for seen in known.seen[count:]) if code is not None]:
            torch._C._dynamo.eval_frame.reset_code(code)
            known.seen_ids.discard(id(code))
        del known.seen[count:]
        for code in codes:
            for entry in entries(code):
                if id(entry.guard_manager) not in held:
                    _drop_entry(entry)
        del graph_break_reasons[reasons:]
        for name in list(counters):
            counters[name].clear()
            counters[name].update(counted.get(name, {}))
            if name not in counted:
                del counters[name]


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


def new_fake_mode() -> Any:
    """A fake tensor mode of our own, for tensors without data; real ones may meet them."""
    return torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)


def is_fake(value: Any) -> bool:
    """Whether a value is a tensor without data that claims a device."""
    return isinstance(value, FakeTensor)


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor was written in place; 0 for inference tensors, which do not count."""
    return 0 if tensor.is_inference() else int(tensor._version)


# What operators on tensors without data raise where the result, or its shape, would depend on them.
NEEDS_DATA = (
    torch._subclasses.fake_tensor.DataDependentOutputException,
    torch._subclasses.fake_tensor.DynamicOutputShapeException,
)


def forget_compiled(module: torch.nn.Module) -> None:
    """Have the forward of a module's class compiled anew when it is next called; other classes keep theirs."""
    code = getattr(type(module).forward, "__code__", None)
    if code is not None:
        torch._C._dynamo.eval_frame.reset_code(code)
