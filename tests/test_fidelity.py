"""The fidelity study at a small size, and the plans and masks that it compares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import svg_compile
from example import example
from svg_compile import HeadKind, VideoLayout

fidelity = example("fidelity")
planners = example("planners")
planned = example("planned_attention")
video_model = example("video_model")

LAYOUT = VideoLayout(8, 6, 6, block=16)


@pytest.fixture
def qkv() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 1, 4, LAYOUT.tokens, 16, generator=generator).unbind(0)


@pytest.mark.parametrize("density", [0.25, 0.3, 0.5, 0.9, 1.0])
def test_the_published_masks_have_the_density_that_they_are_asked_for(density: float) -> None:
    width = planners.width_for(LAYOUT, density)
    published = planners.Published(LAYOUT, density=density, dense_steps=0)
    everything = torch.arange(LAYOUT.tokens)
    for kind in (0, 1):
        assert float(published.visible(kind, everything, width).float().mean()) <= density
        if width < LAYOUT.tokens:
            assert float(published.visible(kind, everything, width + 1).float().mean()) > density


def test_the_published_temporal_mask_takes_the_upper_rows_of_every_frame_for_the_first_frame() -> None:
    published = planners.Published(LAYOUT, density=0.3, dense_steps=0)
    last = torch.tensor([LAYOUT.tokens - 1])
    frames, places = (published.visible(1, last, 0)[0].reshape(8, 36) > 0).nonzero().T
    # 36 positions of 8 frames each are 4.5 places.
    assert set(places.tolist()) == {0, 1, 2, 3, 4, 35}
    assert set(frames.tolist()) == set(range(8))


def test_each_planner_does_what_its_name_says(qkv: tuple[torch.Tensor, ...]) -> None:
    kinds = {}
    for name, planner in planners.PLANNERS.items():
        attend = planner(LAYOUT, density=0.5, dense_steps=1)
        exact = planned.dense(0, 0, *qkv)
        assert torch.equal(attend(0, 0, *qkv), exact), name
        out = attend(1, 0, *qkv)
        assert out.shape == exact.shape
        assert torch.isfinite(out).all()
        if attend.plans:
            kinds[name] = set(attend.plans[1, 0][0, :, 0].tolist())
        assert torch.allclose(out, exact, atol=1e-5) == (name == "floor"), name
    assert kinds["spatial"] == {int(HeadKind.SPATIAL)}
    assert kinds["temporal"] == {int(HeadKind.TEMPORAL)}
    assert kinds["floor"] == {int(HeadKind.DENSE)}


def test_clusters_have_the_density_that_they_are_asked_for(qkv: tuple[torch.Tensor, ...]) -> None:
    for density in (0.3, 0.6):
        clusters = planners.SemanticClusters(LAYOUT, density=density, dense_steps=0)
        for step in range(2):
            clusters(step, 0, *qkv)
        # Whole clusters, and at least one for each query.
        assert all(density - 0.2 < reached <= density + 0.05 for reached in clusters.densities)
    everything = planners.SemanticClusters(LAYOUT, density=1.0, dense_steps=0)
    torch.testing.assert_close(everything(0, 0, *qkv), planned.dense(0, 0, *qkv), rtol=1e-4, atol=1e-5)


def test_the_watched_run_is_the_default_and_its_figures_are_of_the_rows(qkv: tuple[torch.Tensor, ...]) -> None:
    shared, watched = (planners.PLANNERS[name](LAYOUT, density=0.4, dense_steps=0) for name in ("shared", "watched"))
    out = watched(0, 0, *qkv)
    assert torch.equal(out, shared(0, 0, *qkv))
    exact = planned.dense(0, 0, *qkv)
    bands = svg_compile.sparse_attention(*qkv, watched.plans[0, 0], LAYOUT)
    power = exact.square().mean((2, 3))[..., None]
    figures = watched.figures()
    for name, given in (("bands", bands), ("repaired", out)):
        rows = ((given - exact).square().mean(-1) / power).sqrt()
        assert figures[f"{name}_error"] == pytest.approx(rows.mean().item(), rel=1e-5)
        assert figures[f"{name}_p99"] == pytest.approx(rows.flatten().quantile(0.99).item(), rel=1e-5)
    repaired = ((bands - out).abs().amax((2, 3)) > 0).float().mean().item()
    # A head that is not repaired has its sampled rows exact all the same.
    assert 0 <= figures["repaired_heads"] <= repaired
    uniform = [LAYOUT.half_width_for(0.4, kind) for kind in (0, 1)]
    moved = [width != uniform[kind] for kind, width in watched.plans[0, 0][0].tolist()]
    assert figures["moved_heads"] == pytest.approx(sum(moved) / len(moved))


def test_the_oracle_is_at_least_as_near_as_either_kind(qkv: tuple[torch.Tensor, ...]) -> None:
    exact = planned.dense(0, 0, *qkv)
    errors = {
        name: (planners.PLANNERS[name](LAYOUT, density=0.5, dense_steps=0)(0, 0, *qkv) - exact)
        .square()
        .mean(dim=(0, 2, 3))
        for name in ("oracle", "spatial", "temporal")
    }
    assert torch.allclose(errors["oracle"], torch.minimum(errors["spatial"], errors["temporal"]))


def test_a_study_stores_its_rows_goes_on_and_writes_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "weights"
    video_model.save_weights(video_model.build_model(layers=1, heads=2, ffn=32), weights)
    flags = ["--frames", "4", "--size", "24", "--steps", "4", "--device", "cpu", "--only", "main"]
    flags += ["--out", str(tmp_path), "--weights", str(weights)]
    fidelity.main([*flags, "--prompts", "1"])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["planner"] for row in rows] == list(planners.PLANNERS)
    assert all(np.isfinite(row["psnr"]) for row in rows)
    capsys.readouterr()
    fidelity.main([*flags, "--prompts", "2", "--minutes", "0"])
    assert f"{len(rows)} rows are there, {len(rows)} to go" in capsys.readouterr().out

    page = tmp_path / "docs" / "fidelity.md"
    fidelity.main([*flags, "--page", str(page)])
    text = page.read_text()
    assert f"{len(planners.PLANNERS)} generations compared" in text
    assert "## Rows and gates" in text
    for name in ("planners.png", "density.png", "frames.png"):
        assert f"(fidelity/{name})" in text
        assert (page.parent / "fidelity" / name).stat().st_size > 1000
