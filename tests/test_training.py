"""Training the example model: batches from a step's number, one step, resuming, starting from weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from example import example

training = example("training")
script = example("train_video_dit")
model_module = example("video_model")

TINY = ["--layers", "1", "--heads", "1", "--ffn", "32", "--device", "cpu", "--workers", "0"]


def run(folder: Path, *extra: str) -> dict[str, Any]:
    """Train a tiny model and return its last checkpoint."""
    script.train(script.parse_args(["--out", str(folder), *TINY, *extra]))
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def test_a_batch_follows_from_its_step_alone() -> None:
    stages = training.parse_stages("2:2:16:3,4:3:24:2")
    whole = training.Batches(stages, 0, 6, seed=1)
    resumed = training.Batches(stages, 2, 6, seed=1)
    assert len(whole) == 6
    assert len(resumed) == 4
    for ours, theirs in zip(whole[2], resumed[0], strict=True):
        assert torch.equal(ours, theirs)
    assert whole[1][0].shape == (3, 3, 2, 16, 16)
    assert whole[2][0].shape == (2, 3, 3, 24, 24)
    assert not torch.equal(whole[2][0], whole[3][0])


def test_a_stage_may_teach_guidance() -> None:
    plain, guided = training.parse_stages("100:8:32:4, 10:16:96:1:2.5")
    assert plain == training.Stage(100, 8, 32, 4, guidance=1.0)
    assert guided == training.Stage(10, 16, 96, 1, guidance=2.5)
    assert guided.tokens == 16 * 24 * 24


@pytest.mark.parametrize("text", ["100:8:32", "0:8:32:4", "a:8:32:4", "10:8:30:4", "10:8:32:4:0.5", "10:8:32:4:x", ""])
def test_a_stage_that_makes_no_sense_is_an_error(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        training.parse_stages(text)


def test_cpu_cores_train_short_videos_by_whole_score_matrices() -> None:
    short, long = training.parse_stages("1:4:48:2,1:16:96:1")
    assert training.attention_for(short, torch.device("cpu")) == "_native_math"
    assert training.attention_for(long, torch.device("cpu")) == "native"
    assert training.attention_for(short, torch.device("cuda")) == "native"


def test_one_step_moves_every_weight_that_has_a_say() -> None:
    torch.manual_seed(0)
    model = model_module.build_model(layers=1, heads=1, ffn=32)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizers = training.Optimizers(model, 1e-3)
    clips, text = training.Batches(training.parse_stages("1:2:16:2"), 0, 1, seed=0)[0]
    loss = training.train_step(model, optimizers, 1e-3, clips, text, torch.Generator().manual_seed(0))
    assert 0 < loss < 10
    for name, weight in model.named_parameters():
        assert torch.isfinite(weight).all(), name
        assert not torch.equal(weight, before[name]), name


def test_training_learns() -> None:
    torch.manual_seed(0)
    model = model_module.build_model(layers=1, heads=1, ffn=32)
    optimizers = training.Optimizers(model, 3e-3)
    clips, text = training.Batches(training.parse_stages("1:2:16:4"), 0, 1, seed=0)[0]
    losses = [
        training.train_step(model, optimizers, 3e-3, clips, text, torch.Generator().manual_seed(0)) for _ in range(30)
    ]
    assert losses[-1] < 0.7 * losses[0]


class Answers(torch.nn.Module):
    """A model that answers with one number for each of two captions, and one for none."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = torch.nn.Parameter(torch.zeros(3))

    def forward(self, mixed: torch.Tensor, level: torch.Tensor, text: torch.Tensor, return_dict: bool) -> tuple:
        which = torch.where((text == model_module.no_caption(1)).all((1, 2)), 2, (text[:, 0, 0] > 0).long())
        return (self.answers[which].view(-1, 1, 1, 1, 1).expand_as(mixed[:, :3]),)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_guided_training_learns_what_guided_sampling_would_answer(guidance: float) -> None:
    model = Answers()
    optimizers = SimpleNamespace(zero_grad=model.zero_grad, step=lambda rate: step(model.answers, rate))
    text = torch.stack([torch.full_like(model_module.no_caption(1)[0], sign) for sign in (-1.0, 1.0)] * 32)
    clips = text[:, :1, :1, None, None].expand(64, 3, 2, 4, 4).contiguous()
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        training.train_step(model, optimizers, 0.1, clips, text, generator, guidance)
    # Noise - data is 1 and -1 in the mean with the captions and 0 without.
    for answer, expected in zip(model.answers.tolist(), (guidance, -guidance, 0.0), strict=True):
        assert abs(answer - expected) < 0.1


def step(weight: torch.nn.Parameter, rate: float) -> None:
    weight.data -= rate * weight.grad


def test_noise_levels_cover_the_schedule_and_follow_the_generator() -> None:
    levels = model_module.training_noise_levels(256, torch.Generator().manual_seed(1), frames=4)
    again = model_module.training_noise_levels(256, torch.Generator().manual_seed(1), frames=4)
    assert torch.equal(levels, again)
    assert 0 < float(levels.min()) < 0.2
    assert 0.95 < float(levels.max()) < 1
    # Shifted towards noise, less so where one frame is all there is.
    assert float(levels.median()) == pytest.approx(5 / 6, abs=0.02)
    still = model_module.training_noise_levels(256, torch.Generator().manual_seed(1), frames=1)
    assert float(still.median()) == pytest.approx(2.5 / 3.5, abs=0.02)


def test_videos_are_learned_with_their_keyframes_or_their_ends_given() -> None:
    given = training.frames_to_give(1000, 8, torch.Generator().manual_seed(0))
    ends, keyframes = [1, 0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 1, 0, 1]
    counts = [int((given == torch.tensor(pattern)).all(1).sum()) for pattern in (ends, keyframes)]
    assert counts == pytest.approx([100, 900], rel=0.3)
    assert sum(counts) == 1000
    assert not training.frames_to_give(1000, 1, torch.Generator().manual_seed(0)).any()


def test_the_learning_rate_warms_up_stays_and_cools_down() -> None:
    rates = [training.learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 200)
    assert rates[200] == rates[700] == 1.0
    assert rates[-1] == pytest.approx(0.05)
    assert all(0 < rate <= 1 for rate in rates)


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ["--stages", "3:2:16:2,3:3:16:1", "--save-every", "2"]
    whole = run(tmp_path / "whole", *stages)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, "show_samples", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", *stages, "--sample-every", "2")
    assert torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)["step"] == 2
    resumed = run(tmp_path / "stopped", *stages)

    assert whole["step"] == resumed["step"] == 6
    for part in ("model", "ema"):
        for name, weight in whole[part].items():
            assert torch.equal(weight, resumed[part][name]), (part, name)
    for ours, theirs in zip(whole["optimizers"], resumed["optimizers"], strict=True):
        for index, state in ours["state"].items():
            for key, value in state.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs["state"][index][key])), (index, key)
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        "checkpoint.pt",
        "losses.csv",
        "losses.png",
        "samples_000006.png",
        "weights",
    }


def test_a_new_run_starts_from_given_weights(tmp_path: Path) -> None:
    run(tmp_path / "first", "--stages", "2:2:16:1")
    weights = tmp_path / "first" / "weights" / model_module.WEIGHTS_NAME
    # At rate 0 nothing moves, so the second run's averaged weights are those that it started from.
    second = run(tmp_path / "second", "--stages", "1:2:16:1", "--lr", "0", "--init", str(weights))
    for name, weight in model_module.load_file(weights).items():
        assert torch.equal(second["ema"][name].to(torch.bfloat16), weight), name


def test_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    model = model_module.build_model(layers=1, heads=1, ffn=32)
    model_module.save_weights(model, tmp_path)
    loaded = model_module.load_model(tmp_path, torch.bfloat16)
    assert loaded.config.ffn_dim == 32
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight.bfloat16(), model.get_parameter(name).bfloat16()), name
    assert loaded.scale_shift_table.dtype is torch.float32
    assert loaded.proj_out.weight.dtype is torch.bfloat16
    with pytest.raises(FileNotFoundError, match=r"train_video_dit\.py"):
        model_module.load_model(tmp_path / "nowhere")


def test_a_run_is_published_with_its_card(tmp_path: Path) -> None:
    run(tmp_path / "run", "--stages", "2:2:16:1")
    card = example("model_card")
    flags = ["--hardware", "a test", "--frames", "2", "--size", "16", "--steps", "2", "--device", "cpu"]
    card.main(["--run", str(tmp_path / "run"), "--to", str(tmp_path / "card"), *flags])
    text = (tmp_path / "card" / "README.md").read_text()
    assert "Hardware: a test." in text
    assert "Steps: 2 " in text
    assert {path.name for path in (tmp_path / "card").iterdir()} == {
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "losses.png",
        "samples.png",
    }
    assert model_module.load_model(tmp_path / "card").config.num_layers == 1
