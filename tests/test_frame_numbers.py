"""Frames behind the video, recognised by the values of an input that numbers them: attended in full."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svg_compile
from block_model import Block
from lowering import grids_of, watch
from svg_compile.passes.coordinates import Rise, rise_of
from traced import sites_of, verdict

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

B, C, FRAMES, HEIGHT, WIDTH = 1, 16, 6, 7, 3
OPTIONS = {"min_tokens": 0, "dense_steps": 0, "dense_layers": 0, "block": 8, "on_error": "raise"}
REFERENCE_LAST = torch.tensor([0, 1, 2, 3, 4, 0])
RISING = torch.arange(FRAMES)
TWO_VIDEOS = torch.tensor([0, 1, 2, 0, 1, 2])


class Model(nn.Module):
    """A model whose positions are looked up by the numbers of its frames."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("angles", torch.outer(torch.arange(32.0), torch.ones(C)))
        self.blocks = nn.ModuleList(Block(C) for _ in range(2))

    def forward(self, x: Tensor, timestep: Tensor, numbers: Tensor) -> Tensor:
        table = self.angles[numbers].view(FRAMES, 1, 1, C).expand(FRAMES, HEIGHT, WIDTH, C)
        x = x.flatten(1, 3) * table.flatten(0, 2).cos() * timestep
        for block in self.blocks:
            x = block(x)
        return x


def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


def latents() -> Tensor:
    return torch.randn(B, FRAMES, HEIGHT, WIDTH, C, generator=torch.Generator().manual_seed(0))


NOW = torch.tensor(0.5)


@pytest.mark.parametrize(
    ("values", "frames"),
    [([0, 1, 2, 3, 0], 4), ([4, 9, 12], 3), ([0, 1, 1], 2), ([3, 0, 1, 2], 1), ([0, 1, 2, 0, 1, 2], 3)],
)
def test_how_many_numbers_rise(values: list[int], frames: int) -> None:
    assert rise_of(torch.tensor(values)) == Rise(frames)


@pytest.mark.parametrize(
    "numbers",
    [torch.tensor([0.0, 1.0, 0.0]), torch.tensor([[0, 1, 0]]), torch.tensor([0]), torch.tensor([True, False, True]),
     torch.zeros(3, dtype=torch.int64, device="meta")],
)  # fmt: skip
def test_other_tensors_number_no_frames(numbers: Tensor) -> None:
    assert rise_of(numbers) is None


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [(REFERENCE_LAST, "5*7*3+21"), (RISING, "6*7*3"), (RISING + 3, "6*7*3"), (TWO_VIDEOS, "SEVERAL_GRIDS")],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_frames_behind_the_video_are_open(numbers: Tensor, expected: str, dynamic: bool) -> None:
    # Copies: their values are looked at once each.
    sites = sites_of(model(), latents(), NOW, numbers.clone(), dynamic=dynamic)
    assert [verdict(site) for site in sites] == [expected] * 2
    if expected == "5*7*3+21":
        assert sites[0].decision == "sparse: [7*3] behind the video is attended in full, 17% of the sequence"


def test_numbers_of_something_else_say_nothing_of_the_frames() -> None:
    def of_text(x: Tensor, text: Tensor, numbers: Tensor) -> Tensor:
        words = text + torch.outer(torch.arange(32.0), torch.ones(C))[numbers]
        y = torch.cat([x.flatten(1, 3), words], 1).unflatten(2, (2, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(y, y, y)

    (site,) = sites_of(of_text, latents(), torch.randn(B, 6, C), REFERENCE_LAST.clone())
    assert verdict(site) == "6*7*3+6"


def test_a_call_with_other_numbers_runs_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    built = watch(monkeypatch, grids_of)
    compiled, x = torch.compile(model(), backend="svg", options=OPTIONS), latents()
    sparse = compiled(x, NOW, REFERENCE_LAST.clone())
    assert set(built) == {"dense", "5x7x3"}
    assert float((sparse - model()(x, NOW, REFERENCE_LAST)).abs().max()) > 1e-4
    torch.testing.assert_close(compiled(x, NOW, REFERENCE_LAST.clone()), sparse)
    with pytest.warns(UserWarning, match="compiled for the positions of 5 frames"):
        torch.testing.assert_close(compiled(x, NOW, RISING.clone()), model()(x, NOW, RISING))


def test_blocks_are_given_the_grid_of_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    built = watch(monkeypatch, grids_of)
    blocks, x = model(), latents()
    for block in blocks.blocks:
        block.compile(backend="svg", options=OPTIONS)
    given = torch.compile(model(), backend="svg", options={**OPTIONS, "layout": (5, 7, 3, 21, "last")})
    with svg_compile.denoising(blocks, steps=2) as run, warnings.catch_warnings():
        warnings.simplefilter("error")
        first = blocks(x, NOW, REFERENCE_LAST.clone())
        assert set(built) == {"5x7x3"}
        run.advance()
        blocks(x, NOW, RISING.clone())
        assert "6x7x3" in built
    torch._dynamo.reset()
    torch.testing.assert_close(first, given(x, NOW, REFERENCE_LAST.clone()))
