"""Attention that a block calls directly, without a submodule: in the block's graph, or behind a graph break."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from test_plain_attention import ALWAYS, outside, sparse_forwards
from test_regions import OPTIONS, Blocks

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Own(nn.Module):
    """A block that calls attention itself, and holds a module that does not."""

    def __init__(self, qkv: nn.Module) -> None:
        super().__init__()
        self.qkv = qkv

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_attention_that_a_block_calls_itself_stays_dense_with_a_reason() -> None:
    model = Blocks()
    model.blocks = nn.ModuleList(Own(block.attn.qkv) for block in model.blocks)
    for block in model.blocks:
        outside(block)
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, **ALWAYS})
    with pytest.warns(UserWarning, match=r"blocks\.0\.qkv and 2 more ran as plain Python.*the block itself calls it"):
        assert sparse_forwards(model) == 0


def as_it_is(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return attend


def behind_a_break(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def attend_later(*qkv: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return attend(*qkv)

    return attend_later


class OwnBroken(Own):
    """The same, with a graph break between what carries the grid, its linear layer, and the attention."""

    def __init__(self, qkv: nn.Module, parted: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
        super().__init__(qkv)
        self.attend = parted(F.scaled_dot_product_attention)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return x + self.attend(q, k, v).transpose(1, 2).flatten(2)


def broken(parted: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> Any:
    model = Blocks()
    model.blocks = nn.ModuleList(OwnBroken(block.attn.qkv, parted) for block in model.blocks)
    for block in model.blocks:
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, **ALWAYS})
    return model


@pytest.mark.parametrize("parted", [behind_a_break, torch.compiler.disable])
def test_attention_that_a_block_calls_behind_a_break_stays_dense_with_a_reason(parted: Any) -> None:
    with pytest.warns(UserWarning, match=r"blocks\.0 \(and 2 more\) itself calls stays dense: a graph break parts it"):
        assert sparse_forwards(broken(parted)) == 0


def test_attention_that_a_block_calls_itself_is_sparse_without_a_break() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        assert sparse_forwards(broken(as_it_is)) == 3


def test_attention_of_a_module_behind_the_same_break_is_sparse() -> None:
    """The remedy in the reason."""
    model = broken(behind_a_break)
    model.blocks = nn.ModuleList(nn.Sequential(block) for block in model.blocks)
    for block in model.blocks:
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, **ALWAYS})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        assert sparse_forwards(model) == 3
