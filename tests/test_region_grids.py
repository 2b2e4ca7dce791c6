"""Models compiled block by block: the grid is data of a forward, of its own thread, and no number of grids ends it."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svg_compile
from lowering import kind, watch
from svg_compile.runtime import dispatcher as schedule
from test_region_calls import SPARSE
from test_regions import OPTIONS, Block, Blocks
from toy import ToyVideoDiT, latents

GRIDS = ((5, 7, 3), (7, 5, 3), (3, 7, 5), (4, 4, 4), (2, 8, 4), (2, 4, 8), (9, 2, 2), (5, 5, 5), (2, 2, 9), (6, 3, 3))
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return watch(monkeypatch, kind)


def blocks(model: Any, dynamic: bool | None, **options: Any) -> Any:
    for block in model.blocks:
        block.compile(backend="svg", dynamic=dynamic, options={**OPTIONS, **SPARSE, **options})
    return model


def whole(grid: tuple[int, int, int]) -> Tensor:
    """The result of the whole model, compiled for this grid alone."""
    torch._dynamo.reset()
    options = {**OPTIONS, **SPARSE}
    return torch.compile(ToyVideoDiT(3), backend="svg", dynamic=False, options=options)(latents(1, *grid))


# Left to itself, Dynamo makes a graph for each number that is the first to change: of the grid, then of the sequence.
# And one more for the first block, whose input is a view: where a size is symbolic it guards the view's base.
@pytest.mark.parametrize(("dynamic", "most"), [(True, 2), (None, 7)])
def test_one_graph_serves_any_number_of_grids(dynamic: bool | None, most: int, built: list[str]) -> None:
    model = blocks(Blocks(), dynamic)
    results = {}
    with warnings.catch_warnings(), svg_compile.denoising(model, steps=1):
        warnings.filterwarnings("error", message="svg")
        for grid in (*GRIDS, *GRIDS[:2]):
            with schedule.observe() as seen:
                results[grid] = model(latents(1, *grid))
            assert len(seen) == 3, grid
    assert built.count("sparse") == len(built) <= most
    for grid in GRIDS[:4]:
        torch.testing.assert_close(results[grid], whole(grid), rtol=1e-5, atol=1e-5)


def test_where_dynamo_stops_compiling_a_warning_says_what_helps(built: list[str]) -> None:
    # Else their attention goes on, compiled by itself.
    model = blocks(Blocks(), False, eager_attention=False)
    with (  # noqa: PT031 (which of the calls warns is Dynamo's affair)
        torch._dynamo.config.patch(recompile_limit=3),
        svg_compile.denoising(model, steps=1),
        pytest.warns(UserWarning, match=r"stopped compiling Block .*recompile_limit.*dynamic=True") as warned,
    ):
        for grid in GRIDS[:6]:
            model(latents(1, *grid))
    assert len([each for each in warned if "stopped compiling" in str(each.message)]) == 1


class Packed(nn.Module):
    """Packed latents [B, N, C] whose grid Python code reads off integer positions [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(qkv) for qkv in ToyVideoDiT(2).qkv)
        self.eval()

    def forward(self, x: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        at = torch.meshgrid(*(torch.arange(size + 1) for size in ids.tolist()[-1]), indexing="ij")
        x = x * torch.stack([place.flatten() for place in at], -1).float().sum(-1)[None, :, None].cos()
        for block in self.blocks:
            x = block(x)
        return x


def positions(*grid: int) -> Tensor:
    return torch.cartesian_prod(*map(torch.arange, grid))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_grids_in_long_integer_inputs_are_told_apart(dtype: torch.dtype, built: list[str]) -> None:
    x = torch.randn(1, 105, 32, generator=torch.Generator().manual_seed(0))

    def run(*grids: tuple[int, int, int]) -> Tensor:
        torch._dynamo.reset()
        model = blocks(Packed(), False)
        with svg_compile.denoising(model, steps=9), schedule.observe() as seen:
            outputs = [model(x, torch.tensor([500.0]), positions(*grid).to(dtype)) for grid in grids]
        assert len(seen) == 2 * len(grids)
        return outputs[-1]

    alone, after = run((7, 5, 3)), run((5, 7, 3), (3, 7, 5), (7, 5, 3))
    assert torch.equal(alone, after)
    assert not torch.equal(alone, run((5, 7, 3)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_threads_do_not_see_each_others_grids(dynamic: bool, built: list[str]) -> None:
    model = blocks(Blocks(), dynamic)
    grids = ((5, 7, 3), (7, 5, 3), (3, 7, 5))
    with svg_compile.denoising(model, steps=1):
        alone = {grid: model(latents(1, *grid)) for grid in grids}
        wrong: list[Any] = []
        start = threading.Barrier(len(grids))

        def serve(grid: tuple[int, int, int]) -> None:
            start.wait()
            with torch.no_grad():
                for _ in range(20):
                    if not torch.equal(model(latents(1, *grid)), alone[grid]):
                        wrong.append(grid)

        threads = [threading.Thread(target=serve, args=(grid,)) for grid in grids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_first_call_of_two_threads_at_once_is_served_to_both(dynamic: bool, built: list[str]) -> None:
    model = blocks(Blocks(), dynamic)
    results: dict[Any, Tensor] = {}

    def serve(grid: tuple[int, int, int]) -> None:
        with torch.no_grad():
            results[grid] = model(latents(1, *grid))

    with svg_compile.denoising(model, steps=1):
        threads = [threading.Thread(target=serve, args=(grid,)) for grid in GRIDS[:2]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for grid in GRIDS[:2]:
        torch.testing.assert_close(results[grid], whole(grid), rtol=1e-5, atol=1e-5)


def attached(removed: bool) -> Any:
    """A model whose blocks are compiled, attached and have run; whose run is over where `removed`."""
    model = blocks(Blocks(), False)
    run = svg_compile.denoising(model, steps=1).__enter__()
    model(latents())
    if removed:
        run.__exit__(None)
        return model, lambda: None
    return model, lambda: run.__exit__(None)


@pytest.mark.parametrize("removed", [False, True])
def test_it_pickles_and_copies_as_if_nothing_hung_on_it(removed: bool, built: list[str]) -> None:
    model, leave = attached(removed)
    expected = ToyVideoDiT(3)(latents())
    text = pickle.dumps(model)
    # It is loaded where svg_compile is not there.
    assert b"svg_compile" not in text
    for twin in (pickle.loads(text), copy.deepcopy(model)):
        for block in twin.blocks:
            block._compiled_call_impl = None
        torch.testing.assert_close(twin(latents()), expected)
    leave()


@pytest.mark.parametrize("strict", [False, True])
def test_it_exports_as_if_nothing_hung_on_it(strict: bool, built: list[str]) -> None:
    model, leave = attached(False)
    for block in model.blocks:
        block._compiled_call_impl = None
    program = torch.export.export(model, (latents(),), strict=strict)
    torch.testing.assert_close(program.module()(latents()), ToyVideoDiT(3)(latents()))
    assert not any("svg" in str(node.target) for node in program.graph.nodes)
    leave()


def test_a_function_around_it_compiles_to_one_graph(built: list[str]) -> None:
    model = ToyVideoDiT(2)
    guided = torch.compile(
        lambda x: model(x) + 2 * model(-x), backend="svg", fullgraph=True, options={**OPTIONS, **SPARSE}
    )
    with svg_compile.denoising(model, steps=2), schedule.observe() as seen:
        guided(latents())
    assert built == ["sparse"]
    assert [decision.dense for decision in seen] == [False]
