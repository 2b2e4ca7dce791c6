"""torch.compile(backend="svg") on a GPU: the kernels stand in Inductor's code, and the results are eager's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from models import case, output
from svg_compile.kernels import ops
from toy import ToyVideoDiT, latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "dense_steps": 0, "block": 16, "on_error": "raise"}
KERNELS = ("sparse_attention_fwd_kernel", "profile_rows_fwd_kernel")


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def on_gpu(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(on_gpu(item) for item in value)
    return value.cuda() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("dynamic", [False, True])
def test_full_density_equals_inductor(dynamic: bool) -> None:
    model, x = ToyVideoDiT().cuda(), latents(2, 5, 14, 9).cuda()
    dense = torch.compile(model, backend="inductor", dynamic=dynamic)(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="svg", dynamic=dynamic, options={**OPTIONS, "density": 1.0})
    out, code = run_and_get_code(compiled, x)
    torch.testing.assert_close(out, dense, atol=2e-4, rtol=2e-4)
    assert all(kernel in "".join(code) for kernel in KERNELS)
    if dynamic:
        other = latents(2, 6, 11, 7, seed=1).cuda()
        torch.testing.assert_close(compiled(other), model(other), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_models(name: str) -> None:
    """At full density a model gives what it gives in eager; its layers' kernels stand in Inductor's code."""
    model_case = case(name)
    model = model_case.build().cuda().eval()
    inputs = {key: on_gpu(value) for key, value in model_case.inputs(1, model_case.grid).items()}
    expected = output(model(**inputs))
    compiled = torch.compile(model, backend="svg", options={**OPTIONS, "density": 1.0})
    out, code = run_and_get_code(lambda: output(compiled(**inputs)))
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-3)
    assert all(kernel in "".join(code) for kernel in KERNELS)


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_strides_that_inductor_chooses(mode: str | None) -> None:
    """q, k and v come out of fused kernels, in whatever strides Inductor gives them, and k from a padded slice."""

    def attend(x: Tensor, weight: Tensor) -> Tensor:
        rows = torch.nn.functional.layer_norm(x @ weight, (3 * 2 * 72,)).unflatten(-1, (3, 2, 72))
        query, key, value = (part.transpose(1, 2) for part in rows.unbind(2))
        key = torch.nn.functional.pad(key, (0, 5))[..., :72] * 1.5
        grid = [5, 6, 7, 0, 0, 16]
        options = ([0.4], 32, True, None, "auto", ops.ABI, None, None, None)
        plan, *_ = torch.ops.svg.profile(query, key, value, None, grid, *options)
        return torch.ops.svg.attention(query.sin(), key, value, plan, None, grid, None, "auto", ops.ABI)

    x = torch.randn(2, 210, 48, device="cuda")
    weight = torch.randn(48, 3 * 2 * 72, device="cuda")
    compiled = torch.compile(attend, mode=mode)
    for _ in range(3):
        torch.testing.assert_close(compiled(x, weight).clone(), attend(x, weight), atol=1e-3, rtol=1e-3)
