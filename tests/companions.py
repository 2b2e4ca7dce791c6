"""Runs a companion (a step cache, offloading, quantised weights) together with `backend="svg"`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import models
import svg_compile
from eager_calls import counted
from svg_compile._compat.modules import listed_blocks
from svg_compile.runtime import dispatcher as schedule
from svg_compile.runtime.observers import Forward

# With density 1 the sparse path equals dense attention.
OPTIONS: dict[str, Any] = {"min_tokens": 0, "block": 8, "dense_steps": 0, "dense_layers": 0, "density": 1.0}
STEPS = 4


# (model, step) -> what a step runs within.
Context = Callable[[Any, int], contextlib.AbstractContextManager[Any]]


def one_branch(model: Any, step: int) -> contextlib.AbstractContextManager[Any]:
    """The `cache_context` that step caches of diffusers ask for; all forwards of a run share one."""
    context: Any = model.cache_context("cond") if hasattr(model, "cache_context") else contextlib.nullcontext()
    return context


def timestep_of(step: int) -> float:
    return 1000.0 - 200 * step


def run(model: Any, inputs: dict[str, Any], steps: int = STEPS, context: Context = one_branch) -> Iterator[Tensor]:
    """The outputs of the steps."""
    for step in range(steps):
        latents = inputs["hidden_states"] * 1.01**step
        changed = {"timestep": torch.tensor([timestep_of(step)]), "hidden_states": latents}
        with context(model, step):
            yield models.output(model(**{**inputs, **changed})).clone()


def compiled(model: Any, how: str, backend: str = "svg", **options: Any) -> Any:
    """The model, compiled as a whole or by blocks."""
    given: dict[str, Any] = {"backend": backend, "dynamic": False}
    if backend == "svg":
        given["options"] = {**OPTIONS, **options}
    if how == "whole":
        model.compile(**given)
    elif model._repeated_blocks:
        model.compile_repeated_blocks(**given)
    else:
        for _, block in listed_blocks(model):
            block.compile(**given)
    return model


@dataclass(frozen=True)
class Eager:
    """A run without any backend: the outputs of its steps, its attentions over the video, those of the first one."""

    outputs: Sequence[Tensor]
    attentions: int
    at_first: int


def eager(model: Any, inputs: dict[str, Any], case: models.Case, context: Context = one_branch) -> Eager:
    """No compile: the model as plain Python."""
    frames, height, width = case.grid
    with counted(frames * height * width + case.text_len) as count:
        outputs, counts = [], []
        for output in run(model, inputs, context=context):
            outputs.append(output)
            counts.append(count[0])
    return Eager(outputs, counts[-1], counts[0])


def graphs_compiled() -> int:
    """Graphs that Dynamo has given to a backend since it was reset; those of a trace are not among them."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def alone(model: Any, how: str, inputs: dict[str, Any], context: Context = one_branch, steps: int = STEPS) -> int:
    """How many graphs Dynamo compiles of a model for a backend that does nothing; leaves Dynamo as it was before."""
    torch._dynamo.reset()
    before = graphs_compiled()
    for _ in run(compiled(model, how, backend="eager"), inputs, steps, context):
        pass
    graphs = graphs_compiled() - before
    torch._dynamo.reset()
    return graphs


@dataclass(frozen=True)
class Beside:
    """The result of a run: the outputs of its steps, its forwards, this package's warnings, and the compiled graphs.

    sparse, dense: the number of attentions over the video that ran sparse and dense.
    """

    outputs: Sequence[Tensor]
    forwards: Sequence[Forward]
    said: list[str]
    graphs: int

    @property
    def sparse(self) -> int:
        return sum(len(forward.layers) for forward in self.forwards if not forward.decision.dense)

    @property
    def dense(self) -> int:
        return sum(len(forward.layers) for forward in self.forwards if forward.decision.dense)

    def same(self, outputs: Sequence[Tensor]) -> bool:
        """True if another run gave the same outputs."""
        return len(outputs) == len(self.outputs) and all(
            torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in zip(self.outputs, outputs)
        )


def beside(
    model: Any, how: str, inputs: dict[str, Any], context: Context = one_branch, steps: int = STEPS, **options: Any
) -> Beside:
    """Compile a model that has its companion, and run it with a schedule; leaves Dynamo as it was before."""
    torch._dynamo.reset()
    before = graphs_compiled()
    compiled(model, how, **options)
    outputs: list[Tensor] = []
    seen: list[Forward] = []
    with warnings.catch_warnings(record=True) as warned, schedule.watch(seen.append):
        warnings.simplefilter("always")
        with svg_compile.denoising(model, steps=steps) as denoising:
            for output in run(model, inputs, steps, context):
                outputs.append(output)
                denoising.advance()
    graphs = graphs_compiled() - before
    torch._dynamo.reset()
    return Beside(
        outputs, seen, [str(each.message) for each in warned if str(each.message).startswith("svg: ")], graphs
    )
