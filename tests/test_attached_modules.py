"""The hooks of `attach` do not disturb pickles, copies, exports and compiles of the model.

Inductor is replaced by the traced graph itself, so that a compile costs a trace.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import svg_compile
from block_model import BlockModel
from lowering import kind, watch
from pipelines import TimedDiT
from step_models import Pipe, log_of
from svg_compile.runtime.dispatcher import observe, registered
from toy import latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise", "dense_steps": 0.5}

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    before = registered()
    yield watch(monkeypatch, kind)
    assert registered() == before


def pipe_of(how: str) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = Pipe(FlowMatchEulerDiscreteScheduler(shift=5.0), transformer=BlockModel())
    pipe.transformer.compile_in_place(how, options=OPTIONS)
    return pipe


def run(pipe: Any, model: Any = None, steps: int = 2) -> tuple[str, set[str]]:
    """(the log of a run, the sources of its steps)."""
    x = latents()
    pipe.scheduler.set_timesteps(steps)
    with observe() as seen:
        for t in pipe.scheduler.timesteps:
            out = (model or pipe.transformer)(x, t.expand(1))
            pipe.scheduler.step(torch.zeros_like(x), t, x)
            assert out.shape == x.shape
    return log_of(seen), {decision.source for decision in seen}


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_an_attached_model_pickles_and_copies_as_if_it_were_not(how: str) -> None:
    pipe = pipe_of(how)
    model, x, t = pipe.transformer, latents(), torch.tensor([900.0])
    expected = BlockModel.forward(model, x, t)
    states = ["compiled", "attached", "after a run", "removed"]
    for state in states:
        if state == "attached":
            handle = svg_compile.attach(pipe)
        if state == "after a run":
            logs = run(pipe)
        if state == "removed":
            handle.remove()
        pickled = pickle.dumps(model)
        assert b"svg_compile" not in pickled, state
        torch.save(model, buffer := io.BytesIO())
        buffer.seek(0)
        twins = [pickle.loads(pickled), torch.load(buffer, weights_only=False), copy.deepcopy(model)]
        for twin in twins:
            torch.testing.assert_close(twin(x, t), expected)
            assert not any(other is mine for other in twin.parameters() for mine in model.parameters())
    assert logs == ("Ds" if how == "whole" else "DDss", {"attached"}), "a forward of each block"


def test_a_deep_copy_of_an_attached_model_counts_for_itself_until_it_is_attached() -> None:
    pipe = pipe_of("whole")
    with svg_compile.attach(pipe):
        run(pipe)
        twin = copy.deepcopy(pipe.transformer)
        twin.compile(backend="svg", fullgraph=True, dynamic=False, options={**OPTIONS, "num_inference_steps": 2})
        other = Pipe(copy.deepcopy(pipe.scheduler), transformer=twin)
        assert run(other) == ("Ds", {"timestep"})
        assert run(pipe) == ("Ds", {"attached"})
        with svg_compile.attach(other):
            assert run(other) == ("Ds", {"attached"})
            assert run(pipe) == ("Ds", {"attached"})


@pytest.mark.parametrize("strict", [False, True])
def test_an_attached_model_exports(strict: bool) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = Pipe(FlowMatchEulerDiscreteScheduler(), transformer=TimedDiT())
    inputs = latents(), torch.tensor([900.0])
    plain = torch.export.export(pipe.transformer, inputs, strict=strict)
    with svg_compile.attach(pipe):
        attached = torch.export.export(pipe.transformer, inputs, strict=strict)
        twin = torch.export.export(copy.deepcopy(pipe.transformer), inputs, strict=strict)
    removed = torch.export.export(pipe.transformer, inputs, strict=strict)
    codes = {program.graph_module.code for program in (plain, attached, twin, removed)}
    assert len(codes) == 1
    torch.testing.assert_close(attached.module()(*inputs), pipe.transformer(*inputs))


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_function_around_an_attached_model_is_one_graph(fullgraph: bool, built: list[str]) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    model = TimedDiT()
    pipe = Pipe(FlowMatchEulerDiscreteScheduler(shift=5.0), transformer=model)

    def guided(latents: Tensor, timestep: Tensor) -> Tensor:
        yes, no = model(latents, timestep), model(2 * latents, timestep)
        return no + 5.0 * (yes - no)

    fast = torch.compile(guided, backend="svg", fullgraph=fullgraph, dynamic=False, options=OPTIONS)
    with svg_compile.attach(pipe):
        pipe.scheduler.set_timesteps(2)
        with observe() as seen:
            for t in pipe.scheduler.timesteps:
                fast(latents(), t.reshape(1).clone())
                pipe.scheduler.step(latents(), t, latents())
        with svg_compile.denoising(model, steps=2) as told, observe() as inside:
            for _ in range(2):
                fast(latents(), torch.tensor([5.0]))
                told.advance()
    assert log_of(seen) == log_of(inside) == "Ds"
    assert {decision.source for decision in seen} == {"attached"}
    assert built == ["dense", "sparse"], "more graphs than one"
