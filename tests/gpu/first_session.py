"""The first ten minutes on a GPU: what docs/benchmarks/log.md has in its order, one step after the other.

    python tests/gpu/first_session.py --results docs/benchmarks/h200/first      or: make bench-gpu-first
    python tests/gpu/first_session.py --dry-run                                  on a machine without a GPU

Each step is a process of its own with a time limit; a step that crashes, hangs or is too slow costs only itself, and a
step that makes no sense without another is left out where that one failed. `session.json` is written before and after
every step: whatever ends the session, what was found until then is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
# A step that would get less is not begun.
LEAST_SECONDS = 15.0
_TAIL = 4000
_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu")
_BENCH = ("-c", "from svg_compile.cli import main; main()", "bench")
_ONCE = ("--repeats", "1", "--device", "cpu")
_SMALL = ("--grid", "4x8x8", "--text", "20", "--heads", "2", "--head-dim", "16", *_ONCE)
# How much longer a step may take on a CPU.
_DRY_FACTOR = 3


@dataclass(frozen=True)
class Step:
    """A command of this Python: its arguments, most seconds that it may take, and steps that must have succeeded.

    dry: the arguments on a machine without a GPU. A figure file stands as {json}.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    after: tuple[str, ...] = ()
    dry: tuple[str, ...] = ()


def _tests(name: str, seconds: float, *arguments: str, after: tuple[str, ...] = ()) -> Step:
    return Step(name, (*_PYTEST, *arguments), seconds, after)


def _hopper(name: str, seconds: float, which: str, *after: str) -> Step:
    return _tests(name, seconds, "-x", "tests/gpu/test_hopper.py", "-k", which, after=after)


def _attention(name: str, seconds: float, *arguments: str, after: tuple[str, ...] = ()) -> Step:
    timed = (*_BENCH, "attention", "--density", "0.25", "--json", "{json}")
    return Step(name, (*timed, *arguments), seconds, after, (*timed, *_SMALL, "--peer", "sdpa", "--peer", "svg"))


_RIGHT = ("hopper runs", "hopper is right", "hopper has no races")
STEPS = (
    _tests("strides", 60, "tests/gpu/test_compile.py", "-k", "strides_that_inductor_chooses"),
    _attention(
        "attention", 100, *("--kind", "mixed", "--peer", "cudnn", "--peer", "svg", "--repeats", "5", "--seconds", "60")
    ),
    _tests("tests", 150, "tests/gpu", "--ignore", "tests/gpu/test_hopper.py"),
    _hopper("hopper runs", 60, "one_tile or every_shape"),
    _hopper("hopper is right", 120, "oracle or long or skipped or offsets", "hopper runs"),
    _hopper("hopper has no races", 90, "hundred or captured or model_sizes", "hopper is right"),
    _attention(
        "hopper attention",
        75,
        *(
            "--kind",
            "mixed",
            "--peer",
            "cudnn",
            "--peer",
            "svg",
            "--peer",
            "hopper",
            "--repeats",
            "5",
            "--seconds",
            "40",
        ),
        after=_RIGHT,
    ),
    Step(
        "forward",
        (*_BENCH, "forward", "--model", "hunyuanvideo", "--repeats", "1", "--json", "{json}"),
        300,
        dry=(*_BENCH, "forward", "--model", "small", "--dtype", "float32", *_ONCE, "--json", "{json}"),
    ),
    _attention("kinds", 100, *("--kind", "spatial", "--kind", "temporal", "--peer", "svg", "--repeats", "5")),
    _attention(
        "head dim 64",
        100,
        *("--preset", "cogvideox1.5", "--peer", "cudnn", "--peer", "svg", "--peer", "svg-64x128x4x3"),
    ),
)


def run_session(steps: Sequence[Step], results: Path, seconds: float, conditions: dict[str, Any], dry: bool) -> bool:
    """Run the steps within so many seconds and store their results in `results`; True if all of them succeeded."""
    results.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    records: list[dict[str, Any]] = [{"name": step.name, "status": "not begun"} for step in steps]
    session = {**conditions, "dry_run": dry, "seconds": seconds, "steps": records}
    _store(session, results)
    for number, (step, record) in enumerate(zip(steps, records, strict=True)):
        done = {other["name"] for other in records if other["status"] == "succeeded"}
        missing = [name for name in step.after if name not in done]
        limit = min(step.seconds * (_DRY_FACTOR if dry else 1), end - time.monotonic())
        if missing:
            record["status"] = f"left out: {missing[0]} did not succeed"
        elif limit < min(LEAST_SECONDS, step.seconds):
            record["status"] = "left out: no time"
        else:
            _run(step, record, results / f"{number:02}-{step.name.replace(' ', '-')}", limit, dry, session)
        _store(session, results)
        print(f"{step.name}: {record['status']}" + (f", {record['took']} s" if "took" in record else ""), flush=True)
    return all(record["status"] == "succeeded" for record in records)


def _run(step: Step, record: dict[str, Any], path: Path, limit: float, dry: bool, session: dict[str, Any]) -> None:
    """Run one step; its output goes into a file next to its figures."""
    figures, log = path.with_suffix(".json"), path.with_suffix(".log")
    figures.unlink(missing_ok=True)
    chosen = step.dry if dry and step.dry else step.arguments
    command = [sys.executable, *(str(figures) if argument == "{json}" else argument for argument in chosen)]
    record.update(status="running", command=" ".join(command), limit=round(limit, 1))
    _store(session, path.parent)
    begun = time.monotonic()
    with log.open("w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=CHECKOUT, start_new_session=True)
        try:
            code = child.wait(limit)
            record["status"] = "succeeded" if code == 0 else f"failed with {code}"
        except subprocess.TimeoutExpired:
            record["status"] = "stopped: out of time"
        finally:
            _stop(child)
    record["took"] = round(time.monotonic() - begun, 1)
    record["output"] = log.read_text(errors="replace")[-_TAIL:]
    # Figures are stored turn by turn: a step that was stopped may have some.
    found = sorted(path.parent.glob(f"{path.name}*.json"))
    record["figures"] = {file.name: _figures(file) for file in found}
    if record["status"] == "succeeded" and "{json}" in chosen and not found:
        record["status"] = "failed: it stored no figures"


def _figures(file: Path) -> Any:
    """What a step stored; as text where it was stopped while it wrote."""
    text = file.read_text(errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a step's process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _store(session: dict[str, Any], results: Path) -> None:
    """Write the session's file, whole or not at all."""
    half = results / "session.json.part"
    half.write_text(json.dumps(session, indent=1) + "\n")
    half.replace(results / "session.json")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=CHECKOUT / "out" / "first-session", metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=600.0, help="of the whole session (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="the same steps on the CPU, with small measurements")
    asked = parser.parse_args(arguments)
    import torch

    if not asked.dry_run and not torch.cuda.is_available():
        print(
            "first_session: torch sees no GPU here, and every step needs one. Run it on a machine with one; "
            "--dry-run tries the steps on this one.",
            file=sys.stderr,
        )
        return 2
    from svg_compile.bench.machine import machine

    conditions = machine(torch.device("cpu" if asked.dry_run else "cuda"))
    results = asked.results.resolve()
    succeeded = run_session(STEPS, results, asked.seconds, dict(conditions), asked.dry_run)
    print(results / "session.json")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
