"""Inductor's caches: a second process hits both, and any option that changes a result changes the key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RUN = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from toy import ToyVideoDiT, latents
from torch._dynamo.utils import counters
base = {"min_tokens": 0, "dense_layers": 0, "dense_steps": 0, "block": 8, "on_error": "raise", "strict": True}
out = {}
with torch.no_grad():
    for name, options in json.loads(sys.argv[2]).items():
        torch._dynamo.reset()
        counters.clear()
        torch.compile(ToyVideoDiT(layers=2), backend="svg", options={**base, **options})(latents())
        out[name] = [counters["inductor"]["fxgraph_cache_hit"], counters["aot_autograd"]["autograd_cache_hit"]]
print(json.dumps(out))
"""
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "density": {"density": 0.4},
    "block": {"block": 16},
    "sampled_rows": {"sampled_rows": 32},
    "engine": {"engine": "reference"},
    "dense_layers": {"dense_layers": 1},
    "repair": {"repair": False},
}


def run(cache: Path, variants: dict[str, Any]) -> dict[str, list[int]]:
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    command = [sys.executable, "-P", "-c", RUN, str(Path(__file__).parent), json.dumps(variants)]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    hits: dict[str, list[int]] = json.loads(result.stdout.splitlines()[-1])
    return hits


def test_a_second_process_hits_both_caches_and_every_semantic_option_is_in_the_key(tmp_path: Path) -> None:
    first = run(tmp_path, VARIANTS)
    assert first == {name: [0, 0] for name in VARIANTS}
    second = run(tmp_path, {"base": {}, "density": VARIANTS["density"]})
    assert all(aot == 1 for _, aot in second.values()), second
