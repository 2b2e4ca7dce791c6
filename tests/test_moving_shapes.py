"""The procedural videos: made from their number alone, moving, and saying what they show."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch


def example(name: str) -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


shapes = example("moving_shapes")


def test_a_video_follows_from_its_number_and_seed_alone() -> None:
    first, scene = shapes.video(7, frames=5, height=24, width=32, seed=3)
    state = torch.get_rng_state()
    again, same = shapes.video(7, frames=5, height=24, width=32, seed=3)
    assert torch.equal(first, again)
    assert scene == same
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, shapes.video(8, frames=5, height=24, width=32, seed=3)[0])
    assert not torch.equal(first, shapes.video(7, frames=5, height=24, width=32, seed=4)[0])


def test_videos_have_the_asked_shape_range_and_motion() -> None:
    for number in range(20):
        clip, _ = shapes.video(number, frames=6, height=32, width=24)
        assert clip.shape == (3, 6, 32, 24)
        assert clip.dtype is torch.float32
        assert -1 <= float(clip.min()) <= float(clip.max()) <= 1
        assert float((clip[:, 0] - clip[:, -1]).abs().max()) > 0.2


def test_the_same_places_are_drawn_at_every_resolution() -> None:
    small, _ = shapes.video(3, frames=4, height=32, width=32)
    large, _ = shapes.video(3, frames=4, height=64, width=64)
    pooled = torch.nn.functional.avg_pool2d(large.transpose(0, 1), 2).transpose(0, 1)
    assert float((small - pooled).abs().mean()) < 0.06


def test_captions_round_trip_and_cover_every_word() -> None:
    seen: set[int] = set()
    rng = np.random.default_rng(0)
    for _ in range(400):
        scene = shapes.random_scene(rng)
        assert shapes.parse(scene.caption) == scene
        tokens = scene.tokens()
        assert tokens.shape == (shapes.CAPTION_LENGTH,)
        seen |= set(tokens.tolist())
    assert seen == set(shapes.VOCABULARY.values())


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("red circle", "size colour texture shape motion"),
        ("huge red plain circle bouncing", "'huge' is not among small, large"),
        ("small red plain circle bouncing; desert", "'desert' is not among sky"),
        (", ".join(["small red plain circle bouncing"] * 3), "at most 2 shapes"),
    ],
)
def test_a_caption_that_cannot_be_drawn_says_why(caption: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes.parse(caption)


def test_a_contact_sheet_has_a_row_a_video() -> None:
    clips = [shapes.video(number, frames=9, height=16, width=16)[0] for number in range(3)]
    sheet = shapes.contact_sheet(clips, columns=4)
    assert sheet.shape == (48, 64, 3)
    assert sheet.dtype == np.uint8
