"""Weights over processes on this machine's CPUs: by FSDP2, copied by DDP, or in parts by diffusers' tensor parallelism.

What each process runs stands in tests/sharded.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from test_ulysses import processes

SCRIPT = Path(__file__).resolve().parent / "sharded.py"
# Each starts two processes; what they rest on is checked in one by tests/test_spread_clone.py.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo"),
]


@pytest.mark.parametrize(
    ("companion", "how"),
    [
        ("FSDP2", "whole"),
        ("FSDP2", "blocks"),
        ("FSDP2 with text", "whole"),
        ("FSDP2 with text", "blocks"),
        ("DDP", "whole"),
        ("DDP", "blocks"),
        ("tensor parallel", "blocks"),
    ],
)
def test_each_process_is_sparse_and_equals_one_process(companion: str, how: str) -> None:
    for each in processes(companion, how, script=SCRIPT):
        assert each["said"] == []
        # Two attentions over the video a step, of which the first one is dense.
        assert (each["dense"], each["sparse"]) == ([2, 0, 0], [0, 2, 2])
        assert each["off"] < 5e-4
        assert each["sparsity"] > 5e-3


def test_tensor_parallel_compiled_whole_is_dense_and_says_what_to_do() -> None:
    for each in processes("tensor parallel", "whole", script=SCRIPT):
        assert each["sparse"] == [0, 0, 0]
        (said,) = each["said"]
        assert "sharded over processes (tensor parallelism)" in said
        assert "compile the model's blocks one by one" in said
        assert each["sparsity"] < 5e-4
