"""Each reason for leaving an attention dense: a case for it, and the report on that case."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svg_compile import Report
from svg_compile.config import SvgConfig
from svg_compile.decisions import Reason, Site
from svg_compile.layout import VideoLayout
from svg_compile.passes.attention_call import refused_call
from traced import CONFIG, sites_of, verdict

B, C, H, D = 2, 8, 2, 4
N = 4 * 2 * 6
GRID = "4*2*6"


class Layer(nn.Module):
    """Self-attention over a video [B, C, F, H, W]; `call` calls SDPA."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call
        self.qkv = nn.Linear(C, 3 * C)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        heads = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(-1, (3, H, D))
        return self.call(*(heads[:, :, i].transpose(1, 2) for i in range(3)), *more)


class Model(nn.Module):
    def __init__(self, call: Callable[..., Tensor], count: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(call) for _ in range(count))

    def forward(self, x: Tensor, *more: Any) -> list[Tensor]:
        return [layer(x, *more) for layer in self.layers]


def video(frames: int = 4, height: int = 2, width: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, C, frames, height, width, dtype=dtype)


def sdpa(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor, **more: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, *mask, **more)


def config(**options: Any) -> SvgConfig:
    return SvgConfig(**({"min_tokens": 1, "dense_layers": 0} | options))


def layout(*sizes: int, **more: Any) -> SvgConfig:
    return config(layout=VideoLayout(*sizes, **more))


MASK = torch.ones(B, 1, 1, N, dtype=torch.bool)

CASES: dict[Reason, tuple[Callable[..., Tensor], tuple[Tensor, ...], SvgConfig]] = {
    Reason.CROSS_ATTENTION: (lambda q, k, v: sdpa(q, k[:, :, :5], v[:, :, :5]), (video(),), CONFIG),
    Reason.NOT_VIDEO: (sdpa, (torch.randn(B, C, 1, 1, N),), CONFIG),
    Reason.UNKNOWN_GRID: (lambda q, k, v: sdpa(q.flip(2), k.flip(2), v.flip(2)), (video(),), CONFIG),
    Reason.SEVERAL_GRIDS: (lambda q, k, v: sdpa(*(torch.cat([t, t], 2) for t in (q, k, v))), (video(),), CONFIG),
    Reason.LAYOUT_CONFLICT: (sdpa, (video(),), layout(2, 4, 6)),
    Reason.SINGLE_FRAME: (sdpa, (video(1),), CONFIG),
    Reason.TOO_SHORT: (sdpa, (video(),), config(min_tokens=N + 1)),
    Reason.DENSE_LAYER: (sdpa, (video(),), config(dense_layers=1)),
    Reason.MASK: (sdpa, (video(), torch.zeros(B, 1, 1, N)), CONFIG),
    Reason.CAUSAL: (lambda q, k, v: sdpa(q, k, v, is_causal=True), (video(),), CONFIG),
    Reason.DROPOUT: (lambda q, k, v: sdpa(q, k, v, dropout_p=0.1), (video(),), CONFIG),
    Reason.RANK: (lambda q, k, v: sdpa(*(t.flatten(0, 1) for t in (q, k, v))), (video(),), CONFIG),
    Reason.GROUPED_QUERY: (lambda q, k, v: sdpa(q, k[:, :1], v[:, :1]), (video(),), CONFIG),
    Reason.DTYPE: (lambda q, k, v: sdpa(q.double(), k.double(), v.double()), (video(),), CONFIG),
    Reason.HEAD_DIM: (lambda q, k, v: sdpa(q, k, v[..., :3]), (video(),), CONFIG),
    Reason.DEVICE: (sdpa, (video(),), config(engine="triton")),
}


def decide(reason: Reason) -> Site:
    call, inputs, options = CASES[reason]
    (site,) = sites_of(Model(call), *inputs, config=options)
    return site


@pytest.mark.parametrize("reason", CASES, ids=lambda reason: reason.name)
def test_reason(reason: Reason) -> None:
    site = decide(reason)
    assert not site.rewritten
    assert site.reason is reason
    assert site.layer == "layers.0"
    # The call of SDPA itself, in `sdpa` above, is the innermost line of the traced stack.
    line = inspect.getsourcelines(sdpa)[1] + 1
    assert site.source == f"{__file__}:{line}"
    text = str(Report((site,)))
    assert reason.text in text
    assert reason.remedy in text


def test_gradients() -> None:
    sites = sites_of(Model(sdpa), video(), grad=True)
    assert [site.reason for site in sites] == [Reason.GRADIENT]


def test_a_scale_that_is_no_number() -> None:
    # Dynamo breaks the graph at a scale that depends on data, so no traced model has one.
    query = torch.randn(B, H, N, D)
    call = dict.fromkeys(("query", "key", "value"), query) | {"attn_mask": None, "dropout_p": 0.0, "is_causal": False}
    call |= {"enable_gqa": False, "scale": torch.tensor(0.5)}
    assert refused_call(call, query, CONFIG) == (Reason.SCALE, "")
    assert refused_call(call | {"scale": 0.5}, query, CONFIG) is None


def test_higher_order() -> None:
    def attend(*heads: Tensor) -> Tensor:
        # torch 2.11 refuses operands that share storage.
        q, k, v = (each.clone() for each in heads)
        return torch.cond(q.sum() > 0, lambda a, b, c: sdpa(a, b, c) * 1, lambda a, b, c: sdpa(a, b, c) * 2, (q, k, v))

    sites = sites_of(Model(attend), video())
    assert {site.reason for site in sites} == {Reason.HIGHER_ORDER}


def test_every_reason_has_a_case() -> None:
    # The last two occur outside of graphs: tests/test_broken_graphs.py.
    elsewhere = {Reason.GRADIENT, Reason.SCALE, Reason.HIGHER_ORDER, Reason.SYMBOLIC}
    elsewhere |= {Reason.BETWEEN_GRAPHS, Reason.UNPROVEN_BETWEEN_GRAPHS}
    assert set(CASES) | elsewhere == set(Reason)


@pytest.mark.parametrize(
    ("mask", "accepted"),
    [
        (MASK, True),
        (MASK[:1], True),
        (MASK.expand(B, H, 1, N), False),
        (MASK.expand(B, 1, N, N), False),
        (MASK[:, 0], False),
        (MASK[:, 0, 0], False),
        (MASK[..., :1], False),
        (MASK.float(), False),
        (torch.full((B, 1, 1, N), torch.finfo(torch.float32).min), False),
    ],
)
def test_masks(mask: Tensor, accepted: bool) -> None:
    if mask.dim() == 2:
        mask = mask[None].expand(1, B, N)[:, :1]
    (site,) = sites_of(Model(sdpa), video(), mask.contiguous())
    assert (verdict(site) == GRID) is accepted
    assert accepted or site.reason is Reason.MASK


@pytest.mark.parametrize("dynamic", [False, True])
def test_numbers_of_the_call_are_kept_as_they_are(dynamic: bool) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.dropout = 0.25, 0.0
            self.inner = Layer(lambda q, k, v: sdpa(q, k, v, dropout_p=self.dropout, scale=self.scale))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    x = video()
    torch._dynamo.mark_static(x, 1)
    assert [verdict(site) for site in sites_of(Scaled(), x, dynamic=dynamic)] == [GRID]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (layout(4, 2, 6), GRID),
        (layout(4, 2, 3), "LAYOUT_CONFLICT"),
        (layout(2, 2, 6, text_len=24), "LAYOUT_CONFLICT"),
    ],
)
def test_a_given_layout_must_not_contradict_the_graph(options: SvgConfig, expected: str) -> None:
    assert [verdict(site) for site in sites_of(Model(sdpa), video(), config=options)] == [expected]


def test_a_given_layout_names_what_is_not_proven() -> None:
    call = CASES[Reason.UNKNOWN_GRID][0]
    assert [verdict(site) for site in sites_of(Model(call), video(), config=layout(4, 2, 6))] == [GRID]
    packed = torch.randn(B, C, 1, 1, N)
    assert [verdict(site) for site in sites_of(Model(sdpa), packed, config=layout(2, 4, 6))] == ["2*4*6"]


def test_the_first_sparse_layers_stay_dense() -> None:
    sites = sites_of(Model(sdpa, 3), video(), config=config(dense_layers=2))
    assert [verdict(site) for site in sites] == ["DENSE_LAYER", "DENSE_LAYER", GRID]
    assert [site.layer for site in sites] == ["layers.0", "layers.1", "layers.2"]
