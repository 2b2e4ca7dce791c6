"""Programs with graph breaks: the proven axes of tokens that leave one graph and enter another, and refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svg_compile
from svg_compile import Reason
from token_toys import GRID, B, C, N, attend, tokens, video
from traced import GRID_OPTIONS, verdict

Program = Callable[..., Tensor]
FOUND: dict[str, Program] = {}
REFUSED: dict[str, Program] = {}


def in_(table: dict[str, Program]) -> Callable[[Program], Program]:
    def note(program: Program) -> Program:
        table[program.__name__] = program
        return program

    return note


def cut() -> None:
    torch._dynamo.graph_break()


@torch.compiler.disable
def by_python(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    return function(*args)


# ---- what keeps its name ---------------------------------------------------------------------------------------------


@in_(FOUND)
def through_two_breaks(x: Tensor) -> Tensor:
    y = tokens(x)
    cut()
    y = F.layer_norm(y, (C,))
    cut()
    return attend(y)


@in_(FOUND)
def query_and_key_turned_by_python(x: Tensor) -> Tensor:
    q, k, v = (tokens(x) * n for n in (1, 2, 3))
    q, k = (by_python(lambda t: torch.stack((-t[..., 1::2], t[..., ::2]), -1).flatten(2), t) for t in (q, k))
    return attend(q, k, v)


@in_(FOUND)
def of_an_object_between(x: Tensor) -> Tensor:
    kept = {"tokens": [tokens(x)]}
    cut()
    return attend(kept["tokens"][0])


@in_(FOUND)
def joined_with_text_by_python(x: Tensor) -> Tensor:
    words = by_python(lambda t: torch.zeros(B, 3, C) + t.mean(), x)
    return attend(by_python(lambda w, t: torch.cat([w, t], 1), words, tokens(x)))


@in_(FOUND)
def scaled_in_place_by_python(x: Tensor) -> Tensor:
    y = tokens(x)
    by_python(lambda t: t.mul_(2.0), y)
    return attend(y)


@in_(FOUND)
def a_buffer_filled_in_one_graph_and_read_in_the_next(x: Tensor) -> Tensor:
    buffer = torch.empty(B, N, C)
    cut()
    buffer.copy_(tokens(x))
    cut()
    return attend(buffer * 2)


@in_(FOUND)
def a_table_made_by_python(x: Tensor) -> Tensor:
    table = by_python(lambda t: torch.linspace(0, 1, t.shape[1])[:, None].cos(), tokens(x))
    return attend(tokens(x) * table)


# ---- what must be refused --------------------------------------------------------------------------------------------


@in_(REFUSED)
def rolled_by_python(x: Tensor) -> Tensor:
    return attend(by_python(lambda t: t.roll(1, 1), tokens(x)))


@in_(REFUSED)
def shuffled_by_python(x: Tensor) -> Tensor:
    return attend(by_python(lambda t: t[:, torch.randperm(N)], tokens(x)))


@in_(REFUSED)
def written_in_place_between(x: Tensor) -> Tensor:
    y = tokens(x)
    cut()
    by_python(lambda t: t.copy_(t.flip(1).clone()), y)
    return attend(y)


@in_(REFUSED)
def a_view_is_written_between(x: Tensor) -> Tensor:
    y = tokens(x).contiguous()
    view = y.view(-1)
    cut()
    by_python(lambda t: t.copy_(t.flip(0).clone()), view)
    return attend(y)


@in_(REFUSED)
def a_base_is_written_in_another_graph(x: Tensor) -> Tensor:
    base = tokens(x) * 1
    y = base.transpose(0, 1)
    cut()
    base.copy_(base.flip(1))
    cut()
    return attend(y.transpose(0, 1))


@in_(REFUSED)
def a_detached_view_is_written(x: Tensor) -> Tensor:
    y = tokens(x) * 1
    by_python(lambda t: t.data.copy_(t.flip(1).clone()), y)
    return attend(y)


@in_(REFUSED)
def the_same_storage_in_another_shape(x: Tensor) -> Tensor:
    y = tokens(x) * 1
    return attend(by_python(lambda t: t.as_strided((B, N, C), (N * C, 1, N)), y))


@in_(REFUSED)
def an_attribute_is_changed_between(x: Tensor) -> Tensor:
    kept = [tokens(x)]
    cut()
    kept[0] = kept[0].flip(1)
    cut()
    return attend(kept[0])


@in_(REFUSED)
def a_window_made_by_python(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 4, 1)
    return attend(by_python(lambda t: t.transpose(1, 2).flatten(1, 3), y))


@in_(REFUSED)
def half_of_it_written_between(x: Tensor) -> Tensor:
    y = tokens(x) * 1
    by_python(lambda t: t[:, : N // 2].copy_(t[:, N // 2 :].clone()), y)
    return attend(y)


@in_(REFUSED)
def put_together_of_numbers_that_were_read(x: Tensor) -> Tensor:
    numbers = by_python(lambda t: torch.tensor(t.flatten().tolist()).reshape(t.shape).flip(2), x)
    return attend(tokens(x) * 0 + tokens(numbers))


def sites(program: Program, *inputs: Tensor, **options: object) -> list[svg_compile.Site]:
    torch._dynamo.reset()
    with torch.no_grad():
        return list(svg_compile.explain(program, *inputs, options={**GRID_OPTIONS, **options}).sites)


@pytest.mark.parametrize("name", FOUND)
def test_what_is_found(name: str) -> None:
    (site,) = sites(FOUND[name], video())
    grid = f"3+{GRID}" if "text" in name else GRID
    assert verdict(site) == grid
    assert "across a graph break" in site.detail


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    (site,) = sites(REFUSED[name], video())
    assert site.layout is None
    assert site.reason is Reason.UNKNOWN_GRID


def swapped(x: Tensor, y: Tensor) -> Tensor:
    """Two videos of one grid, swapped between the graphs."""
    x, y = tokens(x), tokens(y)
    cut()
    x, y = by_python(lambda a, b: (b, a), x, y)  # type: ignore[arg-type, return-value]
    return attend(x, y, y) + attend(x, x, x)


def test_two_videos_that_change_places_are_still_two() -> None:
    assert [verdict(site) for site in sites(swapped, video(), video())] == ["CROSS_ATTENTION", GRID]


def test_the_line_of_plain_python_that_took_the_name_is_told() -> None:
    (site,) = sites(rolled_by_python, video())
    line = rolled_by_python.__code__.co_firstlineno + 2
    assert site.detail == f"aten.roll at {__file__.rpartition('/')[2]}:{line}"


class _Layers(nn.Module):
    """One graph for all layers, of which the second gets other tokens."""

    def __init__(self, other: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers, self.other = nn.ModuleList(_Layer() for _ in range(3)), other

    def forward(self, x: Tensor) -> Tensor:
        y = tokens(x)
        for number, layer in enumerate(self.layers):
            cut()
            y = layer(by_python(self.other, y) if number == 1 else y)
        return y


class _Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + attend(x)


def test_each_call_of_a_graph_is_decided_by_what_enters_it() -> None:
    found = sites(_Layers(lambda t: t * 2), video())
    assert [(site.layer, verdict(site)) for site in found] == [(f"layers.{n}", GRID) for n in range(3)]
    found = sites(_Layers(lambda t: t.flip(1)), video())
    assert [verdict(site) for site in found] == [GRID, "UNKNOWN_GRID", "UNKNOWN_GRID"]
