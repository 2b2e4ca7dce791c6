"""A run without a sparse step gives one warning. No graph is compiled."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch

import svg_compile
from scheduler_runs import denoise
from step_models import FORMS, Pipe, StepModel
from test_whose_step import euler

# A warning of ours is an error, where a test does not expect it.
pytestmark = [pytest.mark.usefixtures("no_schedule_left"), pytest.mark.filterwarnings("error:svg")]


def play(times: list[float], **options: Any) -> list[str]:
    """The warnings of a model that receives these timesteps."""
    model = StepModel(**options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for time in times:
            model(torch.zeros(1), torch.tensor([time]))
    return [str(w.message) for w in caught if "svg" in str(w.message)]


def falling(steps: int, forwards: int = 1) -> list[float]:
    return [1000.0 - 900 * step / steps for step in range(steps) for _ in range(forwards)]


NEVER_SPARSE: dict[str, tuple[list[float], str]] = {
    "8 steps of 50": (falling(8) * 2, "all 8 steps.*num_inference_steps': 8"),
    "12 steps with guidance": (falling(12, 2) * 2, "all 12 steps"),
    "2 steps": ([1000.0, 500.0] * 3, "all 2 steps"),
    "1 step": ([1000.0] * 60, "forwards in a row were dense"),
    "alternating": ([900.0, 100.0] * 40, "all 2 steps"),
    "rolling": ([1000.0] * 80, "do not show the steps"),
    "rising": (falling(9)[::-1], "rise from forward to forward"),
}


@pytest.mark.parametrize("case", NEVER_SPARSE)
def test_a_run_without_a_sparse_step_says_so_once(case: str) -> None:
    times, message = NEVER_SPARSE[case]
    said = play(times * 3)
    assert len([text for text in said if "rise" in text or "dense" in text]) <= 2
    assert any(re.search(message, text) for text in said), said


@pytest.mark.parametrize("guidance", [1, 2, 3])
def test_runs_as_long_as_asked_say_nothing(guidance: int) -> None:
    for dense in (0.25, 0.9, 3, 0):
        assert play(falling(50, guidance) * 3, dense_steps=dense) == []
    assert play([500.0, *falling(50, guidance) * 2]) == [], "a warm-up"


def test_an_attached_run_says_so_at_its_last_step_where_all_its_steps_are_asked_to_be_dense() -> None:
    for steps, dense, says in ((1, 0.25, True), (4, 6, True), (4, 3, False), (8, 0.25, False)):
        pipe = Pipe(euler(), transformer=StepModel(dense_steps=dense))
        with svg_compile.attach(pipe), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                denoise(pipe, steps, FORMS["view"])
        said = [str(w.message) for w in caught if "svg" in str(w.message)]
        assert len(said) == says, (steps, dense, said)
