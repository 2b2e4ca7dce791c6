"""Tokens on both sides of a video: moved together, attended in full, and moved back to their places."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svg_compile
from block_model import Block
from lowering import kind, watch
from svg_compile.kernels import reference, reference_repair
from test_models import Planned, recorded_plans
from traced import Recorder, verdict

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

B, H, D, VIDEO, TEXT = 2, 2, 8, (5, 7, 3), 11
BEFORE, VIDEO_TOKENS = 21, 105
N = BEFORE + VIDEO_TOKENS + TEXT
MASKS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "no mask": lambda keys: None,
    "keys": lambda keys: keys[:, None, None],
    "pairs": lambda keys: _pairs(keys[:, None, None]),
}


def _pairs(keys: Tensor) -> Tensor:
    rows = keys.repeat(1, 1, N, 1)
    return rows & rows.transpose(2, 3)


def attention(mask: str, attend: Callable[..., Tensor] = F.scaled_dot_product_attention) -> Callable[..., Tensor]:
    """Of a frame [B, H * D, 1, 7, 3], a video [B, H * D, F, 7, 3] and text [B, H * D, 11] -> [B, N, H, D]."""

    def forward(frame: Tensor, video: Tensor, text: Tensor, keys: Tensor) -> Tensor:
        x = torch.cat([frame.flatten(2), video.flatten(2), text], 2).unflatten(1, (H, D)).transpose(2, 3)
        out = attend(x, x * 0.5, x + 1, attn_mask=MASKS[mask](keys))
        return out.transpose(1, 2) * 2

    return forward


def inputs() -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    sizes = ((B, H * D, 1, 7, 3), (B, H * D, *VIDEO), (B, H * D, TEXT))
    keys = torch.ones(B, N, dtype=torch.bool)
    keys[0, -4:] = keys[1, 3:6] = keys[1, 50:53] = False
    return *(torch.randn(*size, generator=draw) for size in sizes), keys


def options(density: float) -> svg_compile.config.SvgConfig:
    return svg_compile.config.SvgConfig(min_tokens=1, dense_layers=0, dense_steps=0, block=8, density=density)


def compiled(mask: str, density: float, dynamic: bool = False) -> tuple[Recorder, Callable[..., Tensor]]:
    recorder = Recorder(options(density), rewrite=True)
    return recorder, torch.compile(attention(mask), backend=recorder, dynamic=dynamic, fullgraph=True)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_at_density_one_it_is_dense_attention(mask: str, dynamic: bool) -> None:
    recorder, run = compiled(mask, 1.0, dynamic)
    actual, keys = run(*inputs()), inputs()[3]
    assert [verdict(site) for site in recorder.sites] == ["21+5*7*3+11"]
    expected = attention(mask)(*(tensor.double() for tensor in inputs()[:3]), keys)
    torch.testing.assert_close(actual, expected.float())
    assert actual.stride() == attention(mask)(*inputs()).stride()
    if mask == "pairs":
        assert not actual[~keys].any()


def oracle(plans: list[Planned], layout: svg_compile.VideoLayout) -> Callable[..., Tensor]:
    """The oracle, given its tokens in the order of the layout by numbers that say where each of them stood."""
    order = torch.cat([torch.arange(BEFORE, N), torch.arange(BEFORE)])

    def sdpa(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        (planned,) = plans
        key_mask = None if attn_mask is None else attn_mask.any(2)[:, 0].expand(B, -1)[:, order]
        moved = (tensor[:, :, order] for tensor in (query, key, value))
        out = reference.sparse_attention(*moved, planned.plan, layout, key_mask=key_mask)
        out = reference_repair.repaired(out, planned.exact, planned.fit, layout)
        back = torch.empty_like(out)
        back[:, :, order] = out
        return (back if attn_mask is None else back * attn_mask.any(3, keepdim=True)).to(query.dtype)

    return sdpa


@pytest.mark.parametrize("mask", MASKS)
def test_a_sparse_one_is_the_oracles(mask: str) -> None:
    recorder, run = compiled(mask, 0.3)
    with pytest.MonkeyPatch.context() as patch, recorded_plans(patch) as plans:
        actual = run(*inputs())
    layout = recorder.sites[0].layout
    assert layout is not None
    torch.testing.assert_close(actual, attention(mask, oracle(plans, layout))(*inputs()))
    dense = attention(mask)(*inputs())
    assert float((actual - dense).abs().max()) > 1e-3, "the plan changed nothing: the test is blind"


def test_the_report_says_what_is_open_and_its_share() -> None:
    report = svg_compile.explain(attention("no mask"), *inputs(), options={"min_tokens": 0, "dense_layers": 0})
    (site,) = report.sites
    assert site.decision == (
        "sparse: [7*3] in front of the video and [11] behind it are attended in full, 23% of the sequence"
    )
    assert (site.before, site.layout and site.layout.text_len) == (21, 32)


def test_a_layout_that_is_given_may_stand_in_the_middle() -> None:
    def packed(frame: Tensor, video: Tensor, text: Tensor) -> Tensor:
        # Packed where nobody sees it: plain axes of three inputs.
        x = torch.cat([frame, video, text], 1).unflatten(2, (H, D)).transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, x)

    given = (torch.randn(B, size, H * D) for size in (BEFORE, VIDEO_TOKENS, TEXT))
    config = svg_compile.config.SvgConfig.from_options({"min_tokens": 1, "dense_layers": 0, "layout": VIDEO})
    recorder = Recorder(config)
    torch.compile(packed, backend=recorder, fullgraph=True)(*given)
    assert [verdict(site) for site in recorder.sites] == ["21+5*7*3+11"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(H * D) for _ in range(2))

    def forward(self, frame: Tensor, video: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
        x = torch.cat([frame.flatten(2), video.flatten(2), text], 2).transpose(1, 2) * timestep
        for block in self.blocks:
            x = block(x)
        return x


def test_blocks_have_it_from_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    built = watch(monkeypatch, kind)
    torch.manual_seed(0)
    model, given = Model(), (*inputs()[:3], torch.tensor(0.5))
    keep = {"min_tokens": 0, "dense_steps": 0, "dense_layers": 0, "block": 8, "on_error": "raise"}
    whole = torch.compile(model, backend="svg", options=keep)(*given)
    assert built == ["sparse"]
    torch._dynamo.reset()
    built.clear()
    for block in model.blocks:
        block.compile(backend="svg", options=keep)
    with svg_compile.denoising(model, steps=1):
        torch.testing.assert_close(model(*given), whole)
    assert built == ["sparse"]
