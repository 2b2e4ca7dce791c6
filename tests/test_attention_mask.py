"""Masks that hide tokens as queries and as keys: which are accepted, and their replacement."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import svg_compile
from test_models import oracle_sdpa, recorded_plans
from traced import Recorder, verdict

B, H, D = 2, 2, 16
VIDEO = (5, 7, 3)
TEXT, N = 11, 116
pytestmark = pytest.mark.usefixtures("fresh_dynamo")

Pairs = Callable[[Tensor], Tensor]


def repeated(keys: Tensor) -> Tensor:
    rows = keys.view(B, 1, 1, N).repeat(1, 1, N, 1)
    return (rows & rows.transpose(2, 3)).bool()


def expanded(keys: Tensor) -> Tensor:
    rows = keys[:, None, None].expand(-1, 1, N, -1)
    return torch.logical_and(rows.transpose(-1, -2), rows)


def broadcast(keys: Tensor) -> Tensor:
    rows = keys[:, None, None]
    return rows.bitwise_and(rows.transpose(3, 2)).to(torch.bool)


def of_one_sample(keys: Tensor) -> Tensor:
    rows = keys[:1, None, None]
    return rows & rows.transpose(2, 3)


def joined_otherwise(keys: Tensor) -> Tensor:
    rows = keys[:, None, None]
    return rows | rows.transpose(2, 3)


def joined_with_another(keys: Tensor) -> Tensor:
    return keys[:, None, None] & keys.roll(1, 1)[:, None, :, None]


def written_half(keys: Tensor) -> Tensor:
    rows = keys.view(B, 1, 1, N).repeat(1, 1, N, 1)
    columns = rows.transpose(2, 3).clone().transpose(2, 3).transpose(2, 3)
    rows[:, :, 0, :5] = False
    return rows & columns


def written_rows(keys: Tensor) -> Tensor:
    rows = keys.view(B, 1, 1, N).repeat(1, 1, N, 1)
    rows[:, :, 3:9, 20:] = False
    return rows & rows.transpose(2, 3)


def written_after(keys: Tensor) -> Tensor:
    rows = keys[:, None, None]
    pairs = rows & rows.transpose(2, 3)
    pairs[:, :, 3:9, 20:] = False
    return pairs


def causal(keys: Tensor) -> Tensor:
    rows = torch.ones(N, N, dtype=torch.bool).tril()[None, None]
    return rows & rows.transpose(2, 3)


READ = (repeated, expanded, broadcast, of_one_sample)
REFUSED = (joined_otherwise, joined_with_another, written_half, written_rows, written_after, causal)


def attention(pairs: Pairs, attend: Callable[..., Tensor] = F.scaled_dot_product_attention) -> Callable[..., Tensor]:
    """A function of latents [B, H * D, F, H, W], text [B, H * D, TEXT] and keys bool [B, N]."""

    def forward(latents: Tensor, text: Tensor, keys: Tensor) -> Tensor:
        x = torch.cat([latents.flatten(2), text], 2).unflatten(1, (H, D)).transpose(2, 3)
        mask = pairs(keys)
        # What the mask was made of may be written into before it is used.
        keys.logical_not_()
        return attend(x, x * 0.5, x + 1, attn_mask=mask)

    return forward


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(B, H * D, *VIDEO, generator=generator)
    text = torch.randn(B, H * D, TEXT, generator=generator)
    keys = torch.ones(B, N, dtype=torch.bool)
    keys[0, -4:] = keys[1, -7:-2] = keys[1, 50:53] = False
    return latents, text, keys


def config(density: float) -> svg_compile.config.SvgConfig:
    return svg_compile.config.SvgConfig(min_tokens=1, dense_layers=0, dense_steps=0, block=8, density=density)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("pairs", READ)
def test_hidden_tokens_are_neither_keys_nor_queries(pairs: Pairs, dynamic: bool) -> None:
    recorder = Recorder(config(1.0), rewrite=True)
    actual = torch.compile(attention(pairs), backend=recorder, dynamic=dynamic, fullgraph=True)(*inputs())
    assert [verdict(site) for site in recorder.sites] == ["5*7*3+11"]
    latents, text, keys = inputs()
    expected = attention(pairs)(latents.double(), text.double(), keys).float()
    torch.testing.assert_close(actual, expected)
    hidden = ~inputs()[2][:1].expand(B, -1) if pairs is of_one_sample else ~inputs()[2]
    assert hidden.any()
    assert not actual.transpose(1, 2)[hidden].any()


def test_a_sparse_one_is_the_oracles_with_hidden_rows_of_zeros() -> None:
    recorder = Recorder(config(0.3), rewrite=True)
    compiled = torch.compile(attention(repeated), backend=recorder, fullgraph=True)
    with pytest.MonkeyPatch.context() as patch, recorded_plans(patch) as plans:
        actual = compiled(*inputs())
    layout = recorder.sites[0].layout
    assert layout is not None
    sdpa = oracle_sdpa(plans, layout, F.scaled_dot_product_attention)
    torch.testing.assert_close(actual, attention(repeated, sdpa)(*inputs()))


@pytest.mark.parametrize("pairs", REFUSED)
def test_other_masks_of_pairs_are_left_alone(pairs: Pairs) -> None:
    recorder = Recorder(config(1.0), rewrite=True)
    actual = torch.compile(attention(pairs), backend=recorder, fullgraph=True)(*inputs())
    assert [verdict(site) for site in recorder.sites] == ["MASK"]
    torch.testing.assert_close(actual, attention(pairs)(*inputs()))
