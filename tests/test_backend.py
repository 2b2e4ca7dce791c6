"""The backend as users meet it: options, fallback, warnings, dynamic shapes, and what Inductor makes of the graph."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

import svg_compile
from lowering import kind, watch
from svg_compile import NothingRewritten, OptionError, Reason
from svg_compile.backend import svg
from svg_compile.kernels import ops
from toy import ToyVideoDiT, by_hand, latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "dense_steps": 0, "block": 8, "on_error": "raise"}


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def compiled(model: Any = None, *, dynamic: bool | None = None, **options: Any) -> Callable[..., Tensor]:
    model = ToyVideoDiT() if model is None else model
    return torch.compile(model, backend="svg", fullgraph=True, dynamic=dynamic, options={**OPTIONS, **options})


def test_full_density_equals_inductor_and_low_density_does_not() -> None:
    x = latents(batch=2)
    dense = torch.compile(ToyVideoDiT(), backend="inductor")(x)
    torch._dynamo.reset()
    torch.testing.assert_close(compiled(density=1.0)(x), dense, atol=2e-5, rtol=2e-5)
    torch._dynamo.reset()
    assert float((compiled(density=0.3)(x) - dense).abs().max()) > 1e-3


def test_the_reference_engine_agrees_with_the_cpu_engine() -> None:
    x = latents()
    fast = compiled(density=0.4)(x)
    torch._dynamo.reset()
    torch.testing.assert_close(compiled(density=0.4, engine="reference")(x), fast, atol=2e-5, rtol=2e-5)


def test_dense_layers_leaves_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    report = svg_compile.explain(ToyVideoDiT(layers=3), latents(), options={**OPTIONS, "dense_layers": 2})
    assert [site.reason for site in report.sites] == [Reason.DENSE_LAYER, Reason.DENSE_LAYER, None]


@pytest.mark.parametrize("fail_in", ["infer_token_axes", "find_attention", "rewrite_attention"])
def test_a_pass_that_raises_after_changing_the_graph_leaves_plain_inductor(
    fail_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import svg_compile.passes as passes

    x = latents()
    dense = torch.compile(ToyVideoDiT(), backend="inductor")(x)
    torch._dynamo.reset()
    real = getattr(passes, fail_in)

    def broken(first: Any, *args: Any, **kwargs: Any) -> Any:
        real(first, *args, **kwargs)
        module = first if isinstance(first, fx.GraphModule) else first[0].module
        first_call = next(node for node in module.graph.nodes if node.op == "call_function")
        first_call.replace_all_uses_with(next(iter(module.graph.nodes)))
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(passes, fail_in, broken)
    with pytest.warns(UserWarning, match="broken on purpose") as seen:
        out = compiled(on_error="fallback")(x)
    assert len([w for w in seen if "svg" in str(w.message)]) == 1
    assert torch.equal(out, dense)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="broken on purpose"):
        compiled(on_error="raise")(x)


def test_one_warning_when_nothing_was_rewritten_and_an_error_when_strict() -> None:
    with pytest.warns(UserWarning, match="fewer tokens than min_tokens.*lower options"):
        compiled(min_tokens=4096)(latents())
    torch._dynamo.reset()
    with pytest.raises(Exception, match="no attention was rewritten") as error:
        compiled(min_tokens=4096, strict=True)(latents())
    assert isinstance(error.value.__cause__ or getattr(error.value, "inner_exception", None), NothingRewritten)


def test_another_attention_backend_is_named_in_the_warning() -> None:
    with pytest.warns(UserWarning, match=r"no known attention.*set_attention_backend"):
        compiled(ToyVideoDiT(attend=by_hand))(latents())


def by_flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = flex_attention(q, k, v)
    assert isinstance(out, Tensor)
    return out


def test_flex_attention_is_named_in_the_warning_and_in_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, kind)
    with pytest.warns(UserWarning, match=r"2x attention by FlexAttention.*set_attention_backend"):
        compiled(ToyVideoDiT(2, attend=by_flex))(latents())
    torch._dynamo.reset()
    assert "no rows: attention by FlexAttention" in str(svg_compile.explain(ToyVideoDiT(2, attend=by_flex), latents()))


def test_a_whole_model_that_is_watched_is_not_told_to_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, kind)
    for watched in (False, True):
        model, packed = Packed().eval(), torch.randn(1, 24, 16)
        model.compile(backend="svg", options={"min_tokens": 0})
        steps = svg_compile.denoising(model, steps=1) if watched else nullcontext()
        with pytest.warns(UserWarning, match="no video tokens") as warned, torch.no_grad(), steps:
            model(packed)
        told = [str(each.message) for each in warned if "no video tokens" in str(each.message)]
        assert len(told) == 1
        assert ("attach(pipe)" in told[0]) != watched
        torch._dynamo.reset()


class Packed(nn.Module):
    """Packed latents: nothing says which grid they have."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, hidden_states: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (2, 8)).transpose(1, 2) for t in self.qkv(hidden_states).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v)


def test_no_warning_when_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        compiled()(latents())


def test_unknown_options_fail_by_name() -> None:
    with pytest.raises(Exception, match="unknown option 'densities'") as error:
        compiled(densities=0.3)(latents())
    assert isinstance(error.value.__cause__ or getattr(error.value, "inner_exception", None), OptionError)


def test_inductor_options_and_modes_work() -> None:
    x = latents()
    expected = compiled()(x)
    torch._dynamo.reset()
    assert torch.equal(compiled(epilogue_fusion=False, mode="reduce-overhead")(x), expected)


def test_inputs_that_need_gradients_stay_dense() -> None:
    model, x = ToyVideoDiT(), latents()
    with torch.enable_grad():
        expected = torch.compile(model, backend="inductor")(x)
        torch._dynamo.reset()
        with pytest.warns(UserWarning, match=Reason.GRADIENT.value[0]):
            assert torch.equal(compiled(model)(x), expected)
    assert "no_grad" in Reason.GRADIENT.remedy


def test_dynamic_shapes_are_right_at_every_resolution_and_recompile_little() -> None:
    model = ToyVideoDiT()
    options = {**OPTIONS, "density": 0.4}

    def backend(graph_module: fx.GraphModule, inputs: Any) -> Any:
        return svg(graph_module, inputs, options=options)

    counter = CompileCounterWithBackend(backend)
    counter.backend = backend
    dynamic = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    for shape in [(5, 7, 3), (6, 9, 4), (5, 4, 8), (5, 8, 4), (7, 5, 6)]:
        x = latents(1, *shape)
        static = torch.compile(model, backend="svg", dynamic=False, options={**options, "engine": "reference"})(x)
        torch.testing.assert_close(dynamic(x), static, atol=2e-5, rtol=2e-5)
    assert counter.frame_count <= 2


def test_two_static_grids_of_equal_length_are_two_plans() -> None:
    run = compiled(dynamic=False, density=0.4)
    for shape in [(5, 4, 8), (5, 8, 4), (8, 5, 4)]:
        x = latents(1, *shape)
        expected = torch.compile(
            ToyVideoDiT(), backend="svg", dynamic=False, options={**OPTIONS, "density": 0.4, "engine": "reference"}
        )(x)
        torch.testing.assert_close(run(x), expected, atol=2e-5, rtol=2e-5)


class Joint(torch.nn.Module):
    """q, k, v as fresh [B, S, H, D] tensors of pointwise work, as RoPE leaves them."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.patch = torch.nn.Conv3d(4, 32, 1)
            self.q, self.k, self.v, self.out = (torch.nn.Linear(32, 32) for _ in range(4))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (f(x).unflatten(-1, (2, 16)) for f in (self.q, self.k, self.v))
        q, k = (F.rms_norm(t, (16,)).transpose(1, 2) for t in (q, k))
        return self.out(F.scaled_dot_product_attention(q, k, v.transpose(1, 2)).transpose(1, 2).flatten(2))


def test_no_copy_of_q_k_v_or_the_output_stands_in_inductors_code() -> None:
    x = latents()
    # Op tags are no part of Inductor's cache key, so look at code made now.
    with torch._inductor.config.patch(force_disable_caches=True):
        out, (code,) = run_and_get_code(compiled(Joint()), x)
    call = code[code.index("def call") :]
    operands = []
    for op in ("profile_and_fit_host", "attention_host"):
        (line,) = (line for line in call.split("\n") if f"= torch.ops.svg.{op}.default(" in line)
        operands.append(re.findall(r"reinterpret_tensor\((buf\d+), \(1, 2, 105, 16\), \(\d+, 16, 32, 1\), 0\)", line))
    # Both ops read the same three buffers, as views of [B, S, H, D] storage.
    assert len(operands[0]) == 3
    assert operands[0] == operands[1]
    assert "empty_strided_cpu((1, 2, 105, 16)" not in call
    # The repair writes into the result where it stands.
    (written,) = re.findall(r"torch.ops.svg.repair_host_.default\((buf\d+), ", call)
    assert re.search(rf"addmm\(\w+, reinterpret_tensor\({written}, ", call)
    after = call.split("torch.ops.svg.repair_host_.default(")[1].split("\n")[1:]
    consumer = next(line for line in after if "extern_kernels." in line or "cpp_fused" in line)
    assert "extern_kernels" in consumer, f"a kernel stands between the op and its projection: {consumer}"
    assert out.shape == (1, 105, 32)


NO_COMPARISON = ("test_schema", "test_autograd_registration", "test_faketensor")


def test_ops_pass_opcheck() -> None:
    q, k, v = (torch.randn(2, 60, 3, 16).transpose(1, 2) for _ in range(3))
    grid = [4, 3, 4, 12, 1, 8]
    mask = torch.rand(2, 60) > 0.2
    for key_mask in (None, mask):
        profile = (q, k, v, key_mask, grid, [0.5, 0.9], 8, True, None, "auto", ops.ABI)
        plan, *_ = torch.ops.svg.profile(*profile, None, None, None)
        for when in (None, torch.tensor([1, 1], dtype=torch.int32)):
            for previous in (None, plan):
                torch.library.opcheck(torch.ops.svg.profile.default, (*profile, when, previous, None))
        # The errors of kinds that are kept are NaN, and the last of opcheck's tests takes NaN for unlike itself.
        kept = (*profile, torch.tensor([1, 0], dtype=torch.int32), plan, None)
        torch.library.opcheck(torch.ops.svg.profile.default, kept, test_utils=NO_COMPARISON)
        torch.library.opcheck(torch.ops.svg.attention.default, (q, k, v, plan, key_mask, grid, None, "auto", ops.ABI))


@pytest.mark.parametrize("operand", [torch.randn(2, 60, 3, 16).transpose(1, 2), torch.randn(2, 3, 60, 20)[..., :16]])
def test_settled_passes_opcheck_and_is_dense(operand: Tensor) -> None:
    torch.library.opcheck(torch.ops.svg.settled.default, (operand,), test_utils=NO_COMPARISON)
    assert torch.equal(torch.ops.svg.settled(operand), operand)
    traced = FakeTensorMode().from_tensor(operand)
    settled = torch.ops.svg.settled(traced)
    assert settled.shape == operand.shape
    assert settled.transpose(1, 2).is_contiguous() or settled.is_contiguous()


def test_global_state_is_left_alone() -> None:
    state, grad = torch.get_rng_state(), torch.is_grad_enabled()
    compiled()(latents())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() is grad
    assert counters["inductor"].get("pre_grad_custom_pass", 0) == 0
