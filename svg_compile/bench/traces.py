"""The CPU time of tracing a whole model: the first two calls of a model compiled by blocks, and `explain`.

The models are whole ones on the meta device; nothing of their size is allocated. Times are CPU seconds, user and
system, of this process beyond its imports: what else the machine does changes them less than seconds on a clock. The
first trace of a process also loads most of Dynamo, so each row has a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from svg_compile.bench.machine import machine
from svg_compile.errors import SvgError

CLASSES = (
    "WanTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "LTX2VideoTransformer3DModel",
    "HunyuanVideo15Transformer3DModel",
)


def measure(classes: Sequence[str], on_row: Callable[[dict[str, Any]], object] = lambda row: None) -> dict[str, Any]:
    """Time the traces of diffusers' classes, each in its released size -> the result to store."""
    rows = []
    for name in classes:
        for what in ("blocks", "explain"):
            rows.append(_in_a_process(name, what))
            on_row(rows[-1])
    load = os.getloadavg()[0]
    return {"benchmark": "trace", "machine": machine(torch.device("cpu")), "load": load, "rows": rows}


def _in_a_process(name: str, what: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "svg_compile.bench.traces", name, what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SvgError(f"{name} could not be traced: {done.stderr.strip()[-500:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def timed(name: str, what: str) -> dict[str, Any]:
    """One row: "blocks", the first and the second call of a model compiled by blocks, or "explain"."""
    from svg_compile._compat.modules import listed_blocks
    from svg_compile.inspection.tracing import explain
    from svg_compile.regional.call_guards import arguments_of
    from svg_compile.regional.known_calls import KnownCalls
    from svg_compile.targets import Request, load

    target = load(name, Request({}))
    row: dict[str, Any] = {"model": name, "what": what, "layers": len(list(listed_blocks(target.model)))}
    with torch.no_grad():
        if what == "explain":
            begin = _cpu()
            report = explain(target.model, *target.args, **target.kwargs)
            return {**row, "seconds": _cpu() - begin, "attentions": len(report.sites), "sparse": report.rewritten}
        known = KnownCalls(lambda blocks, sparse: None)
        blocks = dict(listed_blocks(target.model))
        kwargs = dict(target.kwargs)
        times = []
        for _ in range(2):
            begin = _cpu()
            found = known.grids(target.model, blocks, arguments_of(target.model, (), kwargs), (), kwargs)
            times.append(_cpu() - begin)
    sparse = 0 if found is None else len(found.sparse)
    return {**row, "seconds": times[0], "again": times[1], "sparse": sparse}


def _cpu() -> float:
    spent = os.times()
    return spent.user + spent.system


if __name__ == "__main__":
    sys.stdout.write(json.dumps(timed(*sys.argv[1:])) + "\n")
