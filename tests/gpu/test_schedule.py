"""The schedule on a GPU: steps as data of captured graphs, plans kept in them, blocks compiled one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import models
import svg_compile
from pipelines import TimedDiT
from svg_compile.runtime import dispatcher as schedule
from svg_compile.runtime.dispatcher import Forward
from toy import latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "dense_steps": 0, "block": 16, "on_error": "raise"}


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_density_over_steps_and_kept_plans_equal_the_reference(mode: str) -> None:
    staged = {**OPTIONS, "density": [(0.0, 0.9), (0.5, 0.3)], "profile_every": 2}
    model = TimedDiT().cuda()
    run = torch.compile(model, backend="svg", dynamic=False, options={**staged, "mode": mode})
    exact = torch.compile(model, backend="svg", dynamic=False, options={**staged, "engine": "reference"})
    seen: list[Forward] = []
    with svg_compile.denoising(model, steps=8) as denoising:
        for step in range(8):
            inputs = latents(seed=step).cuda(), torch.tensor([500.0], device="cuda")
            with torch._dynamo.config.patch(error_on_recompile=step > 0), schedule.watch(seen.append):
                got = run(*inputs).clone()
            torch.testing.assert_close(got, exact(*inputs), atol=2e-4, rtol=2e-4)
            denoising.advance()
    profiled = [not bool(forward.errors[0].isnan().any()) for forward in seen]
    # A captured graph's outputs are overwritten by its next replay: all that can be asked of the last one.
    assert profiled[-1] is False


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_blocks_compiled_one_by_one_equal_the_whole_model(name: str) -> None:
    case = models.case(name)
    inputs = {
        key: value.cuda() if isinstance(value, torch.Tensor) else value
        for key, value in case.inputs(1, case.grid).items()
    }
    outputs = []
    for how in ("whole", "blocks"):
        torch._dynamo.reset()
        model = case.build().cuda()
        if how == "whole":
            model.compile(backend="svg", dynamic=False, options=OPTIONS)
        else:
            model.compile_repeated_blocks(backend="svg", dynamic=False, options=OPTIONS)
        with svg_compile.denoising(model, steps=1), schedule.observe() as seen:
            outputs.append(models.output(model(**inputs)))
        assert any(not decision.dense for decision in seen)
    torch.testing.assert_close(*outputs, atol=5e-4, rtol=5e-4)
