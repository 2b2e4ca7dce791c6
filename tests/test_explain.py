"""`explain`: its report on a model, that it needs no weights, and that it leaves no state behind."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

import models
import svg_compile
from svg_compile import Reason, SvgError
from svg_compile.errors import NeedsData
from toy import ToyVideoDiT, latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise"}


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def entries(function: Any) -> int:
    return len(torch._C._dynamo.eval_frame._debug_get_cache_entry_list(function.__code__))


class Counting:
    """A backend that counts its compiles and runs the graph as it is."""

    def __init__(self) -> None:
        self.compiles = 0

    def __call__(self, graph_module: torch.fx.GraphModule, inputs: Any) -> Any:
        self.compiles += 1
        return graph_module.forward


def test_nothing_is_left_of_any_number_of_explains() -> None:
    model = ToyVideoDiT()
    # Other tests of the process have counted.
    counted, breaks = copy.deepcopy(counters), list(torch._dynamo.utils.graph_break_reasons)
    for _ in range(20):
        svg_compile.explain(model, latents(), options=OPTIONS)
    assert entries(ToyVideoDiT.forward) == 0
    assert {name: counter for name, counter in counters.items() if counter} == {k: v for k, v in counted.items() if v}
    assert torch._dynamo.utils.graph_break_reasons == breaks
    backend = Counting()
    compiled = torch.compile(model, backend=backend)
    # As without `explain`: one compile, and the sizes that it saw have made none of them dynamic.
    compiled(latents())
    assert (backend.compiles, entries(ToyVideoDiT.forward)) == (1, 1)


def test_a_model_compiled_before_stays_compiled() -> None:
    model, backend = ToyVideoDiT(), Counting()
    compiled = torch.compile(model, backend=backend, dynamic=False)
    expected = compiled(latents())
    for _ in range(12):
        report = svg_compile.explain(compiled, latents(frames=4), options=OPTIONS)
    assert report.rewritten == 2
    assert torch.equal(compiled(latents()), expected)
    assert backend.compiles == 1
    # More explains than Dynamo's recompile limit have not used it up.
    compiled(latents(frames=6))
    assert backend.compiles == 2


def test_a_model_that_compiled_itself_is_traced_and_not_run() -> None:
    model, backend = ToyVideoDiT(), Counting()
    model.compile(backend=backend)
    assert svg_compile.explain(model, latents(), options=OPTIONS).rewritten == 2
    assert backend.compiles == 0
    model(latents())
    assert backend.compiles == 1


def test_no_stance_makes_it_run_the_model() -> None:
    ran = []

    class Telling(ToyVideoDiT):
        def forward(self, latents: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                ran.append(latents)
            return super().forward(latents)

    with torch.compiler.set_stance("force_eager"), torch._dynamo.config.patch(disable=True):
        assert svg_compile.explain(Telling(), latents(), options=OPTIONS).rewritten == 2
    assert ran == []


def test_dynamo_switched_off_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(SvgError, match="TORCHDYNAMO_DISABLE"):
        svg_compile.explain(ToyVideoDiT(), latents())


class Forgetful(ToyVideoDiT):
    """Writes everything that a forward can write, before, between and after graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))
        self.steps = 0
        self.cache: dict[str, Tensor] = {}
        self.log: list[int] = []

    def forward(self, latents: Tensor) -> Tensor:
        self.steps += 1
        out = super().forward(latents)
        torch._dynamo.graph_break()
        self.seen.add_(1)
        self.cache["last"] = out
        self.log.append(self.steps)
        self.new = torch.rand(2) * random.random()
        self._outside(latents)
        return F.dropout(out, 0.5, training=True)

    @torch.compiler.disable
    def _outside(self, latents: Tensor) -> None:
        self.seen.mul_(5)
        latents.add_(1)
        self.log.append(random.randint(0, 9))
        torch.manual_seed(3)


def test_attributes_buffers_and_inputs_are_what_they_were() -> None:
    model, given = Forgetful(), latents()
    before = copy.deepcopy(model.state_dict())
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    kept = given.clone()
    report = svg_compile.explain(model, given, options=OPTIONS)
    assert report.graphs > 1
    assert report.rewritten == 2
    assert torch.equal(given, kept)
    assert (model.steps, model.cache, model.log) == (0, {}, [])
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_model_is_not_kept_alive() -> None:
    model = ToyVideoDiT()
    svg_compile.explain(model, latents(), options=OPTIONS)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("inputs_too", [False, True])
def test_a_model_on_the_meta_device_is_explained_as_one_with_weights(inputs_too: bool) -> None:
    with torch.device("meta"):
        model = ToyVideoDiT()
    given = latents().to("meta") if inputs_too else latents()
    report = svg_compile.explain(model, given, options=OPTIONS)
    real = svg_compile.explain(ToyVideoDiT(), latents(), options=OPTIONS)
    assert str(report) == str(real)
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}


def test_fake_tensors_of_the_callers_own_mode_do_too() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, given = ToyVideoDiT(), torch.empty(1, 4, 5, 7, 3)
    assert svg_compile.explain(model, given, options=OPTIONS).rewritten == 2


def test_a_full_size_model_takes_no_memory() -> None:
    class Large(ToyVideoDiT):
        def __init__(self) -> None:
            super().__init__(layers=1)
            # 16 GB of weights, and gigabytes of activations between the graphs.
            self.wide = nn.ModuleList(nn.Linear(32, 2**26) for _ in range(2))

        def forward(self, latents: Tensor) -> Tensor:
            x = super().forward(latents)
            torch._dynamo.graph_break()
            y = self.wide[0](x)
            torch._dynamo.graph_break()
            return self.wide[1](x) + y

    with torch.device("meta"):
        model = Large()
    report = svg_compile.explain(model, latents(), options=OPTIONS)
    assert report.rewritten == 1
    assert len(report.breaks) == 2


def test_values_that_no_weight_can_give_are_an_error_that_says_what_to_do() -> None:
    class Reading(ToyVideoDiT):
        def forward(self, latents: Tensor) -> Tensor:
            return super().forward(latents * self.gain())

        @torch.compiler.disable
        def gain(self) -> float:
            return float(self.patch.weight.sum())

    with torch.device("meta"):
        model = Reading()
    with pytest.raises(NeedsData, match=r"_local_scalar_dense.*test_explain.py:\d+ \(return float.*reads a value"):
        svg_compile.explain(model, latents(), options=OPTIONS)
    assert svg_compile.explain(Reading(), latents(), options=OPTIONS).rewritten == 2


def test_graph_breaks_are_named_with_their_cause_and_line() -> None:
    case = models.case("mochi")
    report = svg_compile.explain(case.build(), **case.inputs(1, case.grid), options={"min_tokens": 0})
    (found,) = report.breaks
    assert found.reason == "Dynamic shape operator"
    assert "attention_processor.py:" in found.source
    assert "nonzero" in found.explanation
    assert "capture_dynamic_output_shape_ops" in found.hint
    assert Reason.UNPROVEN_BETWEEN_GRAPHS in {site.reason for site in report.sites}


def test_a_branch_on_data_is_told_once() -> None:
    class Branching(ToyVideoDiT):
        def forward(self, latents: Tensor) -> Tensor:
            return super().forward(latents * 2 if latents.sum() > 0 else latents)

    report = svg_compile.explain(Branching(), latents(), options=OPTIONS)
    (found,) = report.breaks
    assert found.reason == "Data-dependent branching"
    assert found.source.startswith(__file__)
    assert found.explanation


def test_one_graph_that_dynamo_runs_for_every_layer_has_a_row_for_each() -> None:
    case = models.case("hunyuan_video_1_5")
    report = svg_compile.explain(case.build(), **case.inputs(1, case.grid), options=OPTIONS)
    assert [(site.layer, site.calls) for site in report.sites] == [
        ("context_embedder.token_refiner.refiner_blocks.0.attn", 1),
        ("transformer_blocks.0.attn", 1),
        ("transformer_blocks.1.attn", 1),
    ]
    assert [site.rewritten for site in report.sites] == [False, True, True]
    assert "transformer_blocks.{0-1}.attn (2x)" in str(report)


def test_a_pass_that_fails_is_a_note_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("svg_compile.passes.find_attention", broken)
    report = svg_compile.explain(ToyVideoDiT(), latents(), options={**OPTIONS, "on_error": "fallback"})
    assert report.sites == ()
    assert "broken on purpose" in str(report)
    with pytest.raises(Exception, match="broken on purpose"):
        svg_compile.explain(ToyVideoDiT(), latents(), options=OPTIONS)


def test_inductors_options_may_stand_among_the_options() -> None:
    report = svg_compile.explain(ToyVideoDiT(), latents(), options={**OPTIONS, "max_autotune": True, "mode": "default"})
    assert report.rewritten == 2
    with pytest.raises(SvgError, match="unknown option 'densty'"):
        svg_compile.explain(ToyVideoDiT(), latents(), options={"densty": 0.3})


def test_a_function_is_explained_as_well() -> None:
    model = ToyVideoDiT(layers=1)
    report = svg_compile.explain(lambda x: model(x) * 2, latents(), options=OPTIONS)
    assert [site.reason for site in report.sites] == [None]
    report = svg_compile.explain(model.forward, latents(), options={**OPTIONS, "min_tokens": 999})
    assert [site.reason for site in report.sites] == [Reason.TOO_SHORT]
