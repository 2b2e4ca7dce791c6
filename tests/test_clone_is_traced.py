"""Explaining a model traces its clone: random numbers, weights and inputs are left as they were."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svg_compile
from toy import ToyVideoDiT, latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise"}
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_other_threads_draw_their_random_numbers_once() -> None:
    stop = threading.Event()
    drawn: list[tuple[float, float]] = []

    def draw() -> None:
        while not stop.is_set():
            drawn.append((torch.rand(1, dtype=torch.float64).item(), random.random()))
            stop.wait(0.002)

    # Before: it rewinds random numbers itself.
    model, given = ToyVideoDiT(4), latents()
    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(3):
            svg_compile.explain(model, given, options=OPTIONS)
    finally:
        stop.set()
        thread.join()
    for numbers in zip(*drawn):
        assert len(set(numbers)) == len(numbers)
    # A compile outside of a trace still leaves random numbers as Dynamo does.
    torch.manual_seed(0)
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_weights_need_not_be_where_the_inputs_are() -> None:
    model = ToyVideoDiT()
    expected = str(svg_compile.explain(model, latents(), options=OPTIONS))
    for module in model.modules():
        # As sequential offloading leaves a model between its forwards.
        for name, parameter in list(module._parameters.items()):
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)
    assert str(svg_compile.explain(model, latents(), options=OPTIONS)) == expected


def test_inputs_in_objects_and_dictionaries_are_not_written() -> None:
    class Caching(ToyVideoDiT):
        @torch.compiler.disable
        def note(self, extra: dict[str, Any]) -> None:
            extra["state"].calls += 1
            extra["count"].add_(1)
            extra["new"] = True

        def forward(self, latents: Tensor, extra: dict[str, Any]) -> Tensor:
            self.note(extra)
            return super().forward(latents)

    class State:
        def __init__(self) -> None:
            self.calls = 0

    state = State()
    extra = {"state": state, "count": torch.zeros(1, dtype=torch.int64)}
    assert svg_compile.explain(Caching(), latents(), extra, options=OPTIONS).rewritten == 2
    assert (state.calls, extra["count"].item(), "new" in extra) == (0, 0, False)


class Packed(nn.Parameter):
    """A weight of a library's own class that holds further state in addition to its values, as in bitsandbytes."""

    held: Tensor


class Adapted(nn.Module):
    """x [B, N, C] -> [B, N, 3C], by the state of a packed weight, plus an adapter."""

    def __init__(self, weight: Tensor, held: Tensor) -> None:
        super().__init__()
        self.weight = Packed(weight.detach(), requires_grad=False)
        self.weight.held = held.detach().clone()
        self.adapter = nn.Linear(weight.shape[1], weight.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter(x) + nn.functional.linear(x, self.weight.held.data.float())


class Kept(Adapted):
    """The same of tokens that it has written, a row further, into what the weight holds."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.held.data.copy_(x.roll(3, 1))
        return self.adapter(self.weight.held.data)


@pytest.mark.parametrize("adapted", [Adapted, Kept])
def test_what_a_packed_weight_holds_is_state_until_it_is_written(adapted: type[Adapted]) -> None:
    model = ToyVideoDiT(layers=1)
    weight = model.qkv[0].weight
    held = weight if adapted is Adapted else torch.zeros(1, 105, weight.shape[1])
    model.qkv[0] = adapted(weight, held)
    report = svg_compile.explain(model, latents(), options=OPTIONS)
    assert report.rewritten == (1 if adapted is Adapted else 0)
    assert len(report.sites) == 1
