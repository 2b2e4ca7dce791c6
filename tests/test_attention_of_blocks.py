"""Attention that a block calls directly, without a submodule: in the block's graph, or behind a graph break."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svg_compile
from lowering import kind, watch
from svg_compile.runtime import dispatcher as schedule
from test_plain_attention import ALWAYS, outside, sparse_forwards
from test_regions import OPTIONS, Blocks
from toy import latents

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return watch(monkeypatch, kind)


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
    with pytest.warns(
        UserWarning, match=r"blocks\.0\.qkv and 2 more ran as plain Python.*the block itself calls it; put"
    ):
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


def broken(parted: Callable[[Callable[..., Tensor]], Callable[..., Tensor]], **options: Any) -> Any:
    model = Blocks()
    model.blocks = nn.ModuleList(OwnBroken(block.attn.qkv, parted) for block in model.blocks)
    for block in model.blocks:
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, **ALWAYS, **options})
    return model


def test_attention_that_a_block_calls_behind_a_break_stays_dense_with_a_reason() -> None:
    with pytest.warns(UserWarning, match=r"blocks\.0 \(and 2 more\) itself calls stays dense: a graph break separates"):
        assert sparse_forwards(broken(behind_a_break)) == 0


def test_attention_of_a_function_out_of_compilation_is_sparse() -> None:
    model, inputs = broken(torch.compiler.disable), latents()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        assert sparse_forwards(model) == 3
        with svg_compile.denoising(model, steps=1):
            got = model(inputs)
    torch._dynamo.reset()
    together = broken(as_it_is)
    with svg_compile.denoising(together, steps=1):
        torch.testing.assert_close(got, together(inputs), rtol=1e-4, atol=1e-4)


def test_attention_of_a_function_out_of_compilation_stays_dense_where_that_is_asked_for() -> None:
    assert sparse_forwards(broken(torch.compiler.disable, eager_attention=False)) == 0


class Twice(OwnBroken):
    """A cross-attention to as many tokens as the video has, in a module, and behind it one of the block itself."""

    def __init__(self, qkv: nn.Module) -> None:
        super().__init__(qkv, torch.compiler.disable)
        self.other = Cross(qkv)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.other(x, x.flip(1)))


class Cross(nn.Module):
    def __init__(self, qkv: nn.Module) -> None:
        super().__init__()
        self.qkv = qkv

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        (q, k, v) = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        _, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(other).chunk(3, dim=-1))
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_attentions_of_such_a_block_are_told_apart_by_their_order() -> None:
    """The tokens of the other one are those of the video backwards: no grid is proven for it."""
    model = broken(as_it_is)
    model.blocks = nn.ModuleList(Twice(block.qkv) for block in model.blocks)
    inputs = latents()
    expected = model(inputs)
    for block in model.blocks:
        block.compile(backend="svg", dynamic=False, options={**OPTIONS, **ALWAYS, "density": 1.0})
    assert sparse_forwards(model) == 3
    with svg_compile.denoising(model, steps=1):
        torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-4)


class Parted(Blocks):
    """The blocks begin behind a graph break that stands within the arguments of a call."""

    def forward(self, x: Tensor, timestep: Tensor | None = None) -> Tensor:
        return super().forward(behind_a_break(lambda each: each * 1.0)(x))


class PartedBlocks(Blocks):
    """The same of each block."""

    def forward(self, x: Tensor, timestep: Tensor | None = None) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(behind_a_break(lambda each: each * 1.0)(x))
        return x


@pytest.mark.parametrize("model", [Parted(), PartedBlocks()], ids=lambda model: type(model).__name__)
def test_a_module_or_method_that_waits_for_its_arguments_has_its_own_path(model: Any) -> None:
    report = svg_compile.explain(model, latents(), options={"min_tokens": 0, "dense_layers": 0})
    assert [site.layer for site in report.sites] == [f"blocks.{number}.attn" for number in range(3)]
    assert report.rewritten == 3


@pytest.mark.parametrize("disabled", [False, True])
def test_blocks_of_a_model_that_is_compiled_whole_are_served_behind_a_break(disabled: bool) -> None:
    model, dense = Parted(), []
    if disabled:
        model.blocks[1] = OwnBroken(model.blocks[1].attn.qkv, torch.compiler.disable)
    model.compile(backend="svg", dynamic=False, options={**OPTIONS, **ALWAYS})
    with svg_compile.denoising(model, steps=2) as denoising:
        for _ in range(2):
            with schedule.observe() as seen:
                model(latents())
            dense.append([decision.dense for decision in seen])
            denoising.advance()
    # One graph, or one for each attention.
    assert dense == [[], [False] * (3 if disabled else 1)]


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
