"""Layers that share the pairs of a density, by the profiles of the step before; separate for runs, calls and models.

Inductor is replaced by the traced graph itself, so that a compile costs a trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import svg_compile
from block_model import BlockModel
from lowering import itself, watch
from svg_compile import VideoLayout
from svg_compile.kernels.widths import LADDER, shares_of_layers
from svg_compile.runtime import dispatcher
from svg_compile.runtime.dispatcher import Forward
from svg_compile.runtime.layer_shares import LayerShares, Profiles, shares_of
from toy import latents

LAYERS, DENSITY = 3, 0.3
OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise", "density": DENSITY}
LAYOUT = VideoLayout(6, 8, 6, block=8)


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[fx.GraphModule]]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield watch(monkeypatch, itself)
    torch._dynamo.reset()


def uneven() -> BlockModel:
    """A model whose later layers have sharper heads and larger values, so that they lose more."""
    model = BlockModel(LAYERS)
    for number, block in enumerate(model.blocks):
        block.attn.qkv.weight.mul_(1.0 + 1.5 * number)
    return model


def compiled(how: str = "whole", **options: Any) -> BlockModel:
    model = uneven()
    model.compile_in_place(how, options={**OPTIONS, "dense_steps": 1, **options})
    return model


def plans_of(
    model: nn.Module,
    steps: int = 5,
    calls: int = 1,
    seed: int = 0,
    batch: int = 1,
    grid: tuple[int, int, int] = (6, 8, 6),
) -> list[list[Tensor]]:
    """The plans [B, H, 2] of all layers, of each sparse forward of a run."""
    seen: list[Forward] = []
    with dispatcher.watch(seen.append), svg_compile.denoising(model, steps=steps) as denoising:
        for step in range(steps):
            for call in range(calls):
                noise = latents(batch, *grid, seed=100 * seed + 10 * step + call)
                model(noise, torch.full((batch,), 1000.0 - 100 * step))
            denoising.advance()
    plans = [plan.clone() for forward in seen for plan in forward.plans]
    return [plans[at : at + LAYERS] for at in range(0, len(plans), LAYERS)]


def density_of(plans: list[Tensor], sample: int = 0) -> list[float]:
    """The mean density of the heads of each layer."""
    each = [[LAYOUT.density(width, kind) for kind, width in plan[sample].tolist()] for plan in plans]
    return [sum(heads) / len(heads) for heads in each]


def equal(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return len(a) == len(b) and all(torch.equal(p, q) for m, n in zip(a, b) for p, q in zip(m, n, strict=True))


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_the_mean_over_the_layers_stays_the_density(how: str, built: list[fx.GraphModule]) -> None:
    plans = plans_of(compiled(how))
    assert len(plans) == 4
    graphs = len(built)
    first, *later = map(density_of, plans)
    assert max(first) <= DENSITY + 1e-6
    for layers in later:
        assert sum(layers) / LAYERS <= DENSITY + 1e-6
        # The layer that loses most has more than the density, at the cost of others.
        assert max(layers) > DENSITY > min(layers)
        assert layers.index(max(layers)) == LAYERS - 1
    plans_of(compiled_again := compiled(how, share_layers=False))
    apart = plans_of(compiled_again)
    assert all(max(density_of(layers)) <= DENSITY + 1e-6 for layers in apart)
    assert torch.equal(apart[0][0], plans[0][0])
    assert len(built) == 2 * graphs


def test_blocks_share_as_the_whole_model_does() -> None:
    assert equal(plans_of(compiled("blocks"), calls=2), plans_of(compiled("whole"), calls=2))


def test_a_run_knows_nothing_of_the_one_before() -> None:
    model = compiled()
    plans_of(model, seed=1)
    assert equal(plans_of(model), plans_of(compiled()))


def test_forwards_of_one_step_share_apart() -> None:
    """Two calls per step, as with guidance: each has the result that it would have alone."""
    both = plans_of(compiled(), calls=2)
    assert equal(both[::2], plans_of(compiled()))
    assert not equal(both[::2], both[1::2])


def test_samples_of_a_batch_share_apart() -> None:
    plans = plans_of(compiled(), batch=2)
    for layers in plans[1:]:
        for sample in range(2):
            assert sum(density_of(layers, sample)) / LAYERS <= DENSITY + 1e-6
    assert any(not torch.equal(plan[0], plan[1]) for layers in plans for plan in layers)


def test_plans_that_are_kept_keep_their_shares() -> None:
    plans = plans_of(compiled(profile_every=2), steps=6)
    for step in (0, 2):
        assert equal([plans[step]], [plans[step + 1]])
    assert max(density_of(plans[0])) <= DENSITY + 1e-6 < max(density_of(plans[2]))


@pytest.mark.parametrize(
    "more", [{"widths": "uniform"}, {"share_layers": False}, {"widths": "uniform", "repair": False}]
)
def test_the_graph_has_no_port_where_layers_do_not_share(more: dict[str, Any], built: list[fx.GraphModule]) -> None:
    plans_of(compiled(**more))
    assert not any("svg_shares" in node.name for graph in built for node in graph.graph.nodes)


def test_where_the_step_is_not_known_each_layer_has_the_density(built: list[fx.GraphModule]) -> None:
    model, seen = compiled(dense_steps=0), list[Forward]()
    with dispatcher.watch(seen.append):
        for step in range(3):
            model(latents(1, 6, 8, 6, seed=step), torch.tensor([1000.0 - 100 * step]))
    assert all(max(density_of(list(forward.plans))) <= DENSITY + 1e-6 for forward in seen)
    assert max(density_of(plans_of(model)[-1])) > DENSITY


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_layers_share_at_every_grid_of_a_symbolic_one(how: str, built: list[fx.GraphModule]) -> None:
    grids, options = ((6, 8, 6), (5, 4, 8), (4, 6, 7), (6, 8, 6)), {**OPTIONS, "dense_steps": 1}

    def plans(model: BlockModel, grid: tuple[int, int, int]) -> list[list[Tensor]]:
        return plans_of(model, steps=4, grid=grid)

    model = uneven()
    for part in model.blocks if how == "blocks" else [model]:
        part.compile(backend="svg", options=options)
    found = [plans(model, grid) for grid in grids]
    # One graph of the first grid, one of all others, each dense and sparse.
    assert len(built) == 4
    torch._dynamo.reset()
    for grid, served in zip(grids, found, strict=True):
        assert equal(served, plans(compiled(), grid))
    apart = [plans(compiled(share_layers=False), grid) for grid in grids[:2]]
    assert not any(equal(a, b) for a, b in zip(apart, found))


def test_shares_are_float32_whatever_the_default_dtype_is() -> None:
    plans = plans_of(compiled())
    model = compiled()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found, seen = [], list[Forward]()
        with dispatcher.watch(seen.append), svg_compile.denoising(model, steps=5) as denoising:
            for step in range(5):
                noise = latents(1, 6, 8, 6, seed=10 * step).float()
                model(noise, torch.full((1,), 1000.0 - 100 * step, dtype=torch.float32))
                denoising.advance()
        found = [list(forward.plans) for forward in seen if forward.plans]
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(found) == len(plans)
    # The latents are drawn in another dtype; the model and what it shares out are not.
    assert all(sum(density_of(layers)) / LAYERS <= DENSITY + 1e-6 for layers in found)
    assert max(density_of(found[-1])) > DENSITY


def test_another_batch_is_served_without_shares() -> None:
    """With a symbolic batch the layers do not share; the results are those of separate layers."""
    model, apart = uneven(), uneven()
    for each, share in ((model, True), (apart, False)):
        each.compile(backend="svg", options={**OPTIONS, "dense_steps": 1, "share_layers": share})
    for batch in (1, 2, 3):
        outputs = []
        for each in (model, apart):
            with svg_compile.denoising(each, steps=3) as denoising:
                for step in range(3):
                    outputs.append(each(latents(batch, 6, 8, 6, seed=step), torch.full((batch,), 1000.0 - 100 * step)))
                    denoising.advance()
        assert torch.equal(outputs[2], outputs[5]) == (batch > 1)


def found(scale: float, layout: VideoLayout = LAYOUT, density: float = DENSITY) -> Profiles:
    generator = torch.Generator().manual_seed(int(scale * 10))
    errors = scale * torch.rand(1, 2, 2, generator=generator)
    missing = torch.rand(1, 2, 2, len(LADDER), generator=generator).flip(-1).cumsum(-1).flip(-1)
    return Profiles((errors,), (missing,), (layout,), density, (None,))


def test_what_a_graph_found_last_counts() -> None:
    shares, layers = LayerShares(), {"a": found(1.0), "b": found(0.1)}

    def step(number: int, *graphs: str, exact: bool = True) -> dict[str, Tensor | None]:
        given = {}
        for graph in graphs:
            call, given[graph] = shares.enter(number, graph, exact=exact)
            shares.note(call, graph, layers[graph])
        return given

    assert step(3, "a", "b") == {"a": None, "b": None}
    wanted = shares_of_layers(
        [layers[g].errors[0] for g in "ab"], [layers[g].missing[0] for g in "ab"], LAYOUT, DENSITY
    )
    given = step(4, "a", "b")
    assert torch.equal(torch.stack([given["a"], given["b"]])[:, 0], wanted)  # type: ignore[list-item]
    # A cache leaves out b, and has it run again later.
    assert torch.equal(step(5, "a")["a"], given["a"])  # type: ignore[arg-type]
    assert torch.equal(step(6, "a", "b")["b"], given["b"])  # type: ignore[arg-type]
    # Another forward of the same step knows nothing of these.
    assert step(6, "a", "b") == {"a": None, "b": None}
    assert step(2, "a", "b") == {"a": None, "b": None}


def test_a_warm_up_at_the_first_step_of_a_counted_run_counts_for_nothing() -> None:
    shares = LayerShares()
    for number in (0, 1):
        call, share = shares.enter(number, "a", exact=False)
        assert share is None
        shares.note(call, "a", found(1.0))
    assert shares.enter(2, "a", exact=False)[1] is not None


def test_layers_of_other_grids_share_among_themselves() -> None:
    shares, other = LayerShares(), VideoLayout(4, 6, 6, block=8)
    for graph, profiles in (("a", found(1.0)), ("b", found(0.1)), ("c", found(5.0, other))):
        shares.note(shares.enter(0, graph)[0], graph, profiles)
    assert shares.enter(1, "a")[1].item() != 1.0  # type: ignore[union-attr]
    assert shares.enter(1, "c")[1].item() == pytest.approx(1.0)  # type: ignore[union-attr]


def test_two_models_of_one_schedule_share_apart() -> None:
    """The two denoisers of Wan 2.2 have one run: the numbers of their steps are the same."""
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    assert shares_of(first, 7) is shares_of(first, 7)
    assert shares_of(first, 7) is not shares_of(second, 7)
    assert shares_of(first, 7) is not shares_of(first, 8)
