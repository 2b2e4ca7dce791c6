"""Models whose graphs break before their attention, compiled whole and by blocks: the whole model shows the grid.

At density 1 they equal the eager model, at 0.3 the same model with its layout given. Inductor is replaced by the traced
graph itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
import svg_compile
from lowering import kind, watch
from svg_compile.runtime import dispatcher as schedule

OPTIONS: dict[str, Any] = {"min_tokens": 0, "block": 8, "dense_steps": 0, "dense_layers": 0, "on_error": "raise"}
STEPS, GRID, TEXT = 3, (5, 7, 3), 5
Inputs = dict[str, Any]


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield watch(monkeypatch, kind)
    torch._dynamo.reset()


@torch.compiler.disable
def rotated(x: Tensor, table: Tensor) -> Tensor:
    return x * table[:, None]


@torch.compiler.disable
def turned(x: Tensor, table: Tensor) -> Tensor:
    """As `rotated`, of tokens that are rolled by a row."""
    return (x * table[:, None]).roll(3, 1)


def by_sizes(x: Tensor, table: Tensor, sizes: Tensor) -> Tensor:
    """Rotary code that reads the grid of each sample, and puts the samples together again."""
    out = []
    for i, (f, h, w) in enumerate(sizes.tolist()):
        seq_len = f * h * w
        y = torch.view_as_complex(x[i, :seq_len].to(torch.float64).reshape(seq_len, x.size(2), -1, 2))
        axes = [table[:f].view(f, 1, 1, -1).expand(f, h, w, -1), table[:h].view(1, h, 1, -1).expand(f, h, w, -1)]
        freqs = torch.cat([axes[0][..., :4], axes[1][..., :4]], dim=-1).reshape(seq_len, 1, -1)
        y = torch.view_as_real(y * torch.polar(torch.ones_like(freqs), freqs)).flatten(2)
        out.append(torch.cat([y, x[i, seq_len:]]))
    return torch.stack(out).float()


class Attention(nn.Module):
    def __init__(self, rotary: Callable[..., Tensor]) -> None:
        super().__init__()
        self.rotary, self.qkv, self.out = rotary, nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (2, -1)) for t in self.qkv(2 * x).chunk(3, -1))
        q, k = self.rotary(q, *tables), self.rotary(k, *tables)
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, rotary: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(rotary), nn.Linear(32, 32)

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        x = x + self.attn(x, *tables)
        return x + self.mlp(x)


class RotaryOutside(nn.Module):
    """Rotary code that breaks the graph within each attention."""

    def __init__(self, rotary: Callable[..., Tensor] = rotated) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.head = nn.Conv3d(4, 32, 1), nn.Linear(32, 4)
        self.by_sizes = rotary is by_sizes
        self.blocks = nn.ModuleList(Block(rotary) for _ in range(2))
        self.eval()

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x = self.patch(hidden_states)
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + timestep.float().reshape(-1, 1, 1).cos()
        tables: tuple[Tensor, ...] = (torch.linspace(0, 1, x.shape[1])[:, None].expand(-1, 16).cos(),)
        if self.by_sizes:
            tables = torch.linspace(0, 1, 1024).reshape(128, 8), torch.tensor([list(grid)] * len(x))
        for block in self.blocks:
            x = block(x, *tables)
        return self.head(x).transpose(1, 2).unflatten(2, grid)


class PositionCache:
    """Rotary code, no module, that keeps the positions of each grid and reads how many there are."""

    def __init__(self) -> None:
        self.known: dict[str, Tensor] = {}

    def __call__(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        name = "-".join(map(str, grid))
        if name not in self.known:
            self.known[name] = torch.cartesian_prod(*map(torch.arange, grid))
        places = self.known[name]
        table = torch.linspace(0, 1, int(places.max()) + 1)[:, None].expand(-1, 16).cos()
        return x * sum(F.embedding(places[:, i], table) for i in range(3))[:, None]


class Cached(RotaryOutside):
    """Its blocks share a cache that their first call fills."""

    def __init__(self) -> None:
        super().__init__(PositionCache())

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x = self.patch(hidden_states)
        grid = tuple(x.shape[2:])
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, grid)
        return self.head(x).transpose(1, 2).unflatten(2, grid)


class Masked(RotaryOutside):
    """A mask that Python code reads between the patches and the blocks."""

    def __init__(self) -> None:
        super().__init__(lambda x, table: x * table[:, None])

    def forward(self, hidden_states: Tensor, timestep: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.patch(hidden_states)
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + timestep.float().reshape(-1, 1, 1).cos()
        assert mask is not None
        if bool(mask.all()):
            x = x * 2
        table = torch.linspace(0, 1, x.shape[1])[:, None].expand(-1, 16).cos()
        for block in self.blocks:
            x = block(x, table)
        return self.head(x).transpose(1, 2).unflatten(2, grid)


class Flagged(Masked):
    """Two masks and an image that are floating-point, each read by Python code."""

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, mask: Tensor | None = None, mask_2: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        assert mask is not None
        assert mask_2 is not None
        assert image is not None
        text = torch.stack([torch.cat([row[seen], row[~seen]]) for row, seen in zip(mask, mask.bool())])
        more = torch.stack([torch.cat([row[seen], row[~seen]]) for row, seen in zip(mask_2, mask_2.bool())])
        if torch.all(image == 0):
            more = more * 0.0
        return super().forward(hidden_states + text.mean() + more.mean(), timestep, mask.bool())


class Disabled(Attention):
    """Its attention is in no graph."""

    @torch.compiler.disable
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (2, -1)) for t in self.qkv(2 * x).chunk(3, -1))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


def between() -> RotaryOutside:
    model = RotaryOutside()
    for block in model.blocks:
        attention = Disabled(rotated)
        attention.load_state_dict(block.attn.state_dict())
        block.attn = attention.eval()
    return model


def toy(**more: Any) -> Inputs:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return {"hidden_states": torch.randn(1, 4, *GRID), "timestep": torch.tensor([500.0]), **more}


def flags(image: Tensor) -> Inputs:
    mask = (torch.arange(TEXT) < 3).float()[None]
    return toy(mask=mask, mask_2=1 - mask, image=image)


def hunyuan15() -> tuple[nn.Module, Inputs]:
    case = models.case("hunyuan_video_1_5")
    return case.build(), case.inputs(1, case.grid)


def layout_of_hunyuan15() -> tuple[Any, ...]:
    case = models.case("hunyuan_video_1_5")
    return (*case.grid, case.text_len, "last")


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, Inputs]], tuple[Any, ...]]] = {
    "rotary code that is not traced": (lambda: (RotaryOutside(), toy()), GRID),
    "rotary code that reads the grid": (lambda: (RotaryOutside(by_sizes), toy()), GRID),
    "positions that rotary code keeps": (lambda: (Cached(), toy()), GRID),
    "a mask that is read": (lambda: (Masked(), toy(mask=torch.ones(1, TEXT, dtype=torch.int64))), GRID),
    "masks that are floating-point": (lambda: (Flagged(), flags(torch.zeros(1, 4, 8))), GRID),
    "masks and an image that are floating-point": (lambda: (Flagged(), flags(torch.randn(1, 4, 8))), GRID),
    "hunyuan_video_1_5": (hunyuan15, layout_of_hunyuan15()),
}


def run(name: str, how: str, **options: Any) -> tuple[list[Tensor], list[list[bool]]]:
    """The output of each step, and for each which of its attentions' forwards were dense."""
    torch._dynamo.reset()
    model, inputs = MODELS[name][0]()
    steps = svg_compile.denoising(model, steps=STEPS) if how != "eager" else None
    given = {**OPTIONS, **options}
    if how == "whole":
        model.compile(backend="svg", options=given, dynamic=False)
    elif how == "blocks":
        for block in getattr(model, "blocks", None) or model.transformer_blocks:
            block.compile(backend="svg", options=given, dynamic=False)
    outputs, dense = [], []
    for step in range(STEPS):
        with schedule.observe() as seen:
            if steps is not None and not step:
                steps.__enter__()
            outputs.append(models.output(model(**{**inputs, "hidden_states": inputs["hidden_states"] * 1.01**step})))
            dense.append([decision.dense for decision in seen])
        if steps is not None and step < STEPS - 1:
            steps.advance()
    if steps is not None:
        steps.__exit__(None, None, None)
    return outputs, dense


@pytest.mark.parametrize("how", ["whole", "blocks"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "_" in name else name for name in MODELS]
)
def test_attention_behind_a_break_is_sparse_and_right(name: str, how: str) -> None:
    expected, _ = run(name, "eager")
    outputs, dense = run(name, how, density=1.0)
    for got, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    # Compiled whole, the first forward finds out that the graph breaks.
    # Two attentions in two graphs, or in one.
    assert all(each in ([False, False], [False]) for each in dense[how == "whole" :])
    sparse, _ = run(name, how, density=0.3)
    given, _ = run(name, how, density=0.3, layout=MODELS[name][1])
    torch.testing.assert_close(sparse[-1], given[-1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(sparse[-1], expected[-1], rtol=1e-3, atol=1e-3)


def test_a_part_without_attention_says_what_the_next_forward_will_be() -> None:
    """It is compiled before the graph that holds the attention: that all of it stays dense would be wrong."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        _, dense = run("rotary code that is not traced", "whole")
    said = {str(each.message) for each in warned if str(each.message).startswith("svg: ")}
    assert dense == [[], [False, False], [False, False]]
    (only,) = said
    assert "this forward is dense; the next forward recompiles the model, which is sparse from then on" in only
    assert "all of it stays dense" not in only
    # Outside of a schedule nobody looks at the whole model.
    torch._dynamo.reset()
    model, inputs = RotaryOutside(), toy()
    model.compile(backend="svg", options=OPTIONS, dynamic=False)
    with pytest.warns(UserWarning, match="all of it stays dense"):
        model(**inputs)


def test_attention_between_graphs_has_a_row_and_is_served_by_blocks() -> None:
    MODELS["between"] = (lambda: (between(), toy()), GRID)
    try:
        model, inputs = MODELS["between"][0]()
        report = svg_compile.explain(model, **inputs, options={"min_tokens": 0})
        assert [site.layer for site in report.sites] == ["blocks.0.attn", "blocks.1.attn"]
        assert {site.reason for site in report.sites} == {svg_compile.Reason.BETWEEN_GRAPHS}
        line = Disabled.attend.__wrapped__.__code__.co_firstlineno + 2  # type: ignore[attr-defined]
        assert all(site.source.endswith(f"test_broken_graphs.py:{line}") for site in report.sites)
        assert all(site.sequence == "[5*7*3]" and "disable" in site.detail for site in report.sites)
        assert "another attention backend" not in str(report)
        outputs, dense = run("between", "blocks", density=1.0)
        assert dense == [[False, False]] * STEPS
        for got, want in zip(outputs, run("between", "eager")[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    finally:
        del MODELS["between"]


def test_a_grid_that_is_carried_across_a_break_is_said_to_need_attach() -> None:
    report = svg_compile.explain(RotaryOutside(), **toy(), options={"min_tokens": 0, "dense_layers": 1})
    assert [site.layer for site in report.sites] == ["blocks.0.attn", "blocks.1.attn"]
    # Layers are counted through all graphs.
    assert [site.reason for site in report.sites] == [svg_compile.Reason.DENSE_LAYER, None]
    assert "svg_compile.attach(pipe)" in report.sites[1].detail


def test_tokens_that_are_rolled_between_the_graphs_stay_dense() -> None:
    MODELS["rolled"] = (lambda: (RotaryOutside(turned), toy()), GRID)
    try:
        for how in ("whole", "blocks"):
            _, dense = run("rolled", how)
            assert all(decision for each in dense for decision in each)
    finally:
        del MODELS["rolled"]
