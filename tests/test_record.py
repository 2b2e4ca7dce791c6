"""`record`: every attention of every forward is there once, nothing changes by being recorded, and files hold it all.

Unless a test says otherwise Inductor is replaced by the traced graph itself, so that a compile costs a trace.
"""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pipelines
import svg_compile
from lowering import kind, watch
from pipelines import TimedDiT
from svg_compile import HeadKind, Recording, SvgError, VideoLayout
from svg_compile.inspection import recording as recording_module
from svg_compile.inspection.recording import text as recording_text
from svg_compile.inspection.recording.entry import Entry
from svg_compile.inspection.recording.naming import numbered
from svg_compile.runtime.dispatcher import Decision, Forward
from toy import ToyVideoDiT, latents

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise", "strict": True}
TIMES = (1000.0, 750.5, 500.0, 2.5)
GRID = VideoLayout(5, 7, 3, block=8)


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, kind)


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="svg", dynamic=False, options={**OPTIONS, **options})


def run(model: Any, x: Tensor, times: tuple[float, ...] = TIMES) -> list[Tensor]:
    return [model(x, torch.tensor([time])) for time in times]


def where(recording: Recording) -> list[tuple[Any, ...]]:
    return [(e.run, e.step, e.total, e.call, e.layer, e.dense) for e in recording.entries]


LAYERS = ("blocks.0.attn1", "blocks.1.attn1")


def test_a_pipeline_run_with_guidance_gives_each_step_call_and_layer_once(traced: None) -> None:
    spec = pipelines.spec("wan")
    pipe = spec.build()
    pipe.transformer = compiled(pipe.transformer, dense_steps=2)
    with svg_compile.attach(pipe), svg_compile.record(pipe.transformer) as recording:
        for steps in (5, 4):
            spec.call(pipe, steps)
    expected = [
        (number, step, total, call, layer, step < 2)
        for number, total in enumerate((5, 4))
        for step in range(total)
        for call in range(2)
        for layer in LAYERS
    ]
    assert where(recording) == expected
    for entry in recording.sparse:
        assert entry.kinds is not None
        assert entry.half_widths is not None
        assert entry.errors is not None
        assert (entry.kinds.shape, entry.half_widths.shape, entry.errors.shape) == ((1, 2), (1, 2), (1, 2, 2))
        better = entry.errors.argmin(-1).to(torch.int32)
        assert torch.equal(entry.kinds, better)
        assert entry.kinds.dtype is torch.int32
        assert all(tensor.device.type == "cpu" for tensor in (entry.kinds, entry.half_widths, entry.errors))


def test_two_denoisers_of_one_pipeline_are_told_apart(traced: None) -> None:
    spec = pipelines.spec("wan_2_2")
    pipe = spec.build()
    for name in spec.denoisers:
        setattr(pipe, name, compiled(getattr(pipe, name), dense_steps=0, profile_every=2))
    with svg_compile.attach(pipe), svg_compile.record(pipe) as recording:
        spec.call(pipe, 6)
    high = sum(time >= 875 for time in pipe.scheduler.timesteps.tolist())
    steps = {name: sorted({e.step for e in recording.select(model=name).entries}) for name in spec.denoisers}
    assert steps == {"transformer": list(range(high)), "transformer_2": list(range(high, 6))}
    assert recording.layers == tuple((name, layer) for name in spec.denoisers for layer in LAYERS)
    # Kinds are kept at every second step of each model: nothing was measured there.
    for name in spec.denoisers:
        steps_of = steps[name]
        for entry in recording.select(model=name).sparse:
            assert bool(entry.errors.isnan().all()) == bool(steps_of.index(entry.step) % 2)
    assert "transformer_2: blocks.1.attn1" in recording.summary


def test_results_are_bit_identical_and_forwards_of_other_models_stay_out() -> None:
    torch._dynamo.reset()
    model, other, x = compiled(TimedDiT(), dense_steps=2), compiled(TimedDiT(seed=1), dense_steps=0), latents(batch=2)
    before, other_before = run(model, x), run(other, x)
    with svg_compile.record(model) as recording:
        inside, other_inside = run(model, x), run(other, x)
    after = run(model, x)
    assert all(torch.equal(a, b) and torch.equal(b, c) for a, b, c in zip(before, inside, after))
    assert all(torch.equal(a, b) for a, b in zip(other_before, other_inside))
    assert [(e.step, e.dense) for e in recording.entries] == [(0, True), (1, True), (2, False), (3, False)]
    assert not svg_compile.runtime.observers._observers


def test_in_inference_mode_and_with_an_error_in_the_block_what_was_seen_is_kept(traced: None) -> None:
    model, x = compiled(TimedDiT(), dense_steps=0, profile_every=2), latents()
    recordings = []

    def stopped() -> None:
        with torch.inference_mode(), svg_compile.record(model) as recording:
            recordings.append(recording)
            run(model, x, TIMES[:2])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    (first, second) = recordings[0].sparse
    assert not first.kinds.is_inference()
    assert torch.equal(first.kinds, second.kinds)


def test_blocks_compiled_one_by_one_are_named_from_the_model_on(traced: None) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = TimedDiT()

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return self.attn(x, timestep)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(compiled(Block(), dense_steps=0, profile_every=2) for _ in range(2))

        def forward(self, x: Tensor, timestep: Tensor) -> list[Tensor]:
            return [block(x, timestep) for block in self.blocks]

    model = Model()
    with svg_compile.record(model) as recording:
        run(model, latents(), TIMES[:2])
    assert [(e.step, e.call, e.layer) for e in recording.entries] == [
        (step, 0, f"blocks.{block}.attn") for step in range(2) for block in range(2)
    ]


def test_layers_that_share_a_name_are_numbered(traced: None) -> None:
    model = compiled(ToyVideoDiT(layers=3), dense_steps=0)
    with svg_compile.record(model, layout=GRID) as recording:
        [model(latents()) for _ in range(2)]
    # Nobody tells the step: forwards are counted instead.
    assert [(e.step, e.call, e.layer) for e in recording.entries] == [
        (None, call, f"(model)#{layer}") for call in range(2) for layer in range(3)
    ]
    assert numbered(["a", "b", "a"]) == ("a#0", "b", "a#1")


def test_densities_and_shares_are_those_of_the_plans(traced: None) -> None:
    model = compiled(TimedDiT(), dense_steps=2, density=0.6)
    with svg_compile.record(model, layout=GRID) as recording:
        run(model, latents(batch=2))
    for entry in recording.sparse:
        assert entry.kinds is not None
        assert entry.half_widths is not None
        heads = zip(entry.kinds.flatten().tolist(), entry.half_widths.flatten().tolist())
        densities = [GRID.density(width, kind) for kind, width in heads]
        assert entry.density == pytest.approx(sum(densities) / 4)
    assert recording.select(dense=True).densities() == {("TimedDiT", "(model)"): 1.0}
    kinds = torch.stack([entry.kinds for entry in recording.sparse])  # type: ignore[misc]
    sparse = recording.select(dense=False)
    assert sparse.shares() == pytest.approx([float((kinds == int(kind)).float().mean()) for kind in HeadKind])
    # Half of the forwards were dense.
    assert recording.shares().dense == pytest.approx(0.5)
    assert sum(recording.shares()) == pytest.approx(1.0)
    with pytest.raises(SvgError, match=r"selected by model, run.*not by 'kinds'"):
        recording.select(kinds=1)
    with pytest.raises(SvgError, match=r"no entry of the recording has \{'step': 9\}"):
        recording.select(step=9).shares()


def entry(step: int, kinds: list[int] | None, errors: list[list[float]] | None = None, **more: Any) -> Entry:
    facts = {"model": "m", "run": 0, "step": step, "total": 4, "call": 0, "layer": "a.b", **more}
    if kinds is None:
        return Entry(**facts)
    found = torch.tensor([errors or [[1.0, 10.0]] * len(kinds)])
    widths = torch.full((1, len(kinds)), 2, dtype=torch.int32)
    return Entry(**facts, kinds=torch.tensor([kinds], dtype=torch.int32), half_widths=widths, errors=found)


def test_the_summary_says_what_ran_and_what_became_of_each_layer() -> None:
    errors = [[1.0, 10.0], [1.0, 10.0]]
    recording = Recording(
        [entry(0, None), entry(1, [0, 1], errors), entry(2, [1, 1], errors), entry(3, [1, 2], errors)]
    )
    assert recording.summary.splitlines() == [
        "m: 4 forwards in 1 run of 4 steps, 1 of them dense; heads 12% spatial, 50% temporal, 38% dense",
        "  layer  heads  spatial  temporal  dense  density  margin  changed",
        "  a.b        2      17%       67%    17%        ?     10x      50%",
    ]
    assert str(recording) == recording.summary


def test_the_share_of_repaired_heads_is_over_what_was_profiled(tmp_path: Path) -> None:
    kinds = torch.tensor([[0, 1, 2, 0]], dtype=torch.int32)
    errors = torch.tensor([[[1.0, 2.0], [3.0, 1.0], [torch.nan, torch.nan], [1.0, 2.0]]])
    facts = ("DiT", 0, 0, 2, 0, "attn", kinds, torch.ones_like(kinds), errors, None)
    profiled = Entry(*facts, torch.tensor([[0.5, 1.0, torch.nan, 0.2]]))
    kept = Entry("DiT", 0, 1, *facts[3:8], torch.full_like(errors, torch.nan), None, torch.full((1, 4), torch.nan))
    assert profiled.repaired_share == 0.5
    assert kept.repaired_share is None
    assert Entry(*facts).repaired_share is None
    recording = svg_compile.Recording([profiled, kept])
    assert [line.split()[-1] for line in recording.summary.split("\n")[1:]] == ["repaired", "50%"]
    recording.save(tmp_path / "run")
    first, second = svg_compile.Recording.load(tmp_path / "run").entries
    torch.testing.assert_close(first.repaired, profiled.repaired, equal_nan=True)
    assert second.repaired is None


def test_margins_stay_finite_and_unmeasured_ones_unknown() -> None:
    nan = float("nan")
    measured = entry(0, [0, 1, 0, 2, 0], [[1.0, 100.0], [0.01, 1e-3], [0.0, 0.0], [0.0, 1.0], [nan, nan]])
    found = recording_text.margins(measured)[0].tolist()
    assert found[:4] == pytest.approx([-2, 1, 0, -6])
    assert found[4] != found[4]


def test_a_recording_of_nothing_says_why(traced: None) -> None:
    model, x = TimedDiT(), latents()
    with svg_compile.record(model) as recording:
        run(model, x)
        with pytest.raises(SvgError, match="at the end of its `with` block"):
            _ = recording.entries
    for read in (lambda: recording.entries, recording.shares, lambda: recording.summary, lambda: recording.save("x")):
        with pytest.raises(SvgError, match=r"nothing was recorded.*inside of the.*compiled.*explain"):
            read()
    assert "nothing was recorded" in str(recording)
    dense = compiled(model, dense_steps=3)
    with svg_compile.record(dense) as recording:
        run(dense, x, TIMES[:3])
    assert recording.shares() == (0.0, 0.0, 1.0)
    assert "3 of them dense" in recording.summary
    with pytest.raises(SvgError, match="all 3 recorded forwards were dense"):
        _ = recording.sparse


@pytest.mark.parametrize("given", [(), (3,), ("model",), (torch.sin,)])
def test_what_is_no_model_is_refused(given: tuple[Any, ...]) -> None:
    with pytest.raises(SvgError, match="record: expected"), svg_compile.record(*given):
        pass


def test_nothing_is_read_while_it_records() -> None:
    model = TimedDiT()
    plan = torch.empty(1, 2, 2, dtype=torch.int32, device="meta")
    forward = Forward(
        Decision(None, False, "not asked"), model.qkv.weight, ("", "a"), (plan, plan), (plan.float(),) * 2
    )
    recorder = recording_module._Recorder({"m": model}, None)
    # Tensors without data raise where a value is asked for, or where they should come to the host.
    recorder.see(forward)
    with pytest.raises(NotImplementedError, match="meta"):
        recorder.entries()


def test_afterwards_neither_the_model_nor_device_tensors_are_kept(traced: None) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), Tensor) for each in gc.get_objects())

    module = TimedDiT()
    model = compiled(module, dense_steps=0)
    run(model, latents())
    before = tensors()
    with svg_compile.record(model) as recording:
        [run(model, latents()) for _ in range(5)]
    assert len(recording.entries) == 20
    del recording
    assert tensors() <= before
    with svg_compile.record(model) as recording:
        run(model, latents())
    gone = weakref.ref(module)
    del module, model
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None
    assert len(recording.entries) == 4
