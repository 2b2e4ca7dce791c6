"""A companion (a step cache, offloading, quantised weights) beside `backend="svg"`: how tests run it."""

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
from svg_compile.runtime import dispatcher as schedule

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


def compiled(model: Any, how: str, **options: Any) -> Any:
    """The model, compiled as a whole or by blocks."""
    how_to = model.compile if how == "whole" else model.compile_repeated_blocks
    how_to(backend="svg", options={**OPTIONS, **options}, dynamic=False)
    return model


@dataclass(frozen=True)
class Beside:
    """What a run gave: the outputs of its steps, sparse and dense forwards of graphs, and what this package said."""

    outputs: Sequence[Tensor]
    sparse: int
    dense: int
    said: list[str]

    def same(self, outputs: Sequence[Tensor]) -> bool:
        """Whether another run gave the same outputs."""
        return len(outputs) == len(self.outputs) and all(
            torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in zip(self.outputs, outputs)
        )


def beside(
    model: Any, how: str, inputs: dict[str, Any], context: Context = one_branch, steps: int = STEPS, **options: Any
) -> Beside:
    """Compile a model that has its companion, and run it with a schedule; leaves Dynamo as it was before."""
    torch._dynamo.reset()
    compiled(model, how, **options)
    outputs = []
    with warnings.catch_warnings(record=True) as warned, schedule.observe() as seen:
        warnings.simplefilter("always")
        with svg_compile.denoising(model, steps=steps) as denoising:
            for output in run(model, inputs, steps, context):
                outputs.append(output)
                denoising.advance()
    torch._dynamo.reset()
    said = [str(each.message) for each in warned if str(each.message).startswith("svg: ")]
    dense = sum(decision.dense for decision in seen)
    return Beside(outputs, len(seen) - dense, dense, said)
