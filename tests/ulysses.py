"""Context parallelism of diffusers with `backend="svg"`, on CPUs: run by torchrun, see tests/test_ulysses.py.

    torchrun --nproc_per_node 2 tests/ulysses.py whole|blocks|whole-apart|ring|anything [LTX]

Each process prints one line of JSON: what it ran, and how far it is from one process.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent))

import models
import svg_compile
from companions import OPTIONS, compiled, run
from lowering import run_as_traced
from model_inputs import inputs_of
from svg_compile import backend
from svg_compile.runtime.dispatcher import watch

STEPS = 3
SPARSE = {**OPTIONS, "density": 0.3, "dense_steps": 1}


def build(name: str) -> Any:
    if name == "LTX":
        return models.case("ltx_video").build(num_attention_heads=4, cross_attention_dim=64)  # type: ignore[call-arg]
    return models.build("WanTransformer3DModel", **{**models.WAN, "num_attention_heads": 4})


def run_one(model: Any, how: str, inputs: dict[str, Any]) -> tuple[list[torch.Tensor], list[Any]]:
    """The outputs and the forwards of a run of three steps, the first one dense; how: "whole" or "blocks".

    After a "-apart" each process shares the pairs of a layer among its own heads.
    """
    torch._dynamo.reset()
    how, _, apart = how.partition("-")
    compiled(model, how, **SPARSE, share_processes=not apart)
    outputs: list[torch.Tensor] = []
    seen: list[Any] = []
    with watch(seen.append), svg_compile.denoising(model, steps=STEPS) as denoising:
        for output in run(model, inputs, STEPS):
            outputs.append(output)
            denoising.advance()
    return outputs, seen


def pairs(forward: Any) -> list[float]:
    """The mean density of this process's heads in each layer of a forward."""
    found = []
    for plan, grid in zip(forward.plans, forward.grids, strict=True):
        layout = svg_compile.VideoLayout.of([size or 0 for size in grid])
        heads = [layout.density(half_width, kind) for kind, half_width in plan.flatten(0, 1).tolist()]
        found.append(sum(heads) / len(heads))
    return found


def error_of_another_backend(model: Any, inputs: dict[str, Any]) -> str:
    """Why the model does not run with torch's own eager backend either; "" where it does."""
    torch._dynamo.reset()
    model.compile_repeated_blocks(backend="eager", dynamic=False)
    try:
        next(run(model, inputs, 1))
    except Exception as error:
        return str(error)
    return ""


def main(case: str, name: str = "Wan") -> None:
    from diffusers import ContextParallelConfig

    # Frames, rows and columns of tokens: 105 do not divide by two.
    grid = (5, 7, 3) if case == "anything" else (4, 8, 6)
    how = case if case.startswith(("whole", "blocks")) else "blocks"
    inputs = inputs_of(1, grid)
    if name == "LTX":
        inputs = models.case("ltx_video").inputs(1, grid)
        # Its text is spread over the processes, too; its mask has all heads, and diffusers fails on it.
        inputs |= {"encoder_hidden_states": inputs["encoder_hidden_states"][:, :8], "encoder_attention_mask": None}
    one, _ = run_one(build(name), how.replace("blocks", "whole"), inputs)
    model = copy.deepcopy(build(name))
    ways: dict[str, Any] = {"ring_degree": dist.get_world_size()} if case == "ring" else {}
    ways = ways or {"ulysses_degree": dist.get_world_size(), "ulysses_anything": case == "anything"}
    model.enable_parallelism(config=ContextParallelConfig(**ways))
    found: dict[str, Any] = {"rank": dist.get_rank()}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            outputs, seen = run_one(model, how, inputs)
            off = max(float((got - want).abs().max()) for got, want in zip(outputs, one, strict=True))
            found |= {"off": off, "steps": [forward.decision.position.step for forward in seen]}
            found |= {"dense": [forward.decision.dense for forward in seen]}
            found |= {"pairs": [pairs(forward) for forward in seen if not forward.decision.dense]}
            found |= {"sparse": sum(len(forward.layers) for forward in seen if not forward.decision.dense)}
        except Exception as error:
            found["error"] = str(error)
            found["without"] = error_of_another_backend(model, inputs)
    found["said"] = [str(each.message) for each in warned if str(each.message).startswith("svg: ")]
    # One write a line, for both processes write to the same pipe.
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    backend.lower = run_as_traced
    # diffusers divides by the number of accelerators, of which a CPU machine has none.
    torch.accelerator.device_count = lambda: 1
    dist.init_process_group("gloo")
    with torch.no_grad():
        main(*sys.argv[1:])
    dist.barrier()
    dist.destroy_process_group()
