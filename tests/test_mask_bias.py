"""Additive masks: those proven to hide keys alone, their replacement, and those left unchanged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from test_models import oracle_sdpa, recorded_plans
from traced import CONFIG, Recorder, sites_of, verdict

B, H, D = 2, 2, 16
VIDEO = (5, 7, 3)
TEXT, N = 11, 116
GRID = "5*7*3+11"
pytestmark = pytest.mark.usefixtures("fresh_dynamo")

# int64 [B, TEXT] of 0 and 1 -> a bias [B, .., N]
Bias = Callable[[Tensor], Tensor]


def written_in_part(mask: Tensor) -> Tensor:
    bias = torch.zeros(B, 1, N)
    bias[:, 0, N - TEXT :] = (mask - 1).float() * torch.finfo(torch.float32).max
    return bias.unsqueeze(1)


def of_ones_beside(mask: Tensor) -> Tensor:
    whole = torch.cat([torch.ones(B, N - TEXT, dtype=mask.dtype), mask], 1)
    return ((1 - whole[:, None, None]).float() * -10000.0).to(torch.float32)


def padded(mask: Tensor) -> Tensor:
    return (1.0 - F.pad(mask.float(), (N - TEXT, 0), value=1.0))[:, None, None] * torch.finfo(torch.float32).min


def filled(mask: Tensor) -> Tensor:
    keep = F.pad(mask.bool(), (N - TEXT, 0), value=True)
    return torch.zeros(B, N).masked_fill(~keep, float("-inf"))[:, None, None]


def filled_in_place(mask: Tensor) -> Tensor:
    bias = torch.zeros(B, N)
    bias[:, N - TEXT :].masked_fill_(mask == 0, -20000.0)
    return bias.view(B, 1, 1, N)


def chosen(mask: Tensor) -> Tensor:
    keep = F.pad(mask, (N - TEXT, 0), value=1) > 0
    return torch.where(keep, 0.0, torch.finfo(torch.float32).min)[:, None, None]


def repeated_to_heads(mask: Tensor) -> Tensor:
    return chosen(mask).repeat(1, H, 1, 1)


def expanded_to_rows(mask: Tensor) -> Tensor:
    return chosen(mask).expand(-1, H, N, -1)


READ = (written_in_part, of_ones_beside, padded, filled, filled_in_place, chosen, repeated_to_heads, expanded_to_rows)


def too_weak(mask: Tensor) -> Tensor:
    return chosen(mask).clamp(min=-50.0)


def weak_by_number(mask: Tensor) -> Tensor:
    return (F.pad(mask, (N - TEXT, 0), value=1) - 1)[:, None, None].float() * 5


def towards(mask: Tensor) -> Tensor:
    return (1 - F.pad(mask, (N - TEXT, 0), value=1))[:, None, None].float() * 10000.0


def of_scores(mask: Tensor) -> Tensor:
    return F.pad(mask.float().softmax(-1), (N - TEXT, 0))[:, None, None] * torch.finfo(torch.float32).min


def with_a_distance(mask: Tensor) -> Tensor:
    return chosen(mask) + torch.arange(N)[None, None, None] * 0.1


def rows_written(mask: Tensor) -> Tensor:
    bias = chosen(mask).repeat(1, 1, N, 1)
    bias[:, :, :3] = torch.finfo(torch.float32).min
    return bias


def a_head_written(mask: Tensor) -> Tensor:
    bias = chosen(mask).repeat(1, H, 1, 1)
    bias[:, 0] += torch.finfo(torch.float32).min
    return bias


def not_a_number(mask: Tensor) -> Tensor:
    return (1 - F.pad(mask, (N - TEXT, 0), value=1)).float()[:, None, None] * float("-inf")


def counted_twice(mask: Tensor) -> Tensor:
    # 0 and -max, then 0 and max.
    return chosen(mask) * -1.0


def bits(mask: Tensor) -> Tensor:
    return F.pad(mask, (N - TEXT, 0), value=1).int().view(torch.float32)[:, None, None] - 1


REFUSED = (
    *(too_weak, weak_by_number, towards, of_scores, with_a_distance, rows_written, a_head_written, not_a_number),
    *(counted_twice, bits),
)


def attention(bias: Bias, attend: Callable[..., Tensor] = F.scaled_dot_product_attention) -> Callable[..., Tensor]:
    """A function of latents [B, H * D, F, H, W], text [B, H * D, TEXT] and mask int64 [B, TEXT]."""

    def forward(latents: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        x = torch.cat([latents.flatten(2), text], 2).unflatten(1, (H, D)).transpose(2, 3)
        return attend(x, x * 0.5, x + 1, attn_mask=bias(mask))

    return forward


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(B, H * D, *VIDEO, generator=generator)
    mask = torch.ones(B, TEXT, dtype=torch.int64)
    mask[0, -4:] = mask[1, -7:-2] = 0
    return latents, torch.randn(B, H * D, TEXT, generator=generator), mask


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bias", READ)
def test_a_bias_of_a_padding_mask_hides_keys(bias: Bias, dynamic: bool) -> None:
    config = CONFIG.__class__(min_tokens=1, dense_layers=0, dense_steps=0, block=8, density=1.0)
    recorder = Recorder(config, rewrite=True)
    actual = torch.compile(attention(bias), backend=recorder, dynamic=dynamic, fullgraph=True)(*inputs())
    assert [verdict(site) for site in recorder.sites] == [GRID]
    torch.testing.assert_close(actual, attention(bias)(*inputs()))


def test_a_sparse_one_is_the_oracles() -> None:
    config = CONFIG.__class__(min_tokens=1, dense_layers=0, dense_steps=0, block=8, density=0.3)
    recorder = Recorder(config, rewrite=True)
    compiled = torch.compile(attention(written_in_part), backend=recorder, fullgraph=True)
    with pytest.MonkeyPatch.context() as patch, recorded_plans(patch) as plans:
        actual = compiled(*inputs())
    layout = recorder.sites[0].layout
    assert layout is not None
    sdpa = oracle_sdpa(plans, layout, F.scaled_dot_product_attention)

    def of_hidden_keys(*operands: Tensor, attn_mask: Tensor) -> Tensor:
        return sdpa(*operands, attn_mask=attn_mask == 0)

    torch.testing.assert_close(actual, attention(written_in_part, of_hidden_keys)(*inputs()))


@pytest.mark.parametrize("bias", REFUSED)
def test_other_biases_are_left_alone(bias: Bias) -> None:
    sites = sites_of(attention(bias), *inputs())
    assert [verdict(site) for site in sites] == ["MASK"]


@pytest.mark.parametrize("mask", [torch.ones(B, TEXT), torch.ones(B, TEXT, 1, dtype=torch.int64)])
def test_only_a_mask_of_whole_numbers_is_taken_for_one(mask: Tensor) -> None:
    latents, text, _ = inputs()
    sites = sites_of(attention(lambda mask: written_in_part(mask.reshape(B, TEXT))), latents, text, mask)
    assert [verdict(site) for site in sites] == ["MASK"]
