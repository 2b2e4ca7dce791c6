"""`bisect`: a layer made to suffer is found first, the numbers are the model's own, and nothing is changed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
import svg_compile
from svg_compile import NothingRewritten, OptionError, SvgError
from svg_compile.inspection import bisection
from svg_compile.inspection.bisection import switched_model
from svg_compile.inspection.bisection.report import LayerCost, ranked
from svg_compile.inspection.recording.entry import Shares
from toy import ToyVideoDiT, latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "density": 0.5}


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def planted(bad: int, layers: int = 4) -> ToyVideoDiT:
    """A toy whose layers add little, but one."""
    model = ToyVideoDiT(layers)
    with torch.no_grad():
        for layer, qkv in enumerate(model.qkv):
            if layer != bad:
                qkv.weight[64:] *= 0.02
                qkv.bias[64:] *= 0.02
    return model


@pytest.mark.parametrize("bad", [0, 2, 3])
@pytest.mark.parametrize("metric", ["relative_l2", "psnr"])
def test_the_layer_that_suffers_is_found_first(bad: int, metric: str) -> None:
    found = svg_compile.bisect(planted(bad), (latents(),), metric=metric, options=OPTIONS)
    assert found.layers[0].layer == f"(model)#{bad}"
    assert len({layer.layer for layer in found.layers}) == 4
    first, *others = found.layers
    if metric == "relative_l2":
        assert found.floor == 0
        assert all(first.alone > 5 * layer.alone for layer in others)
        assert all(first.without < 0.5 * layer.without for layer in others)
        assert found.together == pytest.approx(first.alone, rel=0.1)
    else:
        assert found.floor == math.inf
        assert all(first.alone < layer.alone - 14 for layer in others)


def test_in_a_real_model_the_layer_that_suffers_is_found_first_by_its_path() -> None:
    wan = models.build("WanTransformer3DModel", **models.WAN | {"num_layers": 4})
    for layer, block in enumerate(wan.blocks):
        block.attn1.to_out[0].weight.mul_(30.0 if layer == 2 else 0.1)
    given = models.case("wan").inputs(2, models.GRID)
    found = svg_compile.bisect(wan, given, options=OPTIONS)
    assert found.layers[0].layer == "blocks.2.attn1"
    assert found.layers[0].alone > 3 * found.layers[1].alone


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["hunyuan_video", "cogvideox_5b"])
def test_the_ends_are_the_dense_and_the_sparse_model(name: str, dtype: torch.dtype) -> None:
    case = models.case(name)
    model = case.build().to(dtype)
    given = {
        key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in case.inputs(2, case.grid).items()
    }
    seen: list[tuple[Any, Any]] = []
    # Repaired, these small models are within bfloat16's rounding of dense.
    options = {**OPTIONS, "repair": False}
    svg_compile.bisect(model, given, options=options, metric=lambda *pair: float(seen.append(pair) or len(seen)))
    assert len(seen) == 2 * 2 + 2
    dense, sparse = models.output(seen[0][0]), models.output(seen[1][1])
    assert torch.equal(dense, models.output(model(**given)))
    compiled = torch.compile(model, backend="svg", options={**options, "dense_steps": 0, "strict": True})
    expected = models.output(compiled(**given))
    tolerance = 1e-4 if dtype is torch.float32 else 3e-2
    assert bisection.relative_l2(expected, sparse) < tolerance
    assert bisection.relative_l2(expected, sparse) < 0.3 * bisection.relative_l2(dense, sparse)


class Careless(nn.Module):
    """A model that writes into itself and its input, counts its calls and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ToyVideoDiT(2)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor, noise: float = 0.1) -> Tensor:
        self.calls += 1
        self.seen += 1
        x.mul_(2)
        return self.inner(x) + noise * torch.randn(1) + self.seen + self.calls


@pytest.mark.parametrize("in_place", [False, True])
def test_every_run_finds_the_model_and_its_inputs_as_they_were(in_place: bool) -> None:
    model, x = Careless(), latents()
    if in_place:
        model.compile(backend="eager")
    before, random = x.clone(), torch.get_rng_state()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    given = model if in_place else torch.compile(model, backend="eager")
    attributes = dict(vars(model))
    found = svg_compile.bisect(given, {"x": x, "noise": 0.2}, options=OPTIONS)
    assert found.floor == 0
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert vars(model) == attributes
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_it_traces_once_whatever_the_number_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    real = switched_model.SwitchedModel._rewritten
    monkeypatch.setattr(switched_model.SwitchedModel, "_rewritten", lambda *a: traced.append(1) or real(*a))
    svg_compile.bisect(ToyVideoDiT(3), (latents(),), options=OPTIONS)
    assert len(traced) == 1


def test_a_layer_behind_a_graph_break_counts_and_shared_graphs_are_told_apart() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ToyVideoDiT(1)

        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return x + self.inner(x).mean()

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    found = svg_compile.bisect(Broken(), (latents(),), options=OPTIONS)
    assert sorted(layer.layer for layer in found.layers) == [f"blocks.{block}.inner" for block in range(3)]


@torch.compiler.nested_compile_region
def region(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v) * 1.0


def test_layers_that_share_a_child_graph_are_switched_one_by_one() -> None:
    plain = svg_compile.bisect(ToyVideoDiT(2), (latents(),), options=OPTIONS)
    model = ToyVideoDiT(2, attend=lambda *each: region(*(tensor.clone() for tensor in each)))
    shared = svg_compile.bisect(model, (latents(),), options=OPTIONS)
    costs = [[(layer.layer, layer.alone, layer.without) for layer in found.layers] for found in (plain, shared)]
    assert costs[0] == costs[1]


COSTS = [
    LayerCost("a", 0.1, 0.5, 0.3, Shares(1.0, 0.0, 0.0)),
    LayerCost("b|c", 0.2, 0.4, 0.31, Shares(0.25, 0.75, 0.0)),
    LayerCost("d", math.nan, 0.5, 0.29, Shares(0.0, 0.5, 0.5)),
    LayerCost("e", 0.1, 0.6, 0.3, Shares(0.0, 1.0, 0.0)),
]


def test_reports_rank_by_error_and_print_in_three_ways() -> None:
    assert [layer.layer for layer in ranked(COSTS, False)] == ["d", "b|c", "a", "e"]
    assert [layer.layer for layer in ranked(COSTS, True)] == ["d", "e", "a", "b|c"]
    report = bisection.Bisection(ranked(COSTS[:2], False), "relative_l2", 0.25, math.inf)
    assert str(report).splitlines() == [
        "relative_l2 of 2 layers: all sparse 0.25, all dense inf",
        "  layer  alone  all but it  density  spatial  temporal  dense",
        "  b|c      0.2         0.4    0.310      25%       75%     0%",
        "  a        0.1         0.5    0.300     100%        0%     0%",
    ]
    assert "| b\\|c | 0.2 | 0.4 | 0.310 | 25% | 75% | 0% |" in report.to_markdown()
    facts = json.loads(report.to_json())
    assert (facts["together"], facts["floor"], facts["layers"][0]["heads"]["temporal"]) == (0.25, None, 0.75)


def test_metrics_are_what_their_names_say() -> None:
    dense, sparse = {"a": torch.tensor([0.0, 4.0]), "b": 3}, {"a": torch.tensor([3.0, 4.0]), "b": 3}
    assert bisection.relative_l2(dense, sparse) == pytest.approx(3 / 4)
    assert bisection.psnr(dense, sparse) == pytest.approx(10 * math.log10(16 / 4.5))
    assert (bisection.relative_l2(dense, dense), bisection.psnr(dense, dense)) == (0.0, math.inf)
    with pytest.raises(SvgError, match="no floating tensor in an output of type int: pass metric"):
        bisection.psnr(1, 2)


def test_what_cannot_be_bisected_is_refused_with_the_reason() -> None:
    with pytest.raises(NothingRewritten, match="fewer tokens than min_tokens"):
        svg_compile.bisect(ToyVideoDiT(), (latents(),))
    with pytest.raises(OptionError, match="unknown option 'densty'"):
        svg_compile.bisect(ToyVideoDiT(), (latents(),), options={"densty": 0.3})
    with pytest.raises(SvgError, match="one of relative_l2, psnr or a function, got 'ssim'"):
        svg_compile.bisect(ToyVideoDiT(), (latents(),), metric="ssim")
    with pytest.raises(SvgError, match="needs weights"):
        svg_compile.bisect(ToyVideoDiT().to("meta"), (latents().to("meta"),), options=OPTIONS)
