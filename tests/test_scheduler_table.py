"""The table of docs/schedule.md: which forwards are dense under each scheduler and way of running it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import svg_compile
from scheduler_runs import SCHEDULERS, TAKE_SIGMAS, denoise
from step_models import FORMS, Pipe, StepModel, log_of
from svg_compile.runtime.dispatcher import observe

PAGE = Path(__file__).resolve().parent.parent / "docs" / "schedule.md"
STEPS = 8
SIGMAS = [1.0, 0.98, 0.9, 0.8, 0.5, 0.3, 0.2, 0.1]
Run = Callable[[Any, Any], None]
# The columns of the table: each runs an attached pipeline, the last but one another pipeline after it.
RUNS: dict[str, Run] = {
    "whole run": lambda pipe, form: denoise(pipe, STEPS, form),
    "strength 0.9": lambda pipe, form: denoise(pipe, STEPS, form, strength=0.9),
    "custom sigmas": lambda pipe, form: denoise(pipe, STEPS, form, sigmas=SIGMAS),
    "1 step": lambda pipe, form: denoise(pipe, 1, form),
    "2 steps": lambda pipe, form: denoise(pipe, 2, form),
    "interrupted": lambda pipe, form: denoise(pipe, STEPS, form, stop=3),
    "guidance dropped": lambda pipe, form: denoise(pipe, STEPS, form, guidance=lambda place: place < 3),
}


def table() -> dict[str, dict[str, str]]:
    """scheduler -> column -> the cell."""
    lines = PAGE.read_text().splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("| scheduler |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


def test_the_table_has_all_schedulers_and_runs() -> None:
    found = table()
    assert list(found) == list(SCHEDULERS)
    assert all(list(row) == list(RUNS) for row in found.values())


def run(name: str, column: str, form: Any, attached: bool = True) -> tuple[str, set[str]]:
    pipe = Pipe(SCHEDULERS[name](), transformer=StepModel(num_inference_steps=STEPS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not attached:
            with observe() as seen:
                RUNS[column](pipe, form)
            return log_of(seen), {d.source for d in seen}
        with svg_compile.attach(pipe), observe() as seen:
            RUNS[column](pipe, form)
        return log_of(seen), {d.source for d in seen}


@pytest.mark.parametrize("form", ["view", "copy", "bfloat16", "one a token"])
@pytest.mark.parametrize("column", RUNS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_cell_is_what_runs(name: str, column: str, form: str) -> None:
    cell = table()[name][column]
    if column == "custom sigmas" and name not in TAKE_SIGMAS:
        assert cell == "not taken"
        return
    assert run(name, column, FORMS[form]) == (cell, {"attached"})


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_run_with_strength_has_its_first_steps_behind_it(name: str, begin: bool) -> None:
    """Whether or not the pipeline says where it begins."""
    for form in ("view", "copy"):
        pipe = Pipe(SCHEDULERS[name](), transformer=StepModel())
        with svg_compile.attach(pipe), observe() as seen:
            denoise(pipe, STEPS, FORMS[form], strength=0.5, begin=begin)
        assert {d.source for d in seen} == {"attached"}
        steps = [d.position.step for d in seen if d.position]
        assert (steps[0], steps[-1]) == (4, 7)
        assert {d.position.total for d in seen if d.position} == {8}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_after_an_interrupted_run_others_are_counted_and_its_own_next_one_is_exact(name: str) -> None:
    for form in ("view", "copy", "bfloat16"):
        model = StepModel(num_inference_steps=STEPS)
        mine, other = (Pipe(SCHEDULERS[name](), transformer=model) for _ in range(2))
        with svg_compile.attach(mine):
            for stop in (0, 1, 3, None):
                with observe() as seen:
                    denoise(mine, STEPS, FORMS[form], stop=stop)
                    denoise(other, 12, FORMS[form])
                ran = sum(d.source == "attached" for d in seen)
                whole = run(name, "whole run", FORMS[form])[0]
                assert log_of(seen).startswith(whole[:stop])
                rest = seen[len(whole[:stop]) :]
                steps = [d.position.step for d in rest if d.position]
                # Counted, of num_inference_steps=8: the first two steps, or more, are dense.
                assert all(d.dense for d in rest[:2]), (form, stop, log_of(seen), ran)
                assert steps == sorted(steps)
                assert sum(d.dense for d in rest) <= 4
        with svg_compile.attach(mine), observe() as seen:
            denoise(mine, STEPS, FORMS[form])
        assert (log_of(seen), {d.source for d in seen}) == (whole, {"attached"})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "DDIMScheduler"])
def test_every_form_of_timestep_is_recognised(name: str, form: str) -> None:
    if form == "no form that is known" and name != "FlowMatchEulerDiscreteScheduler":
        pytest.skip("without a step index an unknown form is counted, and Heun's steps have two timesteps each")
    whole = run(name, "whole run", FORMS["copy"])[0]
    assert run(name, "whole run", FORMS[form]) == (whole, {"attached"})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_counted_runs_have_the_same_log(name: str) -> None:
    for form in ("copy", "view", "number", "from 0 to 1"):
        whole = run(name, "whole run", FORMS["copy"])[0]
        assert run(name, "whole run", FORMS[form], attached=False) == (whole, {"timestep"})


def write_table() -> str:
    """The table as it should be, by copies of timesteps."""
    lines = ["| scheduler | " + " | ".join(RUNS) + " |", "|---" * (len(RUNS) + 1) + "|"]
    for name in SCHEDULERS:
        cells = []
        for column in RUNS:
            taken = column != "custom sigmas" or name in TAKE_SIGMAS
            cells.append(f"`{run(name, column, FORMS['copy'])[0]}`" if taken else "not taken")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    print(write_table())
