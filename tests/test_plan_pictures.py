"""Pictures of plans: their cells are the recording's own facts, at any size, and files come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from svg_compile import HeadKind, LayoutError, Recording, SvgError, VideoLayout
from svg_compile.inspection.pictures import save
from svg_compile.inspection.recording import attention_pictures, plan_pictures
from svg_compile.inspection.recording.entry import Entry
from svg_compile.kernels import reference

TEXTS = [(0, False), (11, False), (11, True)]


def entry(layer: int, step: int | None, kinds: list[int] | None, ratio: float = 10.0, **more: Any) -> Entry:
    facts: dict[str, Any] = {"model": "m", "run": 0, "step": step, "total": 9, "call": 0, "layer": f"b.{layer}", **more}
    if kinds is None:
        return Entry(**facts)
    found = torch.tensor([kinds], dtype=torch.int32)
    errors = torch.ones(1, len(kinds), 2)
    errors[..., 0] = torch.where(found == HeadKind.TEMPORAL, ratio, 1 / ratio)
    return Entry(**facts, kinds=found, half_widths=found * 0 + 2, errors=errors)


RUN = Recording(
    [
        *(entry(layer, 0, None) for layer in range(2)),
        entry(0, 1, [0, 0]), entry(1, 1, [1, 2]),
        entry(0, 2, [0, 1]), entry(1, 2, [1, 2]),
    ]
)  # fmt: skip


def cells(figure: Any, place: int) -> torch.Tensor:
    return torch.as_tensor(figure.axes[place].images[0].get_array().filled(float("nan")))


def texts(axes: Any, which: str) -> list[str]:
    return [label.get_text() for label in getattr(axes, f"get_{which}ticklabels")()]


def test_kinds_by_step_and_by_head_have_the_colours_of_their_heads() -> None:
    figure = plan_pictures.draw_kinds(RUN)
    blue, orange, grey, paper = (
        torch.tensor(colour)
        for colour in (plan_pictures._BLUE, plan_pictures._ORANGE, plan_pictures._GREY, plan_pictures._PAPER)
    )
    by_step, by_head = cells(figure, 0), cells(figure, 1)
    expected = [[grey, blue, paper], [grey, (orange + grey) / 2, (orange + grey) / 2]]
    torch.testing.assert_close(by_step, torch.stack([torch.stack(row) for row in expected]))
    torch.testing.assert_close(by_head, torch.stack([torch.stack([blue, paper]), torch.stack([orange, grey])]))
    assert texts(figure.axes[0], "x") == ["0", "1", "2"]
    assert texts(figure.axes[0], "y") == ["b.0", "b.1"]
    assert texts(figure.axes[1], "x") == ["0", "1"]


def test_margins_are_ratios_of_errors() -> None:
    figure = plan_pictures.draw_margins(RUN)
    torch.testing.assert_close(cells(figure, 0), torch.ones(2, 2))
    torch.testing.assert_close(cells(figure, 1), torch.tensor([[-1.0, -1.0], [1.0, -1.0]]))
    labels = [texts(axes, "x") for axes in figure.axes[2:]]
    assert labels == [["1", "1.78", "3.16", "5.62", "10"], ["1/10", "1/3.16", "1", "3.16", "10"]]
    kept = Recording(
        [Entry("m", 0, 1, 9, 0, "b", *(torch.zeros(1, 2, dtype=torch.int32),) * 2, torch.full((1, 2, 2), float("nan")))]
    )
    with pytest.raises(SvgError, match="holds no errors: all its kinds were kept"):
        plan_pictures.draw_margins(kept)


def test_densities_are_means_over_heads_and_over_forwards() -> None:
    layout = VideoLayout(9, 4, 4, block=8)
    spatial, temporal = (layout.density(2, kind) for kind in (HeadKind.SPATIAL, HeadKind.TEMPORAL))
    run = Recording(
        [
            entry(0, 0, None, layout=layout), entry(1, 0, None, layout=layout),
            entry(0, 1, [0, 0], layout=layout), entry(1, 1, [1, 2], layout=layout),
            entry(0, 2, [0, 1], layout=layout), entry(1, 2, [1, 2], layout=layout),
        ]
    )  # fmt: skip
    figure = plan_pictures.draw_densities(run)
    both = (spatial + temporal) / 2
    torch.testing.assert_close(
        cells(figure, 0), torch.tensor([[spatial, both], [(temporal + 1) / 2] * 2]), check_dtype=False
    )
    torch.testing.assert_close(cells(figure, 1), torch.tensor([[spatial, both], [temporal, 1.0]]), check_dtype=False)
    assert texts(figure.axes[0], "x") == ["1", "2"]
    with pytest.raises(SvgError, match="token grid"):
        plan_pictures.draw_densities(RUN)


def test_large_recordings_and_forwards_without_a_step_stay_readable(tmp_path: Path) -> None:
    layout = VideoLayout(9, 4, 4, block=8)
    many = [entry(layer, None, [0, 1] * 20, call=call, layout=layout) for layer in range(100) for call in range(60)]
    for draw in (plan_pictures.draw_kinds, plan_pictures.draw_densities, plan_pictures.draw_margins):
        figure = draw(Recording(many))
        assert figure.axes[0].get_xlabel() == "forward"
        assert len(texts(figure.axes[0], "y")) <= 48
        assert all(len(texts(axes, "x")) <= 14 for axes in figure.axes[:2])
        save(figure, tmp_path / "large.png")
        assert (tmp_path / "large.png").read_bytes().startswith(b"\x89PNG")


def test_several_models_are_named() -> None:
    figure = plan_pictures.draw_kinds(Recording([entry(0, 1, [0, 1]), entry(0, 1, [1, 1], model="n")]))
    assert texts(figure.axes[0], "y") == ["m: b.0", "n: b.0"]


@pytest.mark.parametrize("kind", list(HeadKind))
@pytest.mark.parametrize("text", TEXTS)
def test_sampled_rows_are_those_of_dense_attention_and_of_the_mask(kind: HeadKind, text: tuple[int, bool]) -> None:
    layout = VideoLayout(5, 7, 3, *text, block=8)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, layout.tokens, 16, generator=generator) for _ in range(2))
    plan = torch.tensor([int(kind), 1], dtype=torch.int32).expand(2, 3, 2)
    key_mask = torch.ones(2, layout.tokens, dtype=torch.bool)
    key_mask[1, -4:] = False
    sampled = attention_pictures.sample_attention(query, key, layout, plan, batch=1, head=2, rows=40, key_mask=key_mask)
    scores = (query[1, 2] @ key[1, 2].T / 4).masked_fill(~key_mask[1], float("-inf"))
    torch.testing.assert_close(sampled.probabilities, scores.softmax(-1)[sampled.queries])
    expected = reference.attention_mask(layout, 1, kind) & key_mask[1]
    assert torch.equal(sampled.seen, expected[sampled.queries])
    assert len(sampled.queries) == 40
    assert bool((sampled.queries >= layout.video_start).all())
    assert bool((sampled.queries < layout.video_start + layout.video).all())
    assert sampled.kept == pytest.approx(1.0) if kind is HeadKind.DENSE else sampled.kept < 1


@pytest.mark.parametrize("kind", list(HeadKind))
@pytest.mark.parametrize("text", TEXTS)
def test_the_mask_is_drawn_beside_the_attention_in_the_order_of_the_head(
    kind: HeadKind, text: tuple[int, bool], tmp_path: Path
) -> None:
    layout = VideoLayout(5, 7, 3, *text, block=8)
    query = torch.randn(1, 1, layout.tokens, 16, generator=torch.Generator().manual_seed(0))
    plan = torch.tensor([[[int(kind), 1]]], dtype=torch.int32)
    figure = attention_pictures.draw_attention(query, query, layout, plan, rows=1000)
    assert figure.axes[0].get_title().startswith(f"mask: {kind.name.lower()}")
    assert figure.axes[1].get_title().startswith("attention: the mask keeps")
    drawn = cells(figure, 0)
    assert drawn.shape == (layout.video, layout.tokens)
    rows = reference.attention_mask(layout, 1, kind)[layout.video_start :][: layout.video]
    assert float(drawn.mean()) == pytest.approx(float(rows.float().mean()))
    # In its own order a sparse head sees one run of the body.
    body = drawn[:, layout.video_start + layout.area :][:, : layout.body]
    assert int(body.diff(dim=1).abs().sum(1).max()) <= 2
    names = texts(figure.axes[0], "x")
    assert names[0] == "frame 0"
    assert ("text" in names) == bool(text[0])
    assert any(name.startswith("row") for name in names) == (kind is HeadKind.TEMPORAL)
    save(figure, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_tensors_that_do_not_fit_are_refused() -> None:
    layout = VideoLayout(5, 7, 3, block=8)
    query = torch.zeros(1, 2, 104, 16)
    with pytest.raises(LayoutError, match=r"\[B, H, 105, D\].*got \[1, 2, 104, 16\]"):
        attention_pictures.sample_attention(query, query, layout, torch.zeros(1, 2, 2))
    query = torch.zeros(1, 2, 105, 16)
    with pytest.raises(LayoutError, match=r"plan must be \[1, 2, 2\], got \[2, 2\]"):
        attention_pictures.sample_attention(query, query, layout, torch.zeros(2, 2))
