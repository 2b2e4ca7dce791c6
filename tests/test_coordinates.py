"""Positions as an input: a raster is found at any patch size, rate, layout and dtype; anything else is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from svg_compile.passes import position_inputs
from svg_compile.passes.coordinates import Raster, raster_of
from svg_compile.passes.position_inputs import ids_of, raster_seen

FRAMES, HEIGHT, WIDTH = 3, 4, 5
TOKENS = FRAMES * HEIGHT * WIDTH


def ids(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """[N, 3] integer positions (f, h, w) in raster order."""
    return torch.cartesian_prod(torch.arange(frames), torch.arange(height), torch.arange(width))


def text(count: int) -> Tensor:
    """[N, 3] positions of a text: all three components count its tokens."""
    return torch.arange(count)[:, None].expand(count, 3)


def bounds(rate: float = 24.0, patch: float = 32.0) -> Tensor:
    """[B, 3, N, 2] first and last second and pixel of each token; the first frame lasts an eighth of the others."""
    time, row, column = ids().double().unbind(-1)
    starts = torch.stack([(time * 8 - 7).clamp(min=0) / rate, row * patch, column * patch])
    ends = torch.stack([(time * 8 + 1) / rate, (row + 1) * patch, (column + 1) * patch])
    return torch.stack([starts, ends], -1)[None].repeat(2, 1, 1, 1).float()


@given(
    frames=st.integers(2, 6),
    height=st.integers(2, 6),
    width=st.integers(2, 6),
    scale=st.floats(0.01, 100.0),
    offset=st.floats(-10.0, 10.0),
    form=st.sampled_from(["[N, 3]", "[3, N]", "[B, N, 3]", "[B, 3, N]", "[B, 3, N, 2]", "[N, 4]"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_raster_is_found(
    frames: int, height: int, width: int, scale: float, offset: float, form: str, dtype: torch.dtype
) -> None:
    positions = (ids(frames, height, width).double() * scale + offset).to(dtype)
    tokens = {"[N, 3]": 0, "[3, N]": 1, "[B, N, 3]": 1, "[B, 3, N]": 2, "[B, 3, N, 2]": 2, "[N, 4]": 0}[form]
    if form == "[N, 4]":
        positions = torch.cat([positions, torch.full_like(positions[:, :1], 7.0)], 1)
    if form.startswith("[B"):
        positions = positions.expand(2, -1, -1)
    if form == "[3, N]":
        positions = positions.T
    if form.startswith("[B, 3"):
        positions = positions.transpose(1, 2)
    if form.endswith("2]"):
        positions = torch.stack([positions, positions + scale / 2], -1)
    expected = Raster(frames, height, width, tokens)
    # A grid of 3 or 4 tokens along a side can be read in two ways; then none is claimed.
    assert raster_of(positions) in (expected, None)
    if min(positions.shape[tokens], 8) == 8:
        assert raster_of(positions) == expected


def test_bounds_in_pixels_and_seconds() -> None:
    assert raster_of(bounds()) == Raster(FRAMES, HEIGHT, WIDTH, 2)


@pytest.mark.parametrize(
    ("positions", "before", "after"),
    [
        (torch.cat([torch.zeros(7, 3, dtype=torch.int64), ids()]), 7, 0),
        (torch.cat([ids(), ids()[20:40]]), 0, 20),
        (torch.cat([ids()[40:50], ids(), ids()[:5]]), 10, 5),
        (torch.cat([ids()[40:].flip(0), ids()]), 20, 0),
        (torch.cat([ids(1, 4, 6)[4:] - 9, ids()]), 20, 0),
        (torch.cat([text(11), ids() + torch.tensor([15011, 0, 0])]), 11, 0),
        (torch.cat([ids(), text(11) + torch.tensor([FRAMES, 0, 0])]), 0, 11),
        (torch.cat([text(6) - torch.tensor([6, 0, 0]), ids(), text(5) + torch.tensor([FRAMES, 9, 9])]), 6, 5),
    ],
    ids=[
        "text before it",
        "a later frame behind it",
        "parts of frames on both sides",
        "a frame backwards",
        "a frame in front that goes on as the video does, of other columns",
        "rising text before it",
        "rising text behind it",
        "rising text on both sides",
    ],
)
def test_tokens_with_positions_of_their_own_stand_beside_it(positions: Tensor, before: int, after: int) -> None:
    if before == 7:
        # Its last zeros go on as the first token does, at (0, 0, 0), and do not rise.
        assert bool((positions[6] == positions[7]).all())
    assert raster_of(positions) == Raster(FRAMES, HEIGHT, WIDTH, 0, before, after)
    both = torch.stack([positions, positions.flip(0)])
    assert raster_of(both) is None


def test_ids_beside_positions_are_whole_numbers_of_other_tokens() -> None:
    positions = ids().float()[None]
    text = torch.zeros(1, 11, 3)
    found = ids_of(text, [positions])
    assert found is not None
    assert ids_of(text.clone(), [positions]) == found
    assert ids_of(text + 1, [positions]) not in (None, found)
    assert ids_of(torch.cat([text[:, :10], text[:, :1] + 1], 1), [positions]) not in (None, found)
    # Latents, the right number of tokens, other components, no other input.
    assert ids_of(text + 0.25, [positions]) is None
    assert ids_of(torch.zeros_like(positions), [positions]) is None
    assert ids_of(torch.zeros(1, 11, 4), [positions]) is None
    assert ids_of(text, []) is None
    text[0, 0] = 2
    assert ids_of(text, [positions]) not in (None, found)


WRONG = {
    "columns before rows": ids().view(FRAMES, HEIGHT, WIDTH, 3).transpose(1, 2).reshape(-1, 3),
    "frames last": ids().view(FRAMES, HEIGHT, WIDTH, 3).permute(1, 2, 0, 3).reshape(-1, 3),
    "two tokens swapped": ids()[[1, 0, *range(2, TOKENS)]],
    "two frames swapped": ids().view(FRAMES, -1, 3)[[1, 0, 2]].reshape(-1, 3),
    "one token moved": ids().index_put((torch.tensor([17]), torch.tensor([2])), torch.tensor(9)),
    "two tokens in one place": ids().index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(0)),
    "a frame twice": ids().view(FRAMES, -1, 3)[[0, 1, 1]].reshape(-1, 3),
    "one frame": ids(1, 6, 10),
    "text alone": text(60),
    "frames of the same time as the text in front of each": torch.cat(
        [torch.cat([text(1) + frame, ids()[20 * frame : 20 * (frame + 1)]]) for frame in range(3)]
    ),
    "much more text before it": torch.cat([torch.zeros(100, 3, dtype=torch.int64), ids()]),
    "a frame on both sides, too much of it": torch.cat([ids()[20:40]] * 3 + [ids()] + [ids()[:20]] * 2),
    "its last tokens swapped": ids()[[*range(TOKENS - 2), TOKENS - 1, TOKENS - 2]],
    "rows of unequal length": torch.cat([ids()[:7], ids()[8:]]),
    "two videos": torch.cat([ids(), ids()]),
    "another sample of another grid": torch.stack([ids(), ids(4, 3, 5)]),
    "not finite": ids().float().index_put((torch.tensor([3]), torch.tensor([0])), torch.tensor(float("nan"))),
    "falling time": ids() * torch.tensor([-1, 1, 1]),
    "no components": torch.arange(TOKENS).float().expand(2, TOKENS),
    "channels": torch.randn(2, TOKENS, 3, generator=torch.Generator().manual_seed(0)),
    "flags": ids().bool(),
    "no data": torch.empty(TOKENS, 3, device="meta"),
    "nothing": torch.empty(0, 3),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_raster_gives_no_grid(name: str) -> None:
    """A part may be one, which is too small a part of the tokens: no sequence is a grid by it (`axes.read_grid`)."""
    raster = raster_of(WRONG[name])
    if raster is not None:
        video = raster.frames * raster.height * raster.width
        assert 10 * (raster.before + raster.after) > 3 * (raster.before + video + raster.after)


def test_a_tensor_is_looked_at_once_until_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    whole = position_inputs.raster_of
    monkeypatch.setattr(position_inputs, "raster_of", lambda positions: looks.append(1) or whole(positions))
    positions = ids().float()
    assert raster_seen(positions) == raster_seen(positions) == Raster(FRAMES, HEIGHT, WIDTH, 0)
    assert len(looks) == 1
    positions[[25, 30]] = positions[[30, 25]]
    assert raster_seen(positions) is None
    assert len(looks) == 2


def test_inference_tensors_count_no_writes_and_are_looked_at_each_time() -> None:
    with torch.inference_mode():
        positions = ids().float()
        assert raster_seen(positions) is not None
        positions[[25, 30]] = positions[[30, 25]]
        assert raster_seen(positions) is None
