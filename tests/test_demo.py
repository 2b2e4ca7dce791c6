"""The demo from end to end with a tiny model, and its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from example import example
from svg_compile import VideoLayout

demo = example("demo")
moving_shapes = example("moving_shapes")
planned = example("planned_attention")
quality = example("quality")
video_model = example("video_model")

KEYS = (
    "tokens layers heads steps dense_steps density dense_seconds svg_seconds dense_step_seconds sparse_step_seconds "
    "speedup psnr psnr_drawn ssim spatial_share temporal_share "
    "lean_density lean_seconds lean_speedup lean_psnr versions"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    video_model.save_weights(video_model.build_model(layers=1, heads=2, ffn=32), folder)
    return folder


def test_the_demo_from_end_to_end(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--frames 8 --size 32 --steps 4 --min-tokens 64 --density 0.5 --device cpu --seed 1"
    prompt = ["--prompt", "small red plain circle bouncing; sky"]
    demo.main([*flags.split(), *prompt, "--weights", str(weights), "--out", str(tmp_path)])

    assert {path.name for path in tmp_path.iterdir()} == {"clips.gif", "frames.png", "head_kinds.png", "report.json"}
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == KEYS.split()
    asked = {"tokens": 512, "layers": 1, "heads": 2, "steps": 4, "dense_steps": 1}
    assert {key: report[key] for key in asked} == asked
    assert 0 < report["density"] <= 0.5
    assert report["spatial_share"] + report["temporal_share"] == 1
    assert report["speedup"] == pytest.approx(report["dense_seconds"] / report["svg_seconds"])
    assert 20 < report["psnr"] <= 100
    assert 0.5 < report["ssim"] <= 1
    assert report["lean_density"] == 0.15
    assert report["lean_speedup"] == pytest.approx(report["dense_seconds"] / report["lean_seconds"])
    assert report["lean_psnr"] < 100
    assert set(report["versions"]) >= {"svg_compile", "torch", "diffusers"}
    clips = Image.open(tmp_path / "clips.gif")
    assert clips.n_frames == 8
    assert clips.width == 2 * (clips.height - 18)
    printed = capsys.readouterr().out
    for word in ("times faster", "PSNR", "SSIM", "spatial / temporal", "report.json"):
        assert word in printed


def test_planned_attention_meets_every_self_attention_and_no_other(weights: Path) -> None:
    model = video_model.load_model(weights)
    layout = VideoLayout(4, 8, 8)
    seen = []

    def attend(step: int, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        seen.append((step, layer, tuple(query.shape)))
        return planned.dense(step, layer, query, key, value)

    inputs = torch.randn(1, 7, 4, 32, 32), torch.tensor([500.0]), video_model.no_caption(1)
    with torch.no_grad():
        plain = model(*inputs).sample
        with planned.PlannedAttention(layout, attend, layers=1) as mode:
            for mode.step in range(2):
                assert torch.equal(model(*inputs).sample, plain)
    assert seen == [(0, 0, (1, 2, 256, 64)), (1, 0, (1, 2, 256, 64))]


def test_a_profiled_run_keeps_its_first_steps_and_layers_dense() -> None:
    layout = VideoLayout(4, 8, 8, block=16)
    attend = planned.Profiled(layout, density=0.5, dense_steps=1, dense_layers=1)
    query, key, value = torch.randn(3, 1, 2, 256, 16).unbind(0)
    for step in range(2):
        for layer in range(2):
            out = attend(step, layer, query, key, value)
            same = torch.allclose(out, planned.dense(step, layer, query, key, value), atol=1e-5)
            assert same == (step == 0 or layer == 0)
    assert list(attend.plans) == [(1, 1)]
    assert attend.plans[1, 1].shape == (1, 2, 2)


def test_denoising_can_go_on_from_a_step(weights: Path) -> None:
    model = video_model.load_model(weights)
    prompt, _ = video_model.keyframes_of(moving_shapes.parse(demo.PROMPT), 0, frames=3, pixels=16)
    videos = list(video_model.denoise(model, prompt, steps=4))
    rest = list(video_model.denoise(model, prompt, steps=4, start=2, video=videos[1]))
    assert len(rest) == 2
    assert torch.equal(rest[-1], videos[-1])
    assert torch.equal(video_model.sample(model, prompt, steps=4), videos[-1])


def test_a_prompt_gives_its_keyframes_alone() -> None:
    prompt, truth = video_model.keyframes_of(moving_shapes.parse(demo.PROMPT), 5, frames=4, pixels=16)
    assert prompt.noise.shape == (1, 3, 4, 16, 16)
    assert prompt.given.shape == (1, 4, 4, 16, 16)
    frames, where = prompt.given[0, :3], prompt.given[0, 3]
    assert torch.equal(frames[:, [0, 3]], truth[:, [0, 3]])
    assert not frames[:, 1:3].any()
    assert where[[0, 3]].all()
    assert not where[1:3].any()
    assert video_model.keyframes(16).nonzero().flatten().tolist() == [0, 5, 10, 15]
    # Another seed: other places and other noise. A single frame is not given away.
    other, elsewhere = video_model.keyframes_of(moving_shapes.parse(demo.PROMPT), 6, frames=4, pixels=16)
    assert not torch.equal(truth, elsewhere)
    assert not torch.equal(prompt.noise, other.noise)
    single, _ = video_model.keyframes_of(moving_shapes.parse(demo.PROMPT), 5, frames=1, pixels=16)
    assert not single.given.any()


def test_quality_is_counted_on_what_is_shown() -> None:
    clip = torch.rand(3, 2, 16, 16) * 1.6 - 0.8
    assert quality.psnr(clip, clip) == 100
    assert quality.ssim(clip, clip) == pytest.approx(1)
    # One part in 255 everywhere is 20 * log10(255) dB.
    assert quality.psnr(clip + 2 / 255, clip) == pytest.approx(48.13, abs=0.05)
    # Beyond black and white there is nothing to see.
    assert quality.psnr(torch.full_like(clip, 3.0), torch.ones_like(clip)) == 100


@pytest.mark.parametrize(("given", "read"), [("0.25", 0.25), ("4", 4), ("1.0", 1.0), ("0", 0)])
def test_dense_steps_are_a_count_or_a_share(given: str, read: float) -> None:
    value = demo.steps_or_share(given)
    assert value == read
    assert type(value) is type(read)
