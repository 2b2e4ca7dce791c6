"""Attention operators of other libraries: read as SDPA where the result is equal, otherwise left unchanged."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svg_compile
from other_attention import CALLS, define_flash, heads_first, rows_first, some_attention
from svg_compile.passes import attention_operators, run_passes
from test_plain_attention import ALWAYS, outside, sparse_forwards
from test_regions import OPTIONS, Blocks
from toy import ToyVideoDiT, latents
from traced import CONFIG, sites_of, verdict

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
define_flash()
GRID = "5*7*3"
flash = torch.ops.flash_attn._flash_attn_forward
packed = torch.ops.flash_attn._flash_attn_varlen_forward
of_torch = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_operators, "_REGISTERED", {})
    CALLS.clear()
    svg_compile.register_attention_op(rows_first, causal=None, neutral={"window": -1})
    svg_compile.register_attention_op(
        torch.ops.svg_tests.heads_first, query="query", key="key", value="value", layout="BHND", scale=None, causal=None
    )


def rows(attend: Callable[..., Tensor]) -> Attend:
    """[B, H, N, D] around an attention of [B, N, H, D]."""
    return lambda *qkv: attend(*(each.transpose(1, 2) for each in qkv)).transpose(1, 2)


def by_flash(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
    arguments = {"causal": False, "window_size_left": -1, "window_size_right": -1, "softcap": 0.0, "alibi_slopes": None}
    out: Tensor = flash(q, k, v, 0.0, q.shape[-1] ** -0.5, **{**arguments, **more}, return_softmax=False)[0]
    return out


def by_packed(q: Tensor, k: Tensor, v: Tensor, lengths: list[int] | None = None) -> Tensor:
    """FlashAttention's function of packed sequences, [B, N, H, D] packed and unpacked."""
    samples, tokens = q.shape[:2]
    ends = torch.tensor([0] + (lengths or [tokens] * samples)).cumsum(0, dtype=torch.int32)
    flat = (each.flatten(0, 1) for each in (q, k, v))
    out: Tensor = packed(*flat, ends, ends, tokens, tokens, 0.0, q.shape[-1] ** -0.5, False)[0]
    return out.unflatten(0, (samples, tokens))


LOOSE: dict[str, Any] = {"min_tokens": 1, "block": 8, "on_error": "raise", "dense_steps": 0, "dense_layers": 0}
SCALES = {"with a scale": 0.4}
READ: dict[str, Attend] = {
    "rows first": rows(lambda q, k, v: rows_first(q, k, v, None, -1)[0]),
    "with a scale": rows(lambda q, k, v: rows_first(q, k, v, SCALES["with a scale"], window=-1)[0]),
    "heads first": lambda q, k, v: heads_first(q, k, v),
    "flash": rows(by_flash),
    "packed flash": rows(by_packed),
    "torch's own": lambda q, k, v: of_torch(q, k, v, 0.0, False)[0],
}


def compiled(attend: Attend, **options: Any) -> Any:
    chosen = {**LOOSE, **options}
    return torch.compile(ToyVideoDiT(attend=attend), backend="svg", dynamic=False, options=chosen)


@pytest.mark.parametrize("name", READ)
def test_its_attention_is_made_sparse(name: str) -> None:
    attend, inputs = READ[name], latents()
    eager = ToyVideoDiT(attend=attend)(inputs)
    assert [verdict(site) for site in sites_of(ToyVideoDiT(attend=attend), inputs)] == [GRID] * 2
    CALLS.clear()
    torch.testing.assert_close(compiled(attend, density=1.0)(inputs), eager, rtol=1e-4, atol=1e-4)
    sparse = compiled(attend, density=0.4)(inputs)
    assert not CALLS
    native = compiled(partial(F.scaled_dot_product_attention, scale=SCALES.get(name)), density=0.4)(inputs)
    torch.testing.assert_close(sparse, native, rtol=1e-4, atol=1e-4)
    assert (sparse - eager).abs().max() > 1e-3


REFUSED: dict[str, tuple[Attend, list[str], str]] = {
    "a window": (rows(lambda *qkv: by_flash(*qkv, window_size_left=16)), [], "window_size_left=16"),
    "a cap": (rows(lambda *qkv: by_flash(*qkv, softcap=30.0)), [], "softcap=30.0"),
    "slopes": (rows(lambda *qkv: by_flash(*qkv, alibi_slopes=torch.ones(2))), [], "alibi_slopes="),
    "causal": (rows(lambda *qkv: by_flash(*qkv, causal=True)), ["CAUSAL"] * 2, "causal"),
    "a window of a registered one": (rows(lambda *qkv: rows_first(*qkv, None, 3)[0]), [], "window=3"),
    "three sequences": (rows(lambda *qkv: by_packed(*qkv, lengths=[50, 25, 30])), [], "more than two packed sequences"),
    "an unknown one": (rows(some_attention), [], r"svg_tests::some_attention.*register_attention_op"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_asks_for_more_is_left_as_it_is_with_a_reason(name: str) -> None:
    attend, expected, reason = REFUSED[name]
    inputs = latents()
    eager = ToyVideoDiT(attend=attend)(inputs)
    assert [verdict(site) for site in sites_of(ToyVideoDiT(attend=attend), inputs)] == expected
    CALLS.clear()
    with pytest.warns(UserWarning, match=reason):
        out = compiled(attend, density=0.2)(inputs)
    torch.testing.assert_close(out, eager, rtol=1e-4, atol=1e-4)
    assert sum(CALLS.values()) == 2
    if not expected:
        assert any(
            note.startswith("no rows: attention by ")
            for note in svg_compile.explain(ToyVideoDiT(attend=attend), inputs, options={"min_tokens": 1}).notes
        )


def test_a_call_whose_other_result_is_used_is_left_as_it_is() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, sums = rows_first(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, -1)
        return out.transpose(1, 2) + sums.unsqueeze(-1)

    assert sites_of(ToyVideoDiT(attend=attend), latents()) == []


def test_padding_behind_a_packed_sequence_is_no_key() -> None:
    """Rows behind the sequence's end are undefined: the operator does not write them."""

    class Padded(nn.Module):
        def forward(self, x: Tensor, end: Tensor) -> Tensor:
            q = x.flatten(2).transpose(1, 2).unsqueeze(2)
            ends = torch.cat([end.new_zeros(1), end]).to(torch.int32)
            flat = q.flatten(0, 1)
            return packed(flat, flat, flat, ends, ends, 105, 105, 0.0, 0.5, False)[0]

    inputs, end = latents().clone(), torch.tensor([90])
    inputs.flatten(2)[..., 90:] = 100.0
    model, chosen = Padded(), {"min_tokens": 1, "block": 8, "dense_steps": 0, "dense_layers": 0, "density": 1.0}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        out = torch.compile(model, backend="svg", options=chosen)(inputs, end)
    assert not CALLS
    torch.testing.assert_close(out[:90], model(inputs, end)[:90], rtol=1e-4, atol=1e-4)


class Packed(nn.Module):
    """Video and a prompt, and behind them the prompt's padding, as two sequences of which the second attends itself."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.ModuleList(nn.Linear(4, 96) for _ in range(layers))
        self.back = nn.Linear(32, 4)

    def attend(self, qkv: Tensor, ends: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (2, 16)) for each in qkv.chunk(3, -1))
        count = q.shape[0]
        # As FlashAttention's own function calls it: some by name.
        return packed(q, k, v, ends, ends, count, count, 0.0, softmax_scale=0.25, causal=False)[0]

    def forward(self, video: Tensor, text: Tensor, words: Tensor) -> Tensor:
        x = torch.cat([video.flatten(2).transpose(1, 2), text], 1)
        first = words.sum(1)[0] + video[0, 0].numel()
        ends = torch.zeros(3, dtype=torch.int32)
        ends[1], ends[2] = first, x.shape[1]
        for qkv in self.qkv:
            x = x + self.back(self.attend(qkv(3 * x).flatten(0, 1), ends).flatten(1))
        return x


class Hidden(Packed):
    """The same by a mask, so that the padding attends to the first sequence."""

    def attend(self, qkv: Tensor, ends: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (2, 16)).transpose(0, 1).unsqueeze(0) for each in qkv.chunk(3, -1))
        keys = (torch.arange(k.shape[2]) < ends[1])[None, None, None]
        return F.scaled_dot_product_attention(q, k, v, keys, scale=0.25)[0].transpose(0, 1)


def padded_prompt(words: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return latents(), torch.randn(1, 11, 4), (torch.arange(11) < words)[None]


@pytest.mark.parametrize("words", [8, 11, 0])
def test_padding_that_is_a_sequence_of_its_own_attends_to_itself(words: int) -> None:
    model, inputs = Packed(), padded_prompt(words)
    eager = model(*inputs)
    assert [verdict(site) for site in sites_of(model, *inputs)] == ["5*7*3+11"] * 2
    outs = {}
    for density in (1.0, 0.4):
        torch._dynamo.reset()
        CALLS.clear()
        outs[density] = torch.compile(model, backend="svg", options={**LOOSE, "density": density})(*inputs)
        assert CALLS == {"packed flash": 2}
    torch.testing.assert_close(outs[1.0], eager, rtol=1e-4, atol=1e-4)
    # The padding, whose rows the first attention computes in full.
    torch.testing.assert_close(outs[0.4][:, 105 + words :], eager[:, 105 + words :], rtol=1e-4, atol=1e-4)
    assert (outs[0.4] - eager)[:, :105].abs().max() > 1e-3
    once, by_mask = (
        torch.compile(model, backend="svg", options={**LOOSE, "density": 0.4})(*inputs)[:, : 105 + words]
        for model in (Packed(1), Hidden(1))
    )
    torch.testing.assert_close(once, by_mask, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", [1, 50, 104])
def test_two_packed_sequences_are_told_apart_wherever_the_first_one_ends(cut: int) -> None:
    attend, inputs = rows(partial(by_packed, lengths=[cut, 105 - cut])), latents()
    eager = ToyVideoDiT(attend=attend)(inputs)
    assert [verdict(site) for site in sites_of(ToyVideoDiT(attend=attend), inputs)] == [GRID] * 2
    torch.testing.assert_close(compiled(attend, density=1.0)(inputs), eager, rtol=1e-4, atol=1e-4)
    # What is left out is left out of the first sequence alone.
    once = ToyVideoDiT(1, attend=attend)
    sparse = torch.compile(once, backend="svg", dynamic=False, options={**LOOSE, "density": 0.2})(inputs)
    assert (sparse - once(inputs))[:, cut:].abs().max() < 1e-4


def test_diffusers_operator_around_flash_attention_3_is_known() -> None:
    """The operator has no kernel for CPUs: it is traced, not run."""
    from diffusers.models.attention_dispatch import _wrapped_flash_attn_3

    model = ToyVideoDiT(attend=rows(lambda *qkv: _wrapped_flash_attn_3(*qkv)[0]))
    report = svg_compile.explain(model, latents(), options={"min_tokens": 1, "dense_layers": 0})
    assert [verdict(site) for site in report.sites] == [GRID] * 2


class Mixed(nn.Module):
    """Self-attention over a video, and cross-attention to a text, by one operator."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.toy, self.attend = ToyVideoDiT(1, attend=attend), attend

    def forward(self, video: Tensor, text: Tensor) -> Tensor:
        x = self.toy(video)
        q, k = (each.unflatten(-1, (2, 16)).transpose(1, 2) for each in (x, text))
        return self.attend(q, k, k).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("name", ["rows first", "heads first", "flash"])
def test_cross_attention_stays_the_operators_own(name: str) -> None:
    model, inputs, text = Mixed(READ[name]), latents(), torch.randn(1, 7, 32)
    eager = model(inputs, text)
    assert [verdict(site) for site in sites_of(model, inputs, text)] == [GRID, "CROSS_ATTENTION"]
    CALLS.clear()
    chosen = {"min_tokens": 1, "block": 8, "dense_steps": 0, "dense_layers": 0, "density": 1.0, "on_error": "raise"}
    out = torch.compile(model, backend="svg", options=chosen)(inputs, text)
    assert sum(CALLS.values()) == 1
    torch.testing.assert_close(out, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", READ)
def test_a_look_leaves_the_graph_as_it_was(name: str) -> None:
    seen: list[tuple[str, str]] = []

    def backend(graph_module: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        before = str(graph_module.graph)
        assert run_passes(graph_module, CONFIG, rewrite=False).rewritten == 2
        seen.append((before, str(graph_module.graph)))
        return graph_module.forward

    torch.compile(ToyVideoDiT(attend=READ[name]), backend=backend)(latents())
    ((before, after),) = seen
    assert before == after


class ByOperator(nn.Module):
    def __init__(self, qkv: nn.Module, attend: Attend) -> None:
        super().__init__()
        self.qkv, self.attend = qkv, attend

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (3 * self.qkv(x)).chunk(3, dim=-1))
        return self.attend(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("name", ["rows first", "heads first", "flash", "packed flash"])
def test_it_is_sparse_where_the_block_runs_as_plain_python(name: str) -> None:
    model = Blocks()
    for block in model.blocks:
        block.attn = ByOperator(block.attn.qkv, READ[name])
        outside(block)
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, **ALWAYS})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        assert sparse_forwards(model) > 0
    assert not CALLS


@pytest.mark.parametrize("name", ["rows first", "packed flash"])
def test_between_graphs_it_has_a_row(name: str) -> None:
    parted = torch.compiler.disable(READ[name])
    report = svg_compile.explain(ToyVideoDiT(attend=parted), latents(), options={"min_tokens": 1, "block": 8})
    (site,) = report.sites
    assert (site.reason, site.calls) == (svg_compile.Reason.BETWEEN_GRAPHS, 2)
    assert site.layout is not None
    assert (site.layout.frames, site.layout.height, site.layout.width) == (5, 7, 3)


@pytest.mark.parametrize("name", ["rows first", "flash", "packed flash", "heads first"])
@pytest.mark.parametrize("layers", [2, 12])
def test_explain_counts_its_products(name: str, layers: int) -> None:
    """Of a deep model a few blocks are traced, and the others counted as they run."""
    costs = []
    for attend in (READ[name], F.scaled_dot_product_attention):
        model = Blocks(layers)
        for block in model.blocks:
            block.attn = ByOperator(block.attn.qkv, attend)
        report = svg_compile.explain(model, latents(), options={"min_tokens": 1})
        assert report.cost is not None
        costs.append((report.cost.model, sum(site.calls for site in report.sites)))
    assert costs[0] == costs[1]


WRITES = {"query": "self", "key": "src", "value": "src", "scale": None, "causal": None}


@pytest.mark.parametrize(
    ("operator", "more", "error"),
    [
        ("svg_tests::rows_first", {}, (TypeError, "expected an operator")),
        (torch.add, {}, (TypeError, "expected an operator")),
        (rows_first, {"layout": "NBHD"}, (ValueError, "layout is one of BNHD, BHND")),
        (rows_first, {}, (ValueError, "has no parameter 'causal'; it has q, k, v, softmax_scale, window")),
        (torch.ops.aten.copy_, WRITES, (ValueError, "writes its operands")),
    ],
)
def test_what_cannot_be_registered_is_an_error(operator: Any, more: dict[str, Any], error: tuple[Any, str]) -> None:
    with pytest.raises(error[0], match=error[1]):
        svg_compile.register_attention_op(operator, **more)
