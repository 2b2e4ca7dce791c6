"""Pictures of masks: their cells are the mask's own answers, at any size, and a file comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from svg_compile import HeadKind, SvgError, VideoLayout
from svg_compile.inspection import pictures
from svg_compile.kernels import reference

KINDS = (HeadKind.SPATIAL, HeadKind.TEMPORAL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [(0, False), (11, False), (11, True)])
def test_a_short_videos_picture_is_its_mask(kind: HeadKind, text: tuple[int, bool]) -> None:
    layout = VideoLayout(5, 7, 3, *text, block=8)
    shares = pictures.mask_shares(layout, kind, 1)
    assert shares.shape == (layout.tokens, layout.tokens)
    # What the oracle attends: values of one token each show where a query looks.
    eye = torch.eye(layout.tokens)[None, None]
    plan = torch.tensor([[[int(kind), 1]]], dtype=torch.int32)
    zeros = torch.zeros_like(eye)
    seen = reference.sparse_attention(zeros, zeros, eye, plan, layout)[0, 0] > 0
    assert torch.equal(shares > 0, seen)
    assert float(shares.mean()) == pytest.approx(layout.density(1, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [VideoLayout(12, 10, 6, 40), VideoLayout(21, 30, 52), VideoLayout(33, 45, 80, 256)])
def test_a_long_videos_picture_is_as_dark_as_its_mask_is_dense(layout: VideoLayout, kind: HeadKind) -> None:
    half_width = layout.half_width_for(0.3, kind)
    shares = pictures.mask_shares(layout, kind, half_width)
    assert shares.shape == (512, 512)
    assert float(shares.mean()) == pytest.approx(layout.density(half_width, kind), abs=0.01)


def test_a_file_comes_out(tmp_path: Path) -> None:
    figure = pictures.draw_masks(VideoLayout(5, 7, 3, 11, block=8), 0.5)
    pictures.save(figure, tmp_path / "masks.png")
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.partition(" ")[0] for title in titles] == ["spatial", "temporal"]
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["frame 0", "frame 1", "frame 2", "frame 3", "frame 4", "text"]


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(SvgError, match="pictures need matplotlib: pip install matplotlib"):
        pictures.draw_masks(VideoLayout(5, 7, 3))
