"""Each assumption about torch's internals by itself, so that a new torch says which one broke; and that a broken one
means refused, never trusted.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.attention.flex_attention import flex_attention

import svg_compile
from svg_compile._compat import compiled, dynamo, gpu, graphs, sizes, traces, versions
from svg_compile._compat.real_values import beside_modes
from toy import ToyVideoDiT, latents

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {"min_tokens": 0, "dense_layers": 0, "dense_steps": 0, "block": 8, "on_error": "raise"}

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def in_backend(
    model: Callable[..., Any], *args: Any, look: Callable[[fx.GraphModule], Any], **compile_: Any
) -> list[Any]:
    """What `look` returns for each graph that Dynamo hands to a backend."""
    seen: list[Any] = []

    def backend(graph_module: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        seen.append(look(graph_module))
        return graph_module.forward

    torch.compile(model, backend=backend, **compile_)(*args)
    return seen


def placeholders(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph_module.graph.nodes if node.op == "placeholder"]


class Broken(nn.Module):
    """A graph break between the latents and the attention: the second graph gets a tensor computed in the first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ToyVideoDiT(layers=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = latents.flip(2).contiguous()
        torch._dynamo.graph_break()
        return self.inner(x)


def test_real_values_are_computed_beside_fake_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils import _python_dispatch

    real = torch.arange(5)
    with FakeTensorMode():
        assert beside_modes(lambda: (real + 1).tolist()) == [1, 2, 3, 4, 5]
        assert graphs.is_fake(torch.ones(2))
        assert beside_modes(lambda: real.view(7)) is None
        monkeypatch.delattr(_python_dispatch, "_disable_current_modes")
        assert beside_modes(lambda: real + 1) is None


def test_inductor_lowers_the_operator_that_stores_a_tensor_once() -> None:
    from torch._inductor import inductor_prims
    from torch._inductor.lowering import lowerings
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert inductor_prims.force_stride_order in lowerings
    held = torch.empty(3, 4)
    assert not gpu.is_traced(held)
    assert gpu.in_one_buffer(held) is held
    with FakeTensorMode() as mode:
        traced = mode.from_tensor(held).t()
        assert gpu.is_traced(traced)
        stored = gpu.in_one_buffer(traced)
    assert (stored.shape, stored.stride()) == ((4, 3), (1, 4))


def test_the_frame_being_traced_is_found_in_a_backend_and_not_outside() -> None:
    def look(graph_module: fx.GraphModule) -> Any:
        frame = dynamo._traced_frame()
        return frame.f_code.co_name, sorted(frame.f_locals)

    assert in_backend(ToyVideoDiT(layers=1), latents(), look=look) == [("forward", ["latents", "self"])]
    assert dynamo._traced_frame() is None


def test_the_wrapper_around_the_callable_is_found_with_what_it_was_called_with() -> None:
    given = latents()

    def look(graph_module: fx.GraphModule) -> Any:
        wrapper, inner = dynamo._caller()
        return [value is given for value in wrapper.f_locals["args"]][-1], inner

    assert in_backend(ToyVideoDiT(layers=1), given, look=look) == [(True, False)]


def test_the_rest_of_a_function_behind_a_break_is_known_by_its_name() -> None:
    def look(graph_module: fx.GraphModule) -> str:
        return str(dynamo._traced_frame().f_code.co_name)

    names = in_backend(Broken(), latents(), look=look)
    assert names[0] == "forward"
    assert names[1].startswith("torch_dynamo_resume_in")


def test_placeholders_say_what_they_were_made_of() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("table", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight + self.table

    def look(graph_module: fx.GraphModule) -> dict[str, bool]:
        nodes = placeholders(graph_module)
        assert all(isinstance(node.meta["grapharg"].example, Tensor) for node in nodes)
        assert all(node.meta["grapharg"].source is not None and node._dynamo_source is not None for node in nodes)
        return {str(dynamo.argument_name(node)): dynamo.is_parameter_or_buffer(node) for node in nodes}

    (found,) = in_backend(Buffered(), torch.ones(3), look=look)
    assert found.pop("x") is False
    assert set(found.values()) == {True}


def test_only_tensors_computed_before_a_break_are_made_between_graphs() -> None:
    def look(graph_module: fx.GraphModule) -> int:
        return len(dynamo.made_between_graphs(placeholders(graph_module)))

    assert in_backend(ToyVideoDiT(layers=1), latents(), look=look) == [0]
    torch._dynamo.reset()
    assert in_backend(Broken(), latents(), look=look) == [0, 1]


def test_numbers_that_became_constants_are_known_by_the_names_of_their_arguments() -> None:
    def scaled(x: Tensor, steps: int) -> Tensor:
        return x * steps

    look: Callable[[fx.GraphModule], Any] = lambda _: dynamo.constant_arguments()  # noqa: E731
    assert in_backend(scaled, torch.ones(2), 7, look=look, dynamic=False) == [{"steps": 7}]


def test_a_trace_is_forgotten_and_its_breaks_are_read() -> None:
    before = dict(torch._dynamo.utils.counters)

    def backend(graph_module: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return graph_module.forward

    with traces.leaving_no_trace(backend) as breaks:
        compiled.isolated_compile(Broken(), backend)(latents())
        assert len(breaks()) >= 1
    assert dict(torch._dynamo.utils.counters) == before
    # Compiled anew after it: nothing of it is kept.
    assert len(in_backend(Broken(), latents(), look=lambda _: None)) == 2


def test_flex_attention_is_counted_in_a_graph_and_nothing_else_is() -> None:
    counted = []

    def backend(graph_module: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        counted.append(graphs.flex_calls(graph_module))
        return graph_module.forward

    def both(x: Tensor) -> Any:
        return flex_attention(x, x, x), torch.nn.functional.scaled_dot_product_attention(x, x, x)

    torch.compile(both, backend=backend, fullgraph=True)(torch.randn(1, 2, 16, 8))
    assert counted == [1]


def test_symbolic_sizes_have_hints_and_expressions() -> None:
    def look(graph_module: fx.GraphModule) -> Any:
        (size,) = [node.meta["example_value"] for node in placeholders(graph_module) if "s" in node.name[:1]][:1]
        size = size if isinstance(size, torch.SymInt) else size.shape[0]
        return sizes.size_hint(size), sizes.is_symbolic(size), str(sizes.expression(size)).startswith("s")

    assert in_backend(lambda x: x * x.shape[0], torch.ones(9), look=look, dynamic=True) == [(9, True, True)]


def test_the_code_that_inductor_writes_is_seen() -> None:
    codes: list[str] = []
    with torch._inductor.utils.fresh_cache(), graphs.output_code(codes.append):
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8))
    assert len(codes) == 1
    assert "def call" in codes[0]


@pytest.fixture(params=["frame", "wrapper", "arguments"])
def not_understood(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A torch of which one internal is not as expected."""
    if request.param == "frame":
        monkeypatch.setattr(dynamo, "_traced_frame", lambda: None)
    elif request.param == "wrapper":
        monkeypatch.setattr(dynamo, "_caller", lambda: (None, False))
    else:
        known = dynamo._caller

        def inner() -> Any:
            for node in placeholders_of[-1]:
                node.meta.pop("grapharg", None)
            return known()[0], True

        placeholders_of: list[Any] = []
        whole = dynamo.made_between_graphs

        def made(nodes: Any) -> Any:
            placeholders_of.append(list(nodes))
            return whole(placeholders_of[-1])

        monkeypatch.setattr(dynamo, "_caller", inner)
        monkeypatch.setattr("svg_compile.passes.axes.ledger.made_between_graphs", made)
    return str(request.param)


def test_what_is_not_understood_is_refused_and_said(not_understood: str) -> None:
    model = ToyVideoDiT(layers=1)
    with pytest.warns(UserWarning, match="no attention was rewritten"):
        out = torch.compile(model, backend="svg", options=OPTIONS)(latents())
    torch.testing.assert_close(out, model(latents()))


def test_nothing_is_made_between_graphs_outside_of_a_compile() -> None:
    graph = fx.symbolic_trace(lambda x: x + 1)
    assert dynamo.made_between_graphs(placeholders(graph)) == set()


@pytest.mark.parametrize("version", ["2.10.1", "2.99.0+cu140", "3.0"])
def test_one_warning_outside_of_the_tested_range(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    versions.warn_if_untested.cache_clear()
    with pytest.warns(UserWarning, match=re.escape(f"this is {version}")):
        versions.warn_if_untested()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        versions.warn_if_untested()
    versions.warn_if_untested.cache_clear()


def test_this_torch_is_in_the_tested_range() -> None:
    installed = versions.minor_version(torch.__version__)
    assert installed is not None
    assert versions.OLDEST <= installed <= versions.NEWEST


def test_a_compile_is_sparse_on_this_python_and_exact_at_density_one() -> None:
    """Not only without an error: on an unknown Python every model would stay dense."""
    model = ToyVideoDiT(layers=2)
    dense = model(latents())
    options = OPTIONS | {"strict": True}
    exact = torch.compile(model, backend="svg", options=options | {"density": 1.0})(latents())
    torch.testing.assert_close(exact, dense)
    torch._dynamo.reset()
    sparse = torch.compile(model, backend="svg", options=options | {"density": 0.2})(latents())
    assert (sparse - dense).abs().max() > 1e-3
    assert svg_compile.explain(model, latents(), options=options).rewritten == 2
    assert sys.version_info >= (3, 10)
