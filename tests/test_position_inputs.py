"""Models given packed latents and their tokens' positions: sparse where the values are a raster, and only then."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import svg_compile
from lowering import grids_of, watch
from packed_latents import GRID, OPTIONS, Packed, latents, positions
from svg_compile import Reason

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_raster_makes_it_sparse_as_the_layout_does(
    batch: int, dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = Packed(), (latents(batch), positions(*GRID).repeat(batch, 1, 1))
    seen = watch(monkeypatch, grids_of)
    with_layout = torch.compile(model, backend="svg", options={**OPTIONS, "layout": GRID}, dynamic=dynamic)(*given)
    assert "3x4x6" in seen
    seen.clear()
    torch._dynamo.reset()
    found = torch.compile(model, backend="svg", options={**OPTIONS, "strict": True}, dynamic=dynamic)(*given)
    assert sorted(seen) == ["3x4x6", "dense"]
    torch.testing.assert_close(found, with_layout)
    assert not torch.allclose(found, model(*given))


def test_positions_of_another_grid_run_dense_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Packed()
    watch(monkeypatch, grids_of)
    fast = torch.compile(model, backend="svg", options=OPTIONS, dynamic=False)
    right, other = positions(*GRID), positions(4, 3, 6)
    sparse = fast(latents(), right)
    with pytest.warns(UserWarning, match="3x4x6 video"):
        torch.testing.assert_close(fast(latents(), other), model(latents(), other))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="svg")
        # Once is enough, and the right ones are sparse again, as a new tensor too.
        torch.testing.assert_close(fast(latents(), other), model(latents(), other))
        torch.testing.assert_close(fast(latents(), right.clone()), sparse)


def test_positions_written_in_place_are_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Packed()
    watch(monkeypatch, grids_of)
    fast = torch.compile(model, backend="svg", options=OPTIONS, dynamic=False)
    where = positions(*GRID)
    fast(latents(), where)
    where[..., [0, 1]] = where[..., [1, 0]]
    with pytest.warns(UserWarning, match="runs dense"):
        torch.testing.assert_close(fast(latents(), where), model(latents(), where))


def test_two_tokens_swapped_in_one_sample_are_no_raster() -> None:
    where = positions(*GRID).repeat(2, 1, 1)
    where[1][:, [5, 6]] = where[1][:, [6, 5]]
    (site,) = svg_compile.explain(Packed(), latents(2), where, options=OPTIONS).sites
    assert site.reason is not None


def test_a_raster_of_tokens_that_the_model_reorders_proves_nothing() -> None:
    flipped = Packed(use=lambda angles: angles.flip(1))
    (site,) = svg_compile.explain(flipped, latents(), positions(*GRID), options=OPTIONS).sites
    assert not site.rewritten

    class Rolled(Packed):
        def forward(self, latents: Tensor, positions: Tensor) -> Tensor:
            return super().forward(latents.roll(1, 1), positions)

    (site,) = svg_compile.explain(Rolled(), latents(), positions(*GRID), options=OPTIONS).sites
    assert site.reason is Reason.UNKNOWN_GRID


def test_positions_that_stand_beside_other_tokens_prove_nothing_of_these() -> None:
    class Unused(Packed):
        def forward(self, latents: Tensor, positions: Tensor) -> Tensor:
            return super().forward(latents, torch.zeros(1, 3, latents.shape[1])) + positions.mean()

    (site,) = svg_compile.explain(Unused(), latents(), positions(*GRID), options=OPTIONS).sites
    assert not site.rewritten


def test_without_data_there_is_nothing_to_look_at() -> None:
    (site,) = svg_compile.explain(Packed(), latents(), positions(*GRID).to("meta"), options=OPTIONS).sites
    assert site.reason is not None


def test_ltx_with_its_pipeline_s_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import LTXVideoTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=16, cross_attention_dim=64,
            num_layers=2, caption_channels=32,
        ).eval()  # fmt: skip
    text = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    given = dict(
        hidden_states=latents(),
        encoder_hidden_states=text,
        timestep=torch.tensor([500.0]),
        encoder_attention_mask=torch.ones(1, 5),
        video_coords=positions(*GRID),
        return_dict=False,
    )
    sites = svg_compile.explain(model, options=OPTIONS, **given).sites
    assert [site.rewritten for site in sites] == [True, False] * 2
    watch(monkeypatch, grids_of)
    exact = torch.compile(model, backend="svg", options={**OPTIONS, "density": 1.0}, dynamic=False)(**given)[0]
    torch.testing.assert_close(exact, model(**given)[0])


def beside(before: int, after: int) -> Tensor:
    """Positions of a grid with tokens of conditions in front of it and behind it."""
    where = positions(*GRID)
    return torch.cat([where[..., :before] + 0.5, where, where[..., 5 : 5 + after]], 2)


@pytest.mark.parametrize(("before", "after"), [(24, 0), (0, 24), (10, 7)])
def test_conditions_beside_the_video_are_open(before: int, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, where = Packed(), beside(before, after)
    given = torch.randn(1, where.shape[-1], 8), where
    (site,) = svg_compile.explain(model, *given, options=OPTIONS).sites
    assert site.rewritten
    assert site.layout is not None
    assert (site.layout.frames, site.layout.height, site.layout.width, site.layout.text_len) == (*GRID, before + after)
    assert site.before == (before if after else 0)
    watch(monkeypatch, grids_of)
    exact = torch.compile(model, backend="svg", options={**OPTIONS, "density": 1.0}, dynamic=False)
    torch.testing.assert_close(exact(*given), model(*given))
    # Moved by one token it is another graph: dense.
    other = where.roll(1, 2)
    with pytest.warns(UserWarning, match="3x4x6 video"):
        torch.testing.assert_close(exact(given[0], other), model(given[0], other))


@pytest.mark.parametrize(("before", "after"), [(40, 0), (30, 30)])
def test_more_conditions_than_are_worth_it_are_the_reason(before: int, after: int) -> None:
    model, where = Packed(), beside(before, after)
    given = torch.randn(1, where.shape[-1], 8), where
    (site,) = svg_compile.explain(model, *given, options=OPTIONS).sites
    assert site.reason is svg_compile.Reason.SEVERAL_GRIDS
    assert site.detail.startswith(f"{before + after} of {72 + before + after} tokens are beside it")
    with pytest.warns(UserWarning, match="tokens are beside it"):
        out = torch.compile(model, backend="svg", options=OPTIONS, dynamic=False)(*given)
    torch.testing.assert_close(out, model(*given))


class Joined(Packed):
    """Text and video in one sequence, their ids in two inputs."""

    def forward(self, latents: Tensor, ids: Tensor, text: Tensor, text_ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([text, latents], 1), torch.cat([text_ids, ids], 1).transpose(1, 2))


def test_ids_of_text_beside_positions_are_a_constant_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = Joined(), torch.randn(1, 5, 8)
    given = latents(), positions(*GRID).transpose(1, 2).contiguous(), text
    seen = watch(monkeypatch, grids_of)
    exact = torch.compile(model, backend="svg", options={**OPTIONS, "density": 1.0}, dynamic=False)
    torch.testing.assert_close(exact(*given, torch.zeros(1, 5, 3)), model(*given, torch.zeros(1, 5, 3)))
    assert "3x4x6" in seen
    with pytest.warns(UserWarning, match="compiled for the ids of its first call; this call passes other values"):
        torch.testing.assert_close(exact(*given, torch.ones(1, 5, 3)), model(*given, torch.ones(1, 5, 3)))
    # What is no whole number may be latents.
    (site,) = svg_compile.explain(model, *given, torch.rand(1, 5, 3), options=OPTIONS).sites
    assert not site.rewritten
