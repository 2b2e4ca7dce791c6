"""Real diffusers pipelines with both sources of the step.

The pipelines run their own loops and schedulers; their transformers' compiled graphs are replaced by stand-ins that
answer with zeros, so that fifty steps cost seconds.
"""

from __future__ import annotations

import gc
import math
import weakref
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import fx

import pipelines
import svg_compile
from lowering import itself, watch
from pipelines import Spec
from svg_compile.runtime import dispatcher as schedule
from svg_compile.runtime.registry import REGISTRY
from test_attach import OPTIONS, Stop, steps
from toy import latents
from traced import answer_with_zeros

pytestmark = pytest.mark.usefixtures("no_schedule_left", "fresh_dynamo")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[fx.GraphModule]:
    return watch(monkeypatch, itself, lambda graph_module, inputs, patches: answer_with_zeros(graph_module))


def compile_denoisers(pipe: Any, spec: Spec, **options: Any) -> None:
    for name in spec.denoisers:
        model = getattr(pipe, name)
        setattr(pipe, name, torch.compile(model, backend="svg", dynamic=False, options={**OPTIONS, **options}))


def expected(spec: Spec, pipe: Any, count: int, dense: int, attached: bool, upto: int | None = None) -> Any:
    """What a run of `count` steps should log, `spec.forwards` forwards a step."""
    at = list(range(count))
    if not attached and len(spec.denoisers) == 2:
        # Each of the two counts its own part of the schedule.
        high = sum(t >= 875 for t in pipe.scheduler.timesteps.tolist())
        assert 0 < high < count
        at = [step if step < high else step - high for step in at]
    return [(step, step < dense) for step in at[:upto] for _ in range(spec.forwards)]


def stop_after_step_1(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    if step == 1:
        raise Stop
    return kwargs


@pytest.mark.parametrize("dense_steps", [3, 0.25])
@pytest.mark.parametrize("spec", pipelines.SPECS, ids=lambda spec: spec.name)
def test_pipelines_log_the_steps_exactly_as_asked(
    spec: Spec, dense_steps: int | float, built: list[fx.GraphModule], reads: list[float]
) -> None:
    pipe = spec.build()
    compile_denoisers(pipe, spec, dense_steps=dense_steps, num_inference_steps=10)
    for attached in (False, True):
        handle = svg_compile.attach(pipe) if attached else None
        for count in (4, 10, 50):
            dense = 3 if dense_steps == 3 else math.ceil((count if attached else 10) * 0.25)
            for changes in ({}, spec.other_size, {"callback_on_step_end": stop_after_step_1}, {}):
                compiled = len(built)
                stops = "callback_on_step_end" in changes
                reads.clear()
                with schedule.observe() as seen:
                    try:
                        spec.call(pipe, count, **changes)
                    except Stop:
                        assert stops
                assert steps(seen) == expected(spec, pipe, count, dense, attached, 2 if stops else None)
                assert {d.source for d in seen} == {"attached" if attached else "timestep"}
                assert {d.position.total for d in seen if d.position} == {count if attached else 10}
                # Their timesteps are views of the schedule's, which name their place: no forward waits for the device.
                assert len(reads) == (0 if attached else len(seen))
                assert len(built) == compiled or (count, attached) == (4, False)
        if handle is not None:
            handle.remove()
    # A dense and a sparse one a resolution: Wan 2.2's two transformers share graphs, and still count apart.
    assert len(built) == 4


def test_a_recompile_after_the_second_step_never_happens(built: list[fx.GraphModule]) -> None:
    spec = pipelines.spec("hunyuan_video")
    pipe = spec.build()
    pipe.transformer.to(torch.bfloat16)
    compile_denoisers(pipe, spec, dense_steps=3)
    compiled: list[int] = []

    def note(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        compiled.append(len(built))
        return kwargs

    with svg_compile.attach(pipe), schedule.observe() as seen:
        spec.call(pipe, 50, callback_on_step_end=note)
        spec.call(pipe, 50, callback_on_step_end=note)
    # The second step's timestep has another dtype, for the latents have.
    assert compiled == [2] + [4] * 99
    assert steps(seen) == [(step, step < 3) for step in range(50)] * 2


def test_bfloat16_timesteps_collide_without_attach(built: list[fx.GraphModule]) -> None:
    spec = pipelines.spec("hunyuan_video")
    pipe = spec.build()
    pipe.transformer.to(torch.bfloat16)
    compile_denoisers(pipe, spec, dense_steps=3)
    with schedule.observe() as seen:
        spec.call(pipe, 50)
    # The docs' caveat: more forwards are dense than asked, never fewer.
    assert 3 < sum(d.dense for d in seen) < 10


def test_the_scheduler_may_be_replaced_and_the_run_resumed_in_its_middle(built: list[fx.GraphModule]) -> None:
    from diffusers import UniPCMultistepScheduler

    spec = pipelines.spec("wan")
    pipe = spec.build()
    compile_denoisers(pipe, spec, dense_steps=0.5)
    with svg_compile.attach(pipe), schedule.observe() as seen:
        spec.call(pipe, 4)
        pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        spec.call(pipe, 6)
        # As image-to-image pipelines start: at a later step of the whole schedule.
        pipe.scheduler.set_timesteps(8)
        pipe.scheduler.set_begin_index(3)
        x = latents(1, 5, 14, 6)
        for t in pipe.scheduler.timesteps[3:]:
            pipe.transformer(x, t.expand(1), torch.zeros(1, 11, 12), return_dict=False)
            x = pipe.scheduler.step(torch.zeros_like(x), t, x, return_dict=False)[0]
    runs = [(step, step < count // 2) for count in (4, 6) for step in range(count) for _ in range(2)]
    assert steps(seen) == runs + [(step, step < 4) for step in range(3, 8)]


def test_attach_is_undone_and_frees_the_pipeline(built: list[fx.GraphModule]) -> None:
    spec = pipelines.spec("cogvideox")
    pipe = spec.build()
    compile_denoisers(pipe, spec, dense_steps=1)
    before = schedule.registered()
    handle = svg_compile.attach(pipe)
    assert svg_compile.attach(pipe) is handle
    with schedule.observe() as seen:
        spec.call(pipe, 4)
        handle.remove()
        handle.remove()
        spec.call(pipe, 4)
    assert [source for source, _ in groupby(d.source for d in seen)] == ["attached", "timestep"]
    assert schedule.registered() == before
    svg_compile.attach(pipe)
    gone = weakref.ref(pipe), weakref.ref(pipe.transformer._orig_mod)
    known = len(REGISTRY.bindings)
    del pipe, handle
    built.clear()
    torch._dynamo.reset()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert schedule.registered() == before
    assert len(REGISTRY.bindings) == known - 1
