"""Runs of traced graphs on fake tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor


@contextlib.contextmanager
def symbolic_run(fake_mode: Any) -> Iterator[None]:
    """Run a graph on fake tensors as Dynamo does, without gradients: symbolic sizes reach every operator.

    Sizes that depend on data may be made without anybody binding them. Gradient mode and autocast, which a graph may
    switch itself, are put back as they were.
    """
    environment = fake_mode.shape_env
    fresh = contextlib.nullcontext() if environment is None else environment.ignore_fresh_unbacked_symbols()
    with _keep_torch_state(), torch.no_grad(), fresh, enable_python_dispatcher(), fake_mode:
        yield


@contextlib.contextmanager
def _keep_torch_state() -> Iterator[None]:
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


class FakeRun(fx.Interpreter):
    """Runs a graph on fake tensors, its constants too."""

    def __init__(self, module: fx.GraphModule, fake_mode: Any) -> None:
        super().__init__(module, garbage_collect_values=True)
        # Inductor's provenance hooks have no business in an analysis run.
        self.extra_traceback = False
        self.fake_mode = fake_mode

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        return self.fake_mode.from_tensor(value, static_shapes=True)


def example_inputs(graph_module: fx.GraphModule, *, detached: bool) -> dict[fx.Node, Any]:
    """The example of each input; detached: views of them, for a graph that may change the shapes of its inputs."""
    nodes = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    values = {node: node.meta["example_value"] for node in nodes}
    return {node: value.detach() if detached and isinstance(value, Tensor) else value for node, value in values.items()}
