"""A row of docs/models.md: a real pipeline, run unchanged, compiled whole and by blocks, and the expected result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import svg_compile
from eager_calls import counted
from svg_compile._compat.modules import listed_blocks
from svg_compile.runtime.observers import Forward, watch

# At density 1 sparse attention equals dense attention. The first step is left dense, so that a step that was counted
# wrongly shows in the number of sparse attentions.
OPTIONS: dict[str, Any] = {"min_tokens": 0, "block": 8, "dense_steps": 1, "dense_layers": 0, "density": 1.0}
HISTORY = "the sequence also holds the earlier video, attended in full; dense where that is over 30% of the sequence"


@dataclass(frozen=True)
class Row:
    """One pipeline: how it is built and called, the grid of its video, and whether its attention becomes sparse.

    grid: frames, height and width in tokens; text: text tokens after the video, or before it where `text_first`.
    tokens: length of the self-attentions that count, where it is not that of the grid with its text; keys: the number
    of their keys, where it is larger.
    whole, blocks: "sparse", or "dense"; note: a remark for the reader of the table.
    attached: True if `svg_compile.attach` accepts the pipeline. each: True if `compile_repeated_blocks` misses blocks.
    steps: of the scheduler; of these the first `skipped` are not run where a strength says so.
    quick: run by `make test`; the others by `make test-slow`.
    """

    name: str
    pipeline: str
    build: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]]
    grid: tuple[int, int, int] = (5, 7, 3)
    text: int = 0
    text_first: bool = False
    tokens: int = 0
    keys: int = 0
    whole: str = "sparse"
    blocks: str = "sparse"
    note: str = ""
    steps: int = 2
    skipped: int = 0
    denoisers: tuple[str, ...] = ("transformer",)
    attached: bool = True
    each: bool = False
    quick: bool = False

    @property
    def sequence(self) -> int:
        """Tokens of the self-attentions that count."""
        frames, height, width = self.grid
        return self.tokens or frames * height * width + self.text

    def call(self, pipe: Any) -> list[Tensor]:
        """What the pipeline makes: latents where it gives them."""
        given = {"num_inference_steps": self.steps, "generator": torch.Generator().manual_seed(0),
                 "output_type": "latent", "return_dict": False} | self.arguments()  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = pipe(**{key: value for key, value in given.items() if value is not ...})
        return [part for part in _flat(made) if isinstance(part, Tensor)]

    def models(self, pipe: Any) -> Iterator[Any]:
        for name in self.denoisers:
            yield getattr(pipe, name)


def _flat(made: Any) -> Iterator[Any]:
    if isinstance(made, (tuple, list)):
        for part in made:
            yield from _flat(part)
    else:
        yield made


@dataclass(frozen=True)
class Eager:
    """A run without the backend: its output, and the number of its attentions over the video."""

    made: list[Tensor]
    attentions: int


@dataclass(frozen=True)
class Seen:
    """A compiled run: its output, its sparse attentions, the dense ones of the first step, and the warnings."""

    made: list[Tensor]
    sparse: int
    left_dense: int
    grids: frozenset[tuple[int | None, ...]]
    said: list[str]


def run_eager(row: Row) -> Eager:
    with counted(row.sequence, row.keys) as count:
        made = row.call(row.build())
    return Eager(made, count[0])


def compile_blocks(model: Any, each: bool, **options: Any) -> None:
    """As docs/models.md says: by the class' own list; where it misses some, each element of its lists of modules."""
    lists = [child for child in model.children() if isinstance(child, torch.nn.ModuleList)]
    missed = {type(block).__name__ for blocks in lists for block in blocks} - set(model._repeated_blocks or ())
    if each:
        assert missed, "compile_repeated_blocks would do"
        for _, block in listed_blocks(model):
            block.compile(**options)
    else:
        model.compile_repeated_blocks(**options)


def run_compiled(row: Row, how: str, **options: Any) -> Seen:
    """Compile a pipeline's denoisers as "whole" or "blocks", attach it and run it; leaves Dynamo fresh."""
    torch._dynamo.reset()
    pipe = row.build()
    for model in row.models(pipe):
        given: dict[str, Any] = {"backend": "svg", "options": {**OPTIONS, **options}}
        if how == "whole":
            model.compile(**given)
        else:
            compile_blocks(model, row.each, **given)
    seen: list[Forward] = []
    tie = svg_compile.attach(pipe) if row.attached else nullcontext()
    with warnings.catch_warnings(record=True) as warned, tie, watch(seen.append):
        warnings.simplefilter("always")
        made = row.call(pipe)
    torch._dynamo.reset()
    sparse = [forward for forward in seen if not forward.decision.dense]
    return Seen(
        made,
        sum(len(forward.layers) for forward in sparse),
        sum(len(forward.layers) for forward in seen) - sum(len(forward.layers) for forward in sparse),
        frozenset(grid for forward in seen for grid in forward.grids),
        [str(each.message) for each in warned if str(each.message).startswith("svg: ")],
    )


def check(row: Row, how: str, eager: Eager, seen: Seen) -> None:
    """Raise AssertionError unless a compiled run agrees with the row, and its output with that of the eager run."""
    assert len(seen.made) == len(eager.made) > 0
    for got, want in zip(seen.made, eager.made):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    if getattr(row, how) == "dense":
        assert (seen.sparse, seen.left_dense) == (0, 0), f"{seen.sparse} sparse, {seen.left_dense} left dense"
        assert seen.said, "dense, and nothing was said"
        return
    steps = row.steps - row.skipped
    sparse = steps - (row.skipped == 0)
    assert eager.attentions > 0
    assert seen.sparse * steps == eager.attentions * sparse, f"{seen.sparse} sparse of {eager.attentions}: {seen.said}"
    expected = (*row.grid, row.text, row.text_first, OPTIONS["block"])
    assert seen.grids == {expected}, f"{seen.grids}, not {expected}"
