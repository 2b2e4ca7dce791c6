"""The procedural videos: determined by their number, moving, with correct captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from example import example

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


def test_with_scales_a_smaller_video_shows_things_at_the_same_size() -> None:
    # A large ball is 0.31 units in radius: 15 pixels at 48 pixels a unit, on a canvas of any size.
    scene = shapes.parse("large white plain circle bouncing; waves")
    for size in (64, 96):
        clip = shapes.render(scene, np.random.default_rng(1), 4, size, size, pixels_per_unit=48, frames_per_unit=15)
        red = clip[0]
        covered = int((red > 0).sum(dim=(1, 2)).median())
        assert covered == pytest.approx(np.pi * (0.31 * 48) ** 2, rel=0.1)


def test_with_scales_a_shorter_video_moves_as_fast() -> None:
    scene = shapes.parse("small white plain circle orbiting; waves")
    moved = []
    for frames in (4, 16):
        clip = shapes.render(scene, np.random.default_rng(2), frames, 96, 96, pixels_per_unit=48, frames_per_unit=15)
        ball = (clip[0] > 0).float()
        rows = torch.arange(96.0)
        places = [(ball.sum(axis) @ rows) / ball.sum((1, 2)) for axis in (1, 2)]
        moved.append(float(torch.hypot(*(place.diff() for place in places)).mean()))
    assert moved[0] == pytest.approx(moved[1], rel=0.1)


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
