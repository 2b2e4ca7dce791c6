"""Heads spread over processes: the heads of all share the pairs, and each process gets what one process would get."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from heads_in_parts import in_parts
from strategies import Problem
from svg_compile.kernels import ops
from svg_compile.kernels.spread import Spread
from svg_compile.kernels.widths import plan_by_need, shares_of_layers
from svg_compile.layout import VideoLayout
from svg_compile.runtime.layer_shares import LayerShares, Profiles
from test_widths import found_by_a_profile

LAYOUT = VideoLayout(6, 4, 4, text_len=3, block=8)


def operands(heads: int, key_mask: str) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    problem = Problem(LAYOUT, 2, heads, 16, ("contiguous", "bshd", "contiguous"), key_mask, seed=3)
    query, key, value = problem.tensors()
    # Sharp in some heads and flat in others, so that they need different half-widths.
    query = query * torch.linspace(0.3, 4.0, heads)[:, None, None]
    return (query, key, value), problem.mask()


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize(("ranks", "key_mask"), [(2, "none"), (3, "some")])
def test_a_profile_of_some_heads_is_that_of_all(
    engine: str, repair: bool, ranks: int, key_mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, mask = operands(6, key_mask)
    share = torch.tensor([1.2, 0.8])
    grid = list(LAYOUT.grid)
    stages: tuple[Any, ...] = (None, None, None, share) if repair else (None, None, share)
    op = torch.ops.svg.profile_and_fit if repair else torch.ops.svg.profile

    def profiled(part: slice, *group: Any) -> tuple[Tensor, ...]:
        query, key, value = (each[:, part] for each in tensors)
        options = (mask, grid, [0.3], 16, True, None, engine, ops.ABI)
        result: tuple[Tensor, ...] = op(query, key, value, *options, *stages, *group)
        return result

    whole = profiled(slice(None))
    heads = 6 // ranks
    parts = in_parts(
        ranks, lambda rank: profiled(slice(rank * heads, (rank + 1) * heads), "heads", rank, ranks), monkeypatch
    )
    for index, result in enumerate(whole):
        torch.testing.assert_close(torch.cat([part[index] for part in parts], dim=1), result, equal_nan=True)
    alone = torch.cat([profiled(slice(rank * heads, (rank + 1) * heads))[0] for rank in range(ranks)], dim=1)
    assert not torch.equal(alone, whole[0])


def test_a_kept_plan_is_kept_without_a_word_with_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    (query, key, value), _ = operands(4, "none")
    previous = torch.tensor([[[0, 3], [1, 2], [0, 5], [2, 4]]] * 2, dtype=torch.int32)

    def gathered(*anything: Any) -> Tensor:
        raise AssertionError("nothing is decided, so nothing need be gathered")

    monkeypatch.setattr("svg_compile.kernels.spread.all_gathered", gathered)
    options = (None, list(LAYOUT.grid), [0.3], 16, True, None, "cpu", ops.ABI)
    when = torch.tensor([0, 0], dtype=torch.int32)
    plan, errors, _ = torch.ops.svg.profile(query, key, value, *options, when, previous, None, "heads", 1, 2)
    assert torch.equal(plan, previous)
    assert bool(errors.isnan().all())


@pytest.mark.parametrize("seed", range(8))
def test_the_plan_of_each_process_is_its_part_of_the_plan_of_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    errors, missing = found_by_a_profile(6, seed)
    # No error of one head is finite: it is dense, in whatever process.
    errors[0, seed % 6] = float("nan")
    whole = plan_by_need(errors, missing, LAYOUT, 0.3)
    parts = in_parts(
        3,
        lambda rank: plan_by_need(
            errors[:, 2 * rank : 2 * rank + 2],
            missing[:, 2 * rank : 2 * rank + 2],
            LAYOUT,
            0.3,
            spread=Spread("heads", rank, 3),
        ),
        monkeypatch,
    )
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_layers_share_by_the_heads_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two layers of unequal numbers of heads, in two graphs.
    layers = [found_by_a_profile(heads, seed) for heads, seed in ((4, 1), (6, 2))]
    want = shares_of_layers(*zip(*layers, strict=True), LAYOUT, 0.3)

    def shares(rank: int) -> list[Tensor]:
        kept, spread = LayerShares(), Spread("heads", rank, 2)
        for graph, (errors, missing) in enumerate(layers):
            half = errors.shape[1] // 2
            own = slice(rank * half, (rank + 1) * half)
            call, none = kept.enter(0, graph)
            assert none is None
            kept.note(call, graph, Profiles((errors[:, own],), (missing[:, own],), (LAYOUT,), 0.3, (spread,)))
        found = [kept.enter(1, graph)[1] for graph in range(2)]
        assert all(each is not None for each in found)
        return [each for each in found if each is not None]

    for first, second in in_parts(2, shares, monkeypatch):
        torch.testing.assert_close(torch.cat((first, second)), want)
