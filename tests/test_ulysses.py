"""Context parallelism over processes on this machine's CPUs: each attends all tokens with its share of the heads.

What each process runs stands in tests/ulysses.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TESTS = Path(__file__).resolve().parent
# Those of docs/companions.md that diffusers spreads over processes.
MODELS = ("Wan", "LTX")
pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


def processes(*arguments: str, count: int = 2, script: Path = TESTS / "ulysses.py") -> list[dict[str, Any]]:
    """What each process of a run of a script with these arguments found, by rank."""
    pytest.importorskip("diffusers", minversion="0.41")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port), str(script), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each["rank"] for each in sorted(found, key=lambda each: each["rank"])] == list(range(count)), done.stdout
    return found


@pytest.mark.parametrize("case", ["whole", pytest.param("blocks", marks=pytest.mark.slow)])
def test_ulysses_is_sparse_and_equals_one_process(case: str) -> None:
    first, second = processes(case)
    for each in (first, second):
        assert each["off"] < 1e-4
        assert each["said"] == []
        # The first of three steps of two attentions is dense, at both ranks alike.
        assert each["sparse"] == 4
        assert all(dense == (step == 0) for step, dense in zip(each["steps"], each["dense"], strict=True))
    assert first["steps"] == second["steps"]


@pytest.mark.slow
def test_processes_that_do_not_share_compute_about_as_much() -> None:
    apart, together = ([each["pairs"] for each in processes(case)] for case in ("whole-apart", "whole"))

    def most_apart(ranks: list[list[list[float]]]) -> float:
        """The largest difference of density between the processes, over layers and steps."""
        steps = zip(*ranks, strict=True)
        return max(max(layer) - min(layer) for step in steps for layer in zip(*step, strict=True))

    assert most_apart(apart) < 0.5 * most_apart(together)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["whole", "blocks"])
def test_four_processes_of_one_head_each_equal_one_process(case: str) -> None:
    found = processes(case, count=4)
    for each in found:
        assert each["off"] < 1e-4
        assert each["said"] == []
        assert each["sparse"] == 4
        assert all(dense == (step == 0) for step, dense in zip(each["steps"], each["dense"], strict=True))
        assert each["steps"] == found[0]["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["whole", "blocks"])
def test_another_model_whose_tokens_diffusers_spreads(case: str) -> None:
    for each in processes(case, "LTX"):
        assert each["off"] < 1e-4
        assert each["said"] == []
        assert each["sparse"] == 4
        assert all(dense == (step == 0) for step, dense in zip(each["steps"], each["dense"], strict=True))


@pytest.mark.slow
def test_ring_attention_is_refused_and_ulysses_named() -> None:
    for each in processes("ring"):
        assert any("it runs ring attention" in said and "use Ulysses" in said for said in each["said"]), each
        # diffusers has no ring attention on CPUs, whatever the backend.
        assert "return_lse" in each["error"]
        assert "return_lse" in each["without"]


@pytest.mark.slow
def test_lengths_that_do_not_divide_compile_with_no_backend() -> None:
    """If this fails Dynamo has learned to trace diffusers' `ulysses_anything`: docs/companions.md says it cannot."""
    for each in processes("anything"):
        # Of diffusers' exchange of unequal parts, and nothing else, with this backend and with torch's own.
        for error in (each["error"], each["without"]):
            assert "Dynamo failed to run FX node with fake tensors" in error
            assert "all_to_all_single_any_qkv_async" in error
        assert each["said"] == []
