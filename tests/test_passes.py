"""The result of the passes: a valid graph with the same metadata and text; and their guards under dynamic=True."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from svg_compile.kernels import repair_ops
from svg_compile.passes import run_passes
from test_find_attention import B, C, Model, config, sdpa, video
from traced import CONFIG, Recorder, verdict

N = 4 * 2 * 6


def traced(function: Callable[..., Any], *args: Any, dynamic: bool = False) -> fx.GraphModule:
    """The one graph of `function(*args)`."""
    torch._dynamo.reset()
    graphs: list[fx.GraphModule] = []

    def backend(graph_module: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        graphs.append(graph_module)
        return graph_module.forward

    with torch.no_grad():
        torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)(*args)
    return graphs[0]


def nodes(graph_module: fx.GraphModule, target: Any) -> list[fx.Node]:
    return [node for node in graph_module.graph.nodes if node.target is target]


def contiguous_result(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # Math SDPA of a broadcast-like layout: the result's storage is [B, H, N, D].
    return sdpa(q.contiguous(), k.contiguous(), v.contiguous(), torch.ones(B, 1, 1, N, dtype=torch.bool))


def half_precision(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return sdpa(q, k, v)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("call", [sdpa, contiguous_result, half_precision])
def test_the_graph_after_the_rewrite(call: Callable[..., Tensor], dynamic: bool) -> None:
    x = video()
    torch._dynamo.mark_static(x, 1)
    graph_module = traced(Model(call, 2), x, dynamic=dynamic)
    before = [node for node in graph_module.graph.nodes if node.target is F.scaled_dot_product_attention]
    examples = [node.meta["example_value"] for node in before]
    metas = [dict(node.meta) for node in before]
    placeholders = [node.name for node in graph_module.graph.nodes if node.op == "placeholder"]
    # Layers that share would add an input.
    config = replace(CONFIG, share_layers=False)
    assert run_passes(graph_module, config).rewritten == 2
    graph_module.graph.lint()
    assert placeholders == [node.name for node in graph_module.graph.nodes if node.op == "placeholder"]
    assert not nodes(graph_module, F.scaled_dot_product_attention)
    after = nodes(graph_module, torch.ops.svg.attention.default)
    assert (
        len(after) == len(nodes(graph_module, repair_ops.PROFILE)) == len(nodes(graph_module, repair_ops.REPAIR)) == 2
    )
    for meta, example, node in zip(metas, examples, after):
        assert node.meta["nn_module_stack"] == meta["nn_module_stack"]
        assert node.meta["stack_trace"] == meta["stack_trace"]
        (result,) = [n for n in graph_module.graph.nodes if n.meta.get("example_value") is example] or [node]
        shown = result.meta["example_value"]
        assert (shown.dtype, shown.shape, shown.stride()) == (example.dtype, example.shape, example.stride())
    # What the graph really computes has the dtype and strides that the model was traced with.
    for example, found in zip(examples, graph_module(*_inputs(graph_module, x))):
        assert found.dtype is example.dtype
        assert [int(n) for n in example.shape] == list(found.shape)
        assert [int(n) for n in example.stride()] == list(found.stride())
    once = str(graph_module.graph)
    assert run_passes(graph_module, config).rewritten == 0
    assert str(graph_module.graph) == once


def _inputs(graph_module: fx.GraphModule, x: Tensor) -> list[Any]:
    """Arguments for a graph's placeholders: the video, its sizes, weights of the right shapes."""
    out: list[Any] = []
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            example = node.meta["example_value"]
            if isinstance(example, torch.SymInt):
                out.append(int(example))
            else:
                out.append(x if example.dim() == 5 else torch.randn([int(n) for n in example.shape]))
    return out


def test_the_text_of_the_graph_is_always_the_same() -> None:
    texts = set()
    for _ in range(20):
        graph_module = traced(Model(sdpa, 2), video())
        run_passes(graph_module, CONFIG)
        texts.add(str(graph_module.graph))
    assert len(texts) == 1


def test_a_graph_without_attention_is_not_touched() -> None:
    graph_module = traced(lambda x: x * 2, video())
    text = str(graph_module.graph)
    assert run_passes(graph_module, CONFIG).sites == ()
    assert str(graph_module.graph) == text


def test_the_analysis_leaves_the_graph_and_its_examples() -> None:
    def attend(x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2).unsqueeze_(1)
        x.mul_(2)
        return F.scaled_dot_product_attention(y, y, y)

    graph_module = traced(attend, video())
    text = str(graph_module.graph)
    shapes = [str(node.meta.get("example_value")) for node in graph_module.graph.nodes]
    run_passes(graph_module, CONFIG, rewrite=False)
    assert str(graph_module.graph) == text
    assert [str(node.meta.get("example_value")) for node in graph_module.graph.nodes] == shapes


# ---- symbolic sizes --------------------------------------------------------------------------------------------------

SIZES = [(4, 2, 6), (4, 6, 2), (2, 4, 6), (8, 2, 6), (3, 8, 2), (1, 8, 6)]


def compiles(function: Callable[..., Any], inputs: list[Tensor], backend: Any) -> int:
    """How often the backend is called for these inputs one after another, under dynamic=True."""
    torch._dynamo.reset()
    count = 0

    def counted(graph_module: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        nonlocal count
        count += 1
        return backend(graph_module, example_inputs)

    compiled = torch.compile(function, backend=counted, dynamic=True)
    with torch.no_grad():
        for tensor in inputs:
            torch._dynamo.mark_static(tensor, 1)
            compiled(tensor)
    return count


def test_no_recompile_that_plain_torch_would_not_make() -> None:
    inputs = [video(*sizes) for sizes in SIZES[:-1]] + [torch.randn(3, C, 4, 2, 6)]
    model = Model(sdpa, 2)
    plain = compiles(model, inputs, lambda graph_module, _: graph_module.forward)
    recorder = Recorder()
    assert compiles(model, inputs, recorder) == plain
    assert all(verdict(site) not in ("UNKNOWN_GRID", "SYMBOLIC") for site in recorder.sites)


def test_a_sequence_that_grows_past_min_tokens_is_decided_again() -> None:
    recorder = Recorder(config(min_tokens=N + 1))
    assert compiles(Model(sdpa), [video(3, 2, 6), video(8, 2, 6)], recorder) == 2
    assert [site.rewritten for site in recorder.sites] == [False, True]


def test_each_input_runs_with_its_own_grid() -> None:
    """The rewritten graph's grid arguments, evaluated for sizes other than the traced ones."""
    model = Model(sdpa)
    seen: list[tuple[int, ...]] = []

    class Watch(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target is repair_ops.PROFILE:
                seen.append(tuple(map(int, kwargs["grid"][:4])))
            return super().call_function(target, args, kwargs)

    def backend(graph_module: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        run_passes(graph_module, CONFIG)
        return lambda *args: Watch(graph_module).run(*args)

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, dynamic=True)
    with torch.no_grad():
        for sizes in SIZES[:-1]:
            x = video(*sizes)
            torch._dynamo.mark_static(x, 1)
            compiled(x)
    assert seen == [(*sizes, 0) for sizes in SIZES[:-1]]
