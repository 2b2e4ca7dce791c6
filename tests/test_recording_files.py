"""Recordings in files: they hold all of it, and what is damaged, cut or mixed is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import svg_compile
from lowering import kind, watch
from pipelines import TimedDiT
from svg_compile import Recording, SvgError
from test_record import GRID, compiled, entry, run, where
from toy import latents

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, kind)


def test_files_hold_all_of_it(tmp_path: Path, traced: None) -> None:
    model = compiled(TimedDiT(), dense_steps=2, profile_every=2)
    with svg_compile.record(model, layout=GRID) as recording:
        run(model, latents(batch=2))
        run(model, latents(batch=1))
    paths = recording.save(tmp_path / "run.v1")
    assert paths == (tmp_path / "run.v1.npz", tmp_path / "run.v1.json")
    facts = json.loads(paths[1].read_text())
    assert (facts["format"], facts["kind"], len(facts["entries"])) == (1, "svg_compile recording", 8)
    for path in (tmp_path / "run.v1", *paths):
        loaded = Recording.load(path)
        assert where(loaded) == where(recording)
        for one, other in zip(loaded.entries, recording.entries):
            assert (one.model, one.layout) == (other.model, other.layout)
            for name in ("kinds", "half_widths", "errors"):
                a, b = getattr(one, name), getattr(other, name)
                assert (a is None and b is None) or (a.dtype is b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()))
        assert loaded.summary == recording.summary


def test_files_that_are_no_recording_are_refused(tmp_path: Path, traced: None) -> None:
    recording = Recording([entry(0, [0, 1]), entry(1, None)])
    arrays, facts = recording.save(tmp_path / "run")
    good = json.loads(facts.read_text())
    for bad, why in (
        ({"format": 1}, "not a recording of svg_compile"),
        ([], "not a recording of svg_compile"),
        ({**good, "format": 99}, "has format 99, this svg_compile reads 1"),
        ({**good, "entries": good["entries"][1:]}, "do not belong together"),
        ({**good, "entries": [{"model": "m"}]}, "do not belong together"),
    ):
        facts.write_text(json.dumps(bad))
        with pytest.raises(SvgError, match=why):
            Recording.load(facts)
    facts.write_text(json.dumps(good))
    arrays.write_bytes(b"what is this")
    with pytest.raises(SvgError, match="do not belong together, or one is damaged"):
        Recording.load(arrays)
    with pytest.raises(FileNotFoundError):
        Recording.load(tmp_path / "nothing")


def damages() -> list[Any]:
    """(name, what becomes of the bytes of the .npz, what becomes of the facts in the .json)."""

    def first(facts: dict[str, Any], **changed: Any) -> dict[str, Any]:
        return {**facts, "entries": [{**facts["entries"][0], **changed}, *facts["entries"][1:]]}

    same: Any = lambda given: given  # noqa: E731
    bytes_ = [
        ("half", lambda data: data[: len(data) // 2]),
        ("empty", lambda data: b""),
        ("zeros", lambda data: data[:60] + bytes(40) + data[100:]),
        ("last_byte", lambda data: data[:-1]),
        ("pickle", lambda data: pickle.dumps([1, 2])),
    ]
    facts = [
        ("shape_empty", {"shape": []}),
        ("shape_one", {"shape": [2]}),
        ("shape_negative", {"shape": [-1, -2]}),
        ("shape_other", {"shape": [1, 3]}),
        ("shape_text", {"shape": "12"}),
        ("shape_null", {"shape": None}),
        ("layout_short", {"layout": [5, 7]}),
        ("layout_zero", {"layout": [0, 7, 3, 0, False, 8]}),
        ("layout_text", {"layout": "5x7x3"}),
        ("model_number", {"model": 3}),
        ("layer_null", {"layer": None}),
        ("step_text", {"step": "1"}),
        ("run_null", {"run": None}),
    ]
    return [
        *(pytest.param(change, same, id=name) for name, change in bytes_),
        *(pytest.param(same, lambda f, c=change: first(f, **c), id=name) for name, change in facts),
        pytest.param(same, lambda f: {**f, "entries": 7}, id="entries_number"),
        pytest.param(same, lambda f: {**f, "entries": [None]}, id="entries_null"),
        pytest.param(same, lambda f: {**f, "sha256": "00"}, id="checksum"),
    ]


@pytest.mark.parametrize("checked", [True, False], ids=["checksum", "of_before"])
@pytest.mark.parametrize(("change_bytes", "change_facts"), damages())
def test_damaged_files_are_refused(change_bytes: Any, change_facts: Any, checked: bool, tmp_path: Path) -> None:
    arrays, facts = Recording([entry(0, [0, 1], layout=GRID), entry(1, None)]).save(tmp_path / "run")
    good = json.loads(facts.read_text())
    arrays.write_bytes(change_bytes(arrays.read_bytes()))
    changed = change_facts(good)
    if not checked:
        # Files of before there was a checksum.
        if changed.pop("sha256") == "00":
            return
    facts.write_text(json.dumps(changed))
    with pytest.raises(SvgError, match="do not belong together, or one is damaged"):
        Recording.load(facts)


def test_files_of_before_there_was_a_checksum_are_read(tmp_path: Path) -> None:
    recording = Recording([entry(0, [0, 1], layout=GRID), entry(1, None)])
    _, facts = recording.save(tmp_path / "run")
    old = json.loads(facts.read_text())
    del old["sha256"]
    facts.write_text(json.dumps(old))
    assert Recording.load(facts).summary == recording.summary


def test_illegal_kinds_and_files_of_two_recordings_are_refused(tmp_path: Path) -> None:
    for name, kinds in (("one", [0, 1]), ("other", [1, 0]), ("wrong", [0, 7])):
        Recording([entry(0, kinds)]).save(tmp_path / name)
    with pytest.raises(SvgError, match=r"plan\[0, 1\] is \[7, 2\]"):
        Recording.load(tmp_path / "wrong")
    (tmp_path / "one.npz").write_bytes((tmp_path / "other.npz").read_bytes())
    with pytest.raises(SvgError, match="do not belong together"):
        Recording.load(tmp_path / "one")
    (tmp_path / "other.npz").unlink()
    with pytest.raises(FileNotFoundError, match="a recording is two files"):
        Recording.load(tmp_path / "other.json")
    (tmp_path / "other.npz").mkdir()
    with pytest.raises(SvgError, match=r"other\.npz cannot be read"):
        Recording.load(tmp_path / "other")


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording([entry(0, [0, 1])])
    arrays, _ = recording.save(tmp_path / "run")

    def interrupted(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Recording([entry(0, [1, 1])]).save(tmp_path / "run")
    assert Recording.load(arrays).summary == recording.summary
