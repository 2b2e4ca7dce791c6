"""Models that write tokens at an index they are given: sparse where its values are consecutive, and only then."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svg_compile
from lowering import grids_of, watch
from packed_latents import GRID, OPTIONS, positions
from svg_compile.passes.index_runs import Run, Runs, runs_in, runs_of
from svg_compile.regional import known_calls, traced_grids

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
TEXT = 5
TOKENS = GRID[0] * GRID[1] * GRID[2]
WORDS_AT, VIDEO_AT = torch.arange(TEXT), torch.arange(TEXT, TEXT + TOKENS)
EXACT = {**OPTIONS, "density": 1.0}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x + self.attention(x, table)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        q, k = (t * table for t in (q, k))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Joint(nn.Module):
    """Text [B, T, 8] and packed latents [B, N, 8] in one buffer, at indices; the video is read out at its own."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed = nn.Linear(8, 32)
            self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.eval()

    def forward(self, latents: Tensor, words: Tensor, at: Tensor, words_at: Tensor, where: Tensor, t: Tensor) -> Tensor:
        x = torch.zeros(latents.shape[0], latents.shape[1] + words.shape[1], 32)
        x = x.index_copy(1, words_at, self.embed(words)).index_copy(1, at, self.embed(latents) * t)
        table = where.sum(0)[:, None].cos()
        for block in self.blocks:
            x = block(x, table)
        return x.index_select(1, at)


def places(grid: Sequence[int] = GRID, first: bool = True) -> Tensor:
    """[3, N] places of all tokens; each of the text's is later than the one before it."""
    video = positions(*grid)[0]
    words = torch.arange(TEXT).float().expand(3, TEXT)
    return torch.cat([words, video + 100] if first else [video, words + 100], 1)


def given(seed: int = 0, **other: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    draw = {name: torch.randn(1, size, 8, generator=generator) for name, size in (("latents", TOKENS), ("words", TEXT))}
    return {**draw, "at": VIDEO_AT.clone(), "words_at": WORDS_AT.clone(), "where": places(), "t": torch.ones(1)} | other


@pytest.mark.parametrize("dynamic", [False, True])
def test_consecutive_numbers_make_it_sparse(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = Joint(), watch(monkeypatch, grids_of)
    options = {**OPTIONS, "strict": True, "layout": (*GRID, TEXT, "first")}
    with_layout = torch.compile(model, backend="svg", options=options, dynamic=dynamic)(**given())
    torch._dynamo.reset()
    found = torch.compile(model, backend="svg", options={**OPTIONS, "strict": True}, dynamic=dynamic)(**given())
    assert "3x4x6" in seen
    torch.testing.assert_close(found, with_layout)
    assert not torch.allclose(found, model(**given()))


def test_an_index_that_changes_between_calls_runs_dense_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Joint()
    watch(monkeypatch, grids_of)
    fast = torch.compile(model, backend="svg", options=OPTIONS, dynamic=False)
    sparse = fast(**given())
    turned = given(at=VIDEO_AT.flip(0))
    with pytest.warns(UserWarning, match="compiled for the index of its first call"):
        torch.testing.assert_close(fast(**turned), model(**turned))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        torch.testing.assert_close(fast(**given()), sparse)
        for at in (VIDEO_AT.roll(1), torch.randperm(TOKENS) + TEXT):
            torch.testing.assert_close(fast(**given(at=at)), model(**given(at=at)))


def test_an_index_written_in_place_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, same = Joint(), given()
    watch(monkeypatch, grids_of)
    fast = torch.compile(model, backend="svg", options=OPTIONS, dynamic=False)
    fast(**same)
    same["at"][[3, 40]] = same["at"][[40, 3]]
    with pytest.warns(UserWarning, match="runs dense"):
        torch.testing.assert_close(fast(**same), model(**same))


def test_another_grid_of_equal_length_runs_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = Joint(), given(where=places((4, 3, 6)))
    watch(monkeypatch, grids_of)
    fast = torch.compile(model, backend="svg", options=OPTIONS, dynamic=False)
    fast(**given())
    with pytest.warns(UserWarning, match="3x4x6 video"):
        torch.testing.assert_close(fast(**other), model(**other))


WRONG = {
    "permuted": VIDEO_AT[torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))],
    "backwards": VIDEO_AT.flip(0),
    "halves swapped": VIDEO_AT.roll(TOKENS // 2),
    "over the text": VIDEO_AT - 2,
    "a number twice": torch.cat([VIDEO_AT[:20], VIDEO_AT[19:-1]]),
    "windows": VIDEO_AT.view(3, 4, 2, 3).transpose(1, 2).flatten(),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_orders_stay_dense(name: str) -> None:
    sites = svg_compile.explain(Joint(), **given(at=WRONG[name]), options=OPTIONS).sites
    assert [site.rewritten for site in sites] == [False, False]
    assert all("aten.index_copy" in site.detail for site in sites)


def test_text_behind_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Joint()
    behind = given(at=torch.arange(TOKENS), words_at=torch.arange(TOKENS, TOKENS + TEXT), where=places(first=False))
    sites = svg_compile.explain(model, **behind, options=OPTIONS).sites
    assert {(site.layout.text_len, site.layout.text_first) for site in sites if site.layout} == {(TEXT, False)}
    watch(monkeypatch, grids_of)
    exact = torch.compile(model, backend="svg", options={**EXACT, "strict": True}, dynamic=False)
    torch.testing.assert_close(exact(**behind), model(**behind))


def test_blocks_are_told_the_grid_of_the_call_s_own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain, seen = Joint(), Joint(), watch(monkeypatch, grids_of)
    expected = torch.compile(Joint(), backend="svg", options=OPTIONS, dynamic=False)(**given())
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend="svg", options=OPTIONS, dynamic=False)
    traces = []
    whole = traced_grids.trace_grids
    monkeypatch.setattr(known_calls, "trace_grids", lambda *call: traces.append(1) or whole(*call))
    other = given(at=VIDEO_AT.flip(0))
    with svg_compile.denoising(model, steps=4) as run:
        torch.testing.assert_close(model(**given()), expected)
        run.advance()
        torch.testing.assert_close(model(**other), plain(**other))
        run.advance()
        # Equal values in other tensors: the trace of the first call serves this one.
        torch.testing.assert_close(model(**given()), expected)
        run.advance()
    assert "3x4x6" in seen
    assert len(traces) == 2


class Ordered(Joint):
    """Computes its index from an argument before a graph break, or keeps it as state."""

    def __init__(self, state: bool) -> None:
        super().__init__()
        self.register_buffer("kept", VIDEO_AT.clone() if state else None)

    def forward(self, latents: Tensor, words: Tensor, at: Tensor, words_at: Tensor, where: Tensor, t: Tensor) -> Tensor:
        if self.kept is None:
            at = at.flatten().argsort() + words.shape[1]
            torch._dynamo.graph_break()
        return super().forward(latents, words, at if self.kept is None else self.kept, words_at, where, t)


@pytest.mark.parametrize("state", [False, True], ids=["before a break", "state"])
def test_blocks_build_on_no_index_that_is_not_an_argument(state: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = Ordered(state), Ordered(state)
    watch(monkeypatch, grids_of)
    for block in model.blocks:
        block.compile(backend="svg", options=OPTIONS, dynamic=False)
    order = torch.arange(TOKENS)[:, None] * 3
    with svg_compile.denoising(model, steps=2) as run:
        model(**given(at=order))
        run.advance()
        if state:
            for each in (model, plain):
                each.kept.copy_(each.kept.flip(0))
        other = given(at=order if state else order.flip(0))
        torch.testing.assert_close(model(**other), plain(**other))


def test_runs_of_consecutive_numbers() -> None:
    assert runs_of(torch.arange(3, 9)) == Runs((Run(3, 6),))
    assert runs_of(torch.tensor([7, 8, 2, 3, 4])) == Runs((Run(7, 2), Run(2, 3)))
    assert runs_of(torch.arange(3, 9, dtype=torch.int32)) == runs_of(torch.arange(3, 9))
    for found in (runs_of(torch.tensor([7, 8, 2, 3, 4])), runs_of(torch.arange(3, 9))):
        assert found is not None
        assert runs_of(found.numbers()) == found
        assert not found.overlap
    overlapping = runs_of(torch.tensor([2, 3, 4, 4, 5]))
    assert overlapping is not None
    assert overlapping.overlap


@pytest.mark.parametrize(
    "index",
    [
        torch.arange(40).flip(0),
        torch.arange(0, 40, 2),
        torch.arange(-1, 5),
        torch.tensor([3]),
        torch.arange(0),
        torch.arange(6).float(),
        torch.arange(6).view(2, 3),
        torch.ones(6, dtype=torch.bool),
        torch.empty(6, dtype=torch.int64, device="meta"),
    ],
    ids=["backwards", "every other", "negative", "one", "none", "floating", "two dimensions", "a mask", "no data"],
)
def test_what_is_no_index_of_runs(index: Tensor) -> None:
    assert runs_of(index) is None
    assert runs_in(torch.empty(0, dtype=torch.int64)) is None
