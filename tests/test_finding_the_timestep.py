"""The timestep of a forward is found in every form in which it is passed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lowering import kind, watch
from pipelines import TimedDiT
from svg_compile.runtime import dispatcher as schedule
from test_schedule import DENSE_THEN_SPARSE, FORMS, OPTIONS, TIMES, compiled, steps
from toy import latents

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return watch(monkeypatch, kind)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_timestep_is_counted_and_guidance_is_no_step(form: str, built: list[str]) -> None:
    model, x = compiled(TimedDiT()), latents(batch=2)
    with schedule.observe() as seen:
        for _ in range(2):
            for time in TIMES:
                for _guidance in range(2):
                    model(x, FORMS[form](time))
    assert steps(seen) == [step for step in DENSE_THEN_SPARSE for _ in range(2)] * 2
    assert {d.source for d in seen} == {"timestep"}
    # A number is a constant of the first graph and, at the latest from the third step on, an input of the next ones.
    assert built == ["dense", "sparse"] if "number" not in form else len(built) <= 2 * len(TIMES)


def decorated(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return wrapper


class Guided(TimedDiT):
    """The guidance is embedded like the timestep: only their names distinguish them."""

    def forward(self, latents: Tensor, guidance: Tensor, timestep: Tensor) -> Tensor:  # type: ignore[override]
        return self.attend(latents, timestep) + torch.sin(guidance) * torch.cos(guidance)


class Decorated(Guided):
    forward = decorated(Guided.forward)


class Hooked(Guided):
    """A module under diffusers' hooks: its forward takes any arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = functools.partial(lambda module, *args, **kwargs: Guided.forward(module, *args, **kwargs), self)


class Unnamed(TimedDiT):
    """Neither its latents nor its positions are timesteps, and the timestep has an unusual name."""

    def forward(self, latents: Tensor, places: Tensor, when: Tensor) -> Tensor:  # type: ignore[override]
        waves = torch.sin(places) + torch.cos(places)
        return self.attend(latents, when) + waves[:, None]


HOW = ("keyword", "position", "decorated", "decorated keyword", "hooked", "hooked keyword", "in place", "function")


@pytest.mark.parametrize("how", [*HOW, "unnamed"])
def test_the_timestep_is_found_however_it_is_passed(how: str, built: list[str]) -> None:
    kinds: dict[str, Callable[[], Any]] = {"decorated": Decorated, "hooked": Hooked, "unnamed": Unnamed}
    module = kinds.get(how.split()[0], Guided)()
    run = compiled(module)
    if how == "in place":
        module.compile(backend="svg", fullgraph=True, options=OPTIONS)
        run = module
    if how == "function":
        run = compiled(lambda inputs, guidance, t: module(inputs["x"], guidance, t))
    x: Any = {"x": latents(batch=2)} if how == "function" else latents(batch=2)
    other = torch.arange(105.0) if how == "unnamed" else torch.tensor([6.0])
    with schedule.observe() as seen:
        for time in TIMES:
            t = torch.full((2,), time)
            if "keyword" in how:
                run(x, timestep=t, guidance=other)
            else:
                run(x, other, t)
    assert steps(seen) == DENSE_THEN_SPARSE
