"""What each reason advises: followed in a small program, its attention is sparse.

Each advice is quoted from the reason, so that a remedy that is worded anew is followed anew.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svg_compile
from lowering import kind, watch
from svg_compile.config import SvgConfig
from svg_compile.decisions import BY_FLEX, Reason
from svg_compile.passes.attention_call import refused_call
from svg_compile.passes.axes.rules import rowwise
from svg_compile.runtime import dispatcher as schedule
from test_find_attention import CASES, GRID, MASK, B, D, H, Model, N, config, layout, sdpa, video
from test_regions import OPTIONS, Blocks
from toy import ToyVideoDiT, latents
from traced import CONFIG, sites_of, verdict

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
Call = Callable[..., Tensor]
ALWAYS: dict[str, Any] = {**OPTIONS, "dense_steps": 0, "dense_layers": 0}


@dataclass(frozen=True)
class Followed:
    """One advice: what it says, and the program of `test_find_attention.CASES` as changed by it."""

    advice: str
    call: Call = sdpa
    inputs: tuple[Tensor, ...] = (video(),)
    config: SvgConfig = CONFIG
    grid: str = GRID


def by_bias(hidden: Callable[[Tensor], Tensor]) -> Call:
    """Attention with an additive mask that it computes itself of another one."""

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return sdpa(q, k, v, hidden(mask))

    return call


LAYOUT = "pass options={'layout': (frames, height, width)}"
PADDING = torch.arange(N).expand(B, N) < 40
FOLLOWED: dict[Reason, tuple[Followed, ...]] = {
    Reason.NOT_VIDEO: (Followed(f"packed video, {LAYOUT}", sdpa, CASES[Reason.NOT_VIDEO][1], layout(4, 2, 6)),),
    Reason.UNKNOWN_GRID: (
        Followed(f"raster order, {LAYOUT}", lambda q, k, v: sdpa(unknown(q), k, v), config=layout(4, 2, 6)),
        Followed(
            "result has the rows of its first operand, declare it: svg_compile.register_rowwise_op",
            lambda q, k, v: sdpa(declared(q), k, v),
        ),
    ),
    Reason.LAYOUT_CONFLICT: (
        Followed("correct or drop options['layout']", config=layout(4, 2, 6)),
        Followed("drop options['layout']"),
    ),
    Reason.SINGLE_FRAME: (Followed("generate more than one latent frame"),),
    Reason.TOO_SHORT: (Followed("lower options['min_tokens']", config=config(min_tokens=N)),),
    Reason.DENSE_LAYER: (Followed("lower options['dense_layers']"),),
    Reason.MASK: (
        Followed("boolean [B, 1, 1, N]", inputs=(video(), MASK)),
        Followed(
            "computes from booleans",
            by_bias(lambda mask: torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[:, None, None]),
            (video(), PADDING),
        ),
        Followed(
            "or an integer mask [B, N], 0 or at most -10000",
            by_bias(lambda mask: ((1.0 - mask.float()) * -10000.0)[:, None, None]),
            (video(), PADDING.long()),
        ),
        Followed("none where no prompt is padded"),
    ),
    Reason.DROPOUT: (Followed("pass dropout_p=0.0", lambda q, k, v: sdpa(q, k, v, dropout_p=0.0)),),
    Reason.RANK: (
        Followed(
            "q.unsqueeze(0)",
            lambda q, k, v: sdpa(*(each.flatten(0, 1).unsqueeze(0) for each in (q, k, v))),
            (video()[:1],),
        ),
        Followed(
            "q.unflatten(0, (batch, heads))",
            lambda q, k, v: sdpa(*(each.flatten(0, 1).unflatten(0, (-1, H)) for each in (q, k, v))),
        ),
    ),
    Reason.GROUPED_QUERY: (
        Followed("as many heads", lambda q, k, v: sdpa(q, *(each[:, :1].expand(-1, H, -1, -1) for each in (k, v)))),
        Followed("enable_gqa=True", lambda q, k, v: sdpa(q, k[:, :1], v[:, :1], enable_gqa=True)),
        Followed("equal batch counts"),
    ),
    Reason.DTYPE: tuple(
        Followed(name, lambda q, k, v, dtype=dtype: sdpa(q.to(dtype), k.to(dtype), v.to(dtype)))
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16))
    ),
    Reason.HEAD_DIM: (Followed("one head dimension"),),
    Reason.DEVICE: (Followed("options={'engine': 'auto'}", config=config(engine="auto")),),
}
NOTHING = {Reason.CROSS_ATTENTION, Reason.SEVERAL_GRIDS, Reason.CAUSAL}
# Followed by tests of their own below.
BELOW = {Reason.GRADIENT, Reason.SCALE, Reason.HIGHER_ORDER, Reason.SYMBOLIC}
BELOW |= {Reason.BETWEEN_GRAPHS, Reason.UNPROVEN_BETWEEN_GRAPHS}


@torch.library.custom_op("svg_tests::rows_of_somebody", mutates_args=())
def unknown(x: Tensor) -> Tensor:
    return x.clone()


@torch.library.custom_op("svg_tests::declared_rows_of_somebody", mutates_args=())
def declared(x: Tensor) -> Tensor:
    return x.clone()


for each in (unknown, declared):
    each.register_fake(torch.empty_like)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowwise, "_REGISTERED", set())
    svg_compile.register_rowwise_op(declared)


@pytest.mark.parametrize(
    ("reason", "followed"),
    [
        pytest.param(reason, each, id=f"{reason.name}: {each.advice}")
        for reason in FOLLOWED
        for each in FOLLOWED[reason]
    ],
)
def test_an_advice_that_is_followed_makes_attention_sparse(reason: Reason, followed: Followed) -> None:
    call, inputs, options = CASES[reason]
    assert [site.reason for site in sites_of(Model(call), *inputs, config=options)] == [reason]
    assert followed.advice in reason.remedy
    sites = sites_of(Model(followed.call), *followed.inputs, config=followed.config)
    assert [verdict(site) for site in sites] == [followed.grid]


def test_every_reason_is_followed_or_says_that_there_is_nothing_to_do() -> None:
    assert set(FOLLOWED) | NOTHING | BELOW == set(Reason)
    assert {reason for reason in Reason if reason.remedy.startswith("nothing to do")} == NOTHING


def test_what_is_named_as_unknown_is_refused_before_it_is_declared() -> None:
    (site,) = sites_of(Model(lambda q, k, v: sdpa(unknown(q), k, v)), video())
    assert site.reason is Reason.UNKNOWN_GRID
    assert "svg_tests::rows_of_somebody" in site.detail or "svg_tests.rows_of_somebody" in site.detail


def test_dropout_ends_with_training() -> None:
    class Training(Model):
        def forward(self, x: Tensor, *more: Any) -> list[Tensor]:
            self.layers[0].call = lambda q, k, v: sdpa(q, k, v, dropout_p=0.1 if self.training else 0.0)
            return super().forward(x, *more)

    assert "call model.eval()" in Reason.DROPOUT.remedy
    assert [site.reason for site in sites_of(Training(sdpa).train(), video())] == [Reason.DROPOUT]
    assert [verdict(site) for site in sites_of(Training(sdpa).eval(), video())] == [GRID]


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_gradients_are_switched_off(without: Callable[[], Any]) -> None:
    assert f"torch.{without.__name__}()" in Reason.GRADIENT.remedy
    assert [site.reason for site in sites_of(Model(sdpa), video(), grad=True)] == [Reason.GRADIENT]
    with without():
        assert [verdict(site) for site in sites_of(Model(sdpa), video(), grad=torch.is_grad_enabled())] == [GRID]


def test_a_scale_is_passed_as_a_float() -> None:
    query = torch.randn(B, H, N, D)
    call = dict.fromkeys(("query", "key", "value"), query) | {"attn_mask": None, "dropout_p": 0.0, "is_causal": False}
    call |= {"enable_gqa": False, "scale": torch.tensor(0.5)}
    assert refused_call(call, query, CONFIG) == (Reason.SCALE, "")
    assert "pass scale as a float" in Reason.SCALE.remedy
    assert refused_call(call | {"scale": 0.5}, query, CONFIG) is None


def test_attention_is_called_outside_of_control_flow() -> None:
    def within(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cond(q.sum() > 0, lambda a, b, c: sdpa(a, b, c) * 1, lambda a, b, c: sdpa(a, b, c) * 2, (q, k, v))

    def outside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = sdpa(q, k, v)
        return torch.cond(q.sum() > 0, lambda a: a * 1, lambda a: a * 2, (out,))

    assert {site.reason for site in sites_of(Model(within), video())} == {Reason.HIGHER_ORDER}
    assert "outside checkpointing, control flow" in Reason.HIGHER_ORDER.remedy
    assert [verdict(site) for site in sites_of(Model(outside), video())] == [GRID]


def test_sizes_are_no_symbols_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    # Dynamo hands child graphs the symbols of what they are called with: no traced model is refused for them.
    module = sys.modules["svg_compile.passes.find_attention"]
    monkeypatch.setattr(module, "computable", lambda graph, sizes: all(isinstance(size, int) for size in sizes))
    x = video()
    torch._dynamo.mark_static(x, 1)
    assert [site.reason for site in sites_of(Model(sdpa), x, dynamic=True)] == [Reason.SYMBOLIC]
    assert Reason.SYMBOLIC.remedy == "compile with dynamic=False, or " + LAYOUT
    assert [verdict(site) for site in sites_of(Model(sdpa), x, dynamic=False)] == [GRID]
    assert [verdict(site) for site in sites_of(Model(sdpa), x, dynamic=True, config=layout(4, 2, 6))] == [GRID]


def explained(model: nn.Module) -> list[svg_compile.Reason | None]:
    report = svg_compile.explain(model, latents(), options={"min_tokens": 0, "dense_layers": 0})
    return [site.reason for site in report.sites]


def by_context(context: Callable[[], Any]) -> Call:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with context():
            return F.scaled_dot_product_attention(q, k, v)

    return call


def test_a_graph_break_is_taken_away() -> None:
    broken = ToyVideoDiT(1, attend=torch.compiler.disable(F.scaled_dot_product_attention))
    assert explained(broken) == [Reason.BETWEEN_GRAPHS]
    assert "take away the graph break" in Reason.BETWEEN_GRAPHS.remedy
    assert explained(ToyVideoDiT(1)) == [None]


def test_a_context_that_makes_no_break_takes_the_place_of_one_that_does() -> None:
    remedy = Reason.BETWEEN_GRAPHS.remedy
    assert "torch.nn.attention.sdpa_kernel makes none, torch.backends.cuda.sdp_kernel does" in remedy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert explained(ToyVideoDiT(1, attend=by_context(torch.backends.cuda.sdp_kernel))) == [Reason.BETWEEN_GRAPHS]
    kernel = torch.nn.attention.SDPBackend.MATH
    assert explained(ToyVideoDiT(1, attend=by_context(lambda: torch.nn.attention.sdpa_kernel(kernel)))) == [None]


class Parted(nn.Module):
    """A block, or a module within one, whose attention is a function that Dynamo does not trace."""

    def __init__(self, qkv: nn.Module) -> None:
        super().__init__()
        self.qkv = qkv
        self.attend = torch.compiler.disable(F.scaled_dot_product_attention)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return x + self.attend(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("own", [False, True], ids=["in a module", "of the block itself"])
def test_attention_between_graphs_is_served_by_blocks(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, kind)
    model = Blocks()
    for number, block in enumerate(model.blocks):
        parted = Parted(block.attn.qkv)
        model.blocks[number] = parted if own else nn.Sequential(parted)
    assert explained(model) == [Reason.BETWEEN_GRAPHS] * 3
    assert "compile the model's blocks one by one and call svg_compile.attach(pipe)" in Reason.BETWEEN_GRAPHS.remedy
    assert sparse_forwards(model, lambda block, options: block.compile(**options)) == 3
    assert "options={'eager_attention': False} asks for none" in Reason.BETWEEN_GRAPHS.remedy
    assert sparse_forwards(model, lambda block, options: block.compile(**options), eager_attention=False) == 0


def sparse_forwards(model: Any, compile_: Callable[[nn.Module, dict[str, Any]], None], **options: Any) -> int:
    """How many graphs ran sparse, of a model whose blocks were compiled, in a run of one step."""
    torch._dynamo.reset()
    for block in model.blocks:
        compile_(block, {"backend": "svg", "dynamic": False, "options": {**ALWAYS, **options}})
    with schedule.observe() as seen, svg_compile.denoising(model, steps=1), torch.no_grad():
        model(latents())
    return sum(not decision.dense for decision in seen)


def test_a_break_is_taken_away_and_what_the_detail_names() -> None:
    def rolled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(each.roll(1, 2) for each in (q, k, v))).roll(-1, 2)

    parted = ToyVideoDiT(1, attend=torch.compiler.disable(rolled))
    (site,) = svg_compile.explain(parted, latents(), options={"min_tokens": 0}).sites
    assert site.reason is Reason.UNPROVEN_BETWEEN_GRAPHS
    assert "aten.roll at test_remedies.py" in site.detail
    assert "take away the graph break, or what the detail names" in site.reason.remedy
    assert explained(ToyVideoDiT(1, attend=rolled)) == [Reason.UNKNOWN_GRID]
    assert explained(ToyVideoDiT(1)) == [None]


def test_flex_attention_that_hides_padding_alone_is_replaced_by_the_native_one() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    def by_flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: torch.where(j < 100, score, -torch.inf))

    def native(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, (torch.arange(k.shape[2]) < 100)[None, None, None])

    report = svg_compile.explain(ToyVideoDiT(1, attend=by_flex), latents(), options={"min_tokens": 0})
    assert report.sites == ()
    assert any(BY_FLEX in note for note in report.notes)
    assert explained(ToyVideoDiT(1, attend=native)) == [None]


class Reading(Blocks):
    """Python code reads a value of what the model computes, which no trace has: before the patches or behind them."""

    def __init__(self, behind: bool) -> None:
        super().__init__()
        self.behind = behind

    def forward(self, latents: Tensor, timestep: Tensor | None = None) -> Tensor:
        x = latents if self.behind else latents * self.read(self.patch(latents))
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x * self.read(x) if self.behind else x
        for block in self.blocks:
            x = block(x)
        return x

    @staticmethod
    def read(x: Tensor) -> float:
        return 1.0 if float(x.mean()) < 10 else 2.0


@pytest.mark.parametrize("behind", [False, True])
def test_a_model_that_cannot_be_traced_is_sparse_as_the_warning_says(
    behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(monkeypatch, kind)
    with pytest.warns(UserWarning, match="could not be traced") as told:
        assert sparse_forwards(Reading(behind), lambda block, options: block.compile(**options)) == 0
    (message,) = (str(each.message) for each in told if "could not be traced" in str(each.message))
    assert "options={'layout': (frames, height, width), 'dense_layers': 0}" in message
    given = {"layout": (5, 7, 3)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sparse_forwards(Reading(behind), lambda block, options: block.compile(**options), **given) == 3
        torch._dynamo.reset()
        model = Reading(behind)
        model.compile(backend="svg", dynamic=False, options=ALWAYS)
        with schedule.observe() as seen, torch.no_grad():
            model(latents())
    assert "no graph break lies between its patches and its attention" in message
    assert [decision.dense for decision in seen] == ([] if behind else [False])
