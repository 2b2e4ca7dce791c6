"""Axes through products of other libraries and of quantised weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import svg_compile
from svg_compile.passes.axes.rules import rowwise
from token_toys import GRID, B, C, N, attend, tokens, video
from traced import sites_of, verdict

# ---- products of other libraries -------------------------------------------------------------------------------------


@torch.library.custom_op("svg_tests::product", mutates_args=())
def product(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    return F.linear(x, weight) * scale


@product.register_fake
def _(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("svg_tests::shuffle", mutates_args=())
def shuffle(x: Tensor) -> Tensor:
    return x.flip(1)


@shuffle.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.fixture
def none_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowwise, "_REGISTERED", set())


def projected(x: Tensor) -> Tensor:
    return attend(torch.ops.svg_tests.product(tokens(x), torch.ones(C, C), 1.0))


@pytest.mark.usefixtures("none_registered")
@pytest.mark.parametrize(
    "operator", ["svg_tests::product", product, torch.ops.svg_tests.product, torch.ops.svg_tests.product.default]
)
def test_a_declared_operator_keeps_the_rows(operator: Any) -> None:
    (site,) = sites_of(projected, video())
    assert verdict(site) == "UNKNOWN_GRID"
    assert site.detail.startswith("svg_tests.product at test_axes_of_products.py:")
    svg_compile.register_rowwise_op(operator)
    assert [verdict(site) for site in sites_of(projected, video())] == [GRID]
    # What it says is of that operator alone.
    assert [verdict(site) for site in sites_of(lambda x: attend(shuffle(tokens(x))), video())] == ["UNKNOWN_GRID"]


@pytest.mark.usefixtures("none_registered")
def test_rows_of_data_times_rows_of_data() -> None:
    svg_compile.register_rowwise_op(product)

    def turned(x: Tensor) -> Tensor:
        y = tokens(x).flip(1)
        return attend(torch.ops.svg_tests.product(y, torch.ones(C, C), 1.0) + tokens(x))

    def as_weight(x: Tensor) -> Tensor:
        y = torch.ops.svg_tests.product(torch.eye(N), tokens(x)[0].flip(0).t(), 1.0)
        return attend(y[None] * torch.ones(B, 1, 1))

    assert [verdict(site) for site in sites_of(turned, video())] == ["UNKNOWN_GRID"]
    assert [verdict(site) for site in sites_of(as_weight, video())] == ["NOT_VIDEO"]


@torch.library.custom_op("svg_tests::write", mutates_args=("x",))
def write(x: Tensor) -> None:
    x.zero_()


@pytest.mark.parametrize(
    ("operator", "error"),
    [(3, TypeError), ("product", TypeError), (torch.ops.aten.roll, ValueError), (write, ValueError)],
)
def test_what_cannot_be_declared(operator: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        svg_compile.register_rowwise_op(operator)


def int8(x: Tensor) -> Tensor:
    rows = x.reshape(-1, C)
    scale = rows.abs().amax(1, keepdim=True) / 127
    out = torch._int_mm((rows / scale).round().to(torch.int8), torch.ones(C, C, dtype=torch.int8).t())
    return (out * scale).reshape(x.shape)


def float8(x: Tensor) -> Tensor:
    rows, ones = x.reshape(-1, C).to(torch.float8_e4m3fn), torch.ones(1)
    weight = torch.ones(C, C).to(torch.float8_e4m3fn)
    out = torch._scaled_mm(rows, weight.t(), scale_a=ones, scale_b=ones, out_dtype=torch.bfloat16)
    return out.to(x.dtype).reshape(x.shape)


def of_turned_rows(x: Tensor) -> Tensor:
    return int8(x.flip(1)) + x


def with_scales_of_turned_rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, C)
    scale = rows.abs().amax(1, keepdim=True).flip(0)
    out = torch._int_mm(rows.to(torch.int8), torch.ones(C, C, dtype=torch.int8))
    return (out * scale).reshape(x.shape)


@pytest.mark.parametrize(
    ("linear", "expected"),
    [(int8, GRID), (float8, GRID), (of_turned_rows, "UNKNOWN_GRID"), (with_scales_of_turned_rows, "UNKNOWN_GRID")],
)
def test_quantised_products_keep_rows(linear: Callable[[Tensor], Tensor], expected: str) -> None:
    assert [verdict(site) for site in sites_of(lambda x: attend(linear(tokens(x))), video())] == [expected]
