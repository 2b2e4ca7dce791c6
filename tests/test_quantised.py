"""Weights quantised by the common libraries, with `backend="svg"`; `make test-companions`.

Each row is a real library on a real model: sparse whole and by blocks, with density 1 equal to the quantised model on
its own, with less equal to the same with the grid given. Inductor is replaced by the traced graph itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
import svg_compile
from companion_rows import block_offload
from companions import OPTIONS, STEPS, Beside, alone, beside, run
from lowering import kind, watch
from svg_compile.inspection.bare_clone import bare_clone

Quantise = Callable[[nn.Module], None]


def linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """(path, module) of the linear layers of a model's blocks whose rows are whole blocks of quantised weights."""
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [(path, module) for path, module in found if "blocks" in path and module.in_features % 32 == 0]


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    for path, module in linears(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make(module))


def torchao(model: nn.Module, config: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    mine = {module for _, module in linears(model)}
    quantization.quantize_(model, getattr(quantization, config)(), filter_fn=lambda module, path: module in mine)


def quanto(model: nn.Module, **types: str) -> None:
    library = pytest.importorskip("optimum.quanto")
    library.quantize(model, **{name: getattr(library, dtype) for name, dtype in types.items()})
    library.freeze(model)


def bitsandbytes(model: nn.Module, layer: str, **arguments: Any) -> None:
    library = pytest.importorskip("bitsandbytes")

    def make(linear: nn.Linear) -> nn.Module:
        new = getattr(library.nn, layer)(linear.in_features, linear.out_features, linear.bias is not None, **arguments)
        new.load_state_dict(linear.state_dict())
        # Moving the weights quantises them, once.
        return new.to("cpu")

    replace_linears(model, make)


def gguf(model: nn.Module, quant_type: str) -> None:
    library = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    number = getattr(library.GGMLQuantizationType, quant_type)

    def make(linear: nn.Linear) -> nn.Module:
        arguments = (linear.in_features, linear.out_features, linear.bias is not None)
        new = GGUFLinear(*arguments, compute_dtype=torch.float32)
        packed = torch.from_numpy(library.quants.quantize(linear.weight.detach().numpy(), number))
        new.weight, new.bias = GGUFParameter(packed, quant_type=number), linear.bias
        return new

    replace_linears(model, make)


# The row of docs/companions.md, and what quantises the model.
QUANTISED: dict[str, Quantise] = {
    "torchao int8, weight only": partial(torchao, config="Int8WeightOnlyConfig"),
    "torchao int8, dynamic": partial(torchao, config="Int8DynamicActivationInt8WeightConfig"),
    "torchao float8, weight only": partial(torchao, config="Float8WeightOnlyConfig"),
    "optimum-quanto int8": partial(quanto, weights="qint8"),
    "optimum-quanto float8": partial(quanto, weights="qfloat8"),
    "optimum-quanto int4": partial(quanto, weights="qint4"),
    "bitsandbytes 8 bit": partial(bitsandbytes, layer="Linear8bitLt", has_fp16_weights=False),
    "bitsandbytes 4 bit": partial(bitsandbytes, layer="Linear4bit", compute_dtype=torch.float32, quant_type="nf4"),
    "GGUF": partial(gguf, quant_type="Q8_0"),
}
rows = pytest.mark.parametrize("name", list(QUANTISED))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, fresh_dynamo: None) -> None:
    watch(monkeypatch, kind)


def quantised(name: str, of: str = "wan") -> nn.Module:
    model = models.case(of).build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        QUANTISED[name](model)
    return model


@rows
@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_it_is_sparse_and_equals_the_quantised_model(name: str, how: str) -> None:
    case = models.case("wan")
    inputs = case.inputs(1, case.grid)
    expected = list(run(quantised(name), inputs))
    full = beside(quantised(name), how, inputs)
    assert full.same(expected)
    found = beside(quantised(name), how, inputs, density=0.3)
    told = beside(quantised(name), how, inputs, density=0.3, layout=case.grid)
    assert found.same(told.outputs)
    assert not found.same(expected)
    for each in (full, found, told):
        assert (each.sparse, each.dense, each.said) == (STEPS * case.video_sites, 0, [])
    assert full.graphs <= alone(quantised(name), how, inputs)


WITH_TEXT = ("torchao int8, weight only", "optimum-quanto int8", "bitsandbytes 4 bit")


@pytest.mark.parametrize("how", [pytest.param("whole", marks=pytest.mark.slow), "blocks"])
@pytest.mark.parametrize("name", WITH_TEXT)
def test_text_beside_the_video(name: str, how: str) -> None:
    case = models.case("hunyuan_video")
    inputs = case.inputs(1, case.grid)
    found = beside(quantised(name, "hunyuan_video"), how, inputs, density=0.3)
    told = {**OPTIONS, "density": 0.3, "layout": (*case.grid, case.text_len, "last")}
    assert found.sparse
    assert found.same(beside(quantised(name, "hunyuan_video"), "whole", inputs, **told).outputs)


def facts(model: nn.Module) -> dict[str, Any]:
    """All that a trace could change in quantised weights: their identity, values and other state."""

    def of(value: Any) -> Any:
        return (id(value), value.data_ptr() if type(value) is Tensor else 0) if isinstance(value, Tensor) else value

    weights = {
        path: (id(weight), type(weight), {name: of(value) for name, value in vars(weight).items()})
        for path, weight in model.named_parameters()
    }
    states = {
        path: {name: of(value) for name, value in vars(module.state).items()}
        for path, module in model.named_modules()
        if hasattr(module, "state")
    }
    return {**weights, "states": states}


@rows
def test_a_trace_leaves_the_weights_as_they_are(name: str) -> None:
    case = models.case("wan")
    inputs, model = case.inputs(1, case.grid), quantised(name)
    before, expected = facts(model), models.output(quantised(name)(**inputs))
    report = svg_compile.explain(model, **inputs, options=OPTIONS)
    assert sum(site.rewritten for site in report.sites) == case.video_sites
    assert facts(model) == before
    assert torch.equal(models.output(model(**inputs)), expected)


@pytest.mark.parametrize("name", ["torchao int8, weight only", "optimum-quanto float8"])
def test_the_clone_holds_no_weights(name: str) -> None:
    """What a weight is made of is replaced as any tensor is, so that no weight must be on the device of the inputs."""
    model = quantised(name)
    seen: list[Tensor] = []

    def meta(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        seen.append(tensor)
        fake = tensor.to("meta")
        return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake

    clone = bare_clone(model, meta)
    weight, twin = model.blocks[0].attn1.to_q.weight, clone.blocks[0].attn1.to_q.weight
    assert type(twin) is type(weight)
    assert all(getattr(twin, part).device.type == "meta" for part in weight.__tensor_flatten__()[0])
    assert weight.device.type == "cpu"
    assert all(type(tensor) in (Tensor, nn.Parameter) for tensor in seen)


@dataclass(frozen=True)
class Operator:
    """An operator of bitsandbytes whose rows are relied on: (rows) -> its arguments."""

    name: str
    arguments: Callable[[Tensor], tuple[Any, ...]]


def _int8(rows: Tensor) -> Tensor:
    return rows.mul(20).clamp(-127, 127).to(torch.int8)


OPERATORS = (
    Operator(
        "gemm_4bit",
        lambda rows: (
            rows,
            torch.randint(0, 256, (64 * 32, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
            (64, 64),
            torch.ones(64),
            64,
            "nf4",
        ),
    ),
    Operator("int8_vectorwise_quant", lambda rows: (rows.half(),)),
    Operator("int8_linear_matmul", lambda rows: (_int8(rows), torch.ones(8, 64, dtype=torch.int8))),
    Operator("int8_mm_dequant", lambda rows: (_int8(rows).to(torch.int32), rows.abs().amax(1), torch.ones(64))),
    Operator(
        "int8_scaled_mm",
        lambda rows: (_int8(rows), torch.ones(8, 64, dtype=torch.int8), rows.abs().amax(1), torch.ones(8)),
    ),
    Operator(
        "int8_mixed_scaled_mm",
        lambda rows: (rows, _int8(rows), torch.ones(8, 64, dtype=torch.int8), rows.abs().amax(1), torch.ones(8)),
    ),
)


@pytest.mark.parametrize("operator", OPERATORS, ids=[operator.name for operator in OPERATORS])
def test_known_operators_keep_the_rows(operator: Operator) -> None:
    """Rows in another order give the result's rows in that order."""
    pytest.importorskip("bitsandbytes")
    call = getattr(torch.ops.bitsandbytes, operator.name)
    rows = torch.randn(12, 64, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    result, turned = call(*operator.arguments(rows)), call(*operator.arguments(rows[order]))
    first, other = (value[0] if isinstance(value, tuple) else value for value in (result, turned))
    torch.testing.assert_close(other, first[order])
    assert not torch.equal(first, first[order])


def adapters(model: Any, rank: int = 4, seed: int = 0, name: str = "default") -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = peft.LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False, target_modules=targets)
    model.add_adapter(config, adapter_name=name)


@pytest.mark.parametrize("name", ["torchao int8, weight only", "bitsandbytes 4 bit", "bitsandbytes 8 bit", "GGUF"])
@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_lora_on_quantised_weights(name: str, how: str) -> None:
    case = models.case("wan")
    inputs = case.inputs(1, case.grid)

    def build() -> nn.Module:
        model = quantised(name)
        adapters(model)
        return model

    expected = list(run(build(), inputs))
    assert not torch.allclose(expected[0], next(run(quantised(name), inputs)), atol=1e-3)
    found: Beside = beside(build(), how, inputs)
    assert found.sparse
    assert not found.dense
    assert found.same(expected)


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_offloading_swaps_quantised_weights(how: str) -> None:
    """torch.utils.swap_tensors, by which diffusers moves torchao's weights, refuses tensors with weak references."""
    case = models.case("wan")
    inputs = case.inputs(1, case.grid)

    def build() -> nn.Module:
        model = quantised("torchao float8, weight only")
        adapters(model)
        block_offload(model)
        return model

    expected = list(run(build(), inputs))
    assert beside(build(), how, inputs).same(expected)
    found = beside(build(), how, inputs, density=0.3)
    assert (found.sparse, found.dense, found.said) == (STEPS * case.video_sites, 0, [])
    assert not found.same(expected)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
