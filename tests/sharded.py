"""What each process of tests/test_sharded.py runs: a model whose weights several processes share.

torchrun --nproc_per_node 2 tests/sharded.py <companion> <whole|blocks>
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import models
import svg_compile
from companions import OPTIONS, compiled, run
from lowering import run_as_traced
from svg_compile import backend
from svg_compile._compat.modules import listed_blocks
from svg_compile.runtime.dispatcher import watch

STEPS = 3
SPARSE = {**OPTIONS, "density": 0.3, "dense_steps": 1, "widths": "uniform"}
# diffusers 0.42 has a plan for none of its video models; this is the one of its image models for the same blocks.
_ATTENTION = {name: "colwise" for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")}
_ATTENTION |= {"to_out.0": "rowwise", "to_add_out": "rowwise"}
_FEED_FORWARD = {f"{name}.{layer}": how for name in ("ff", "ff_context")
                 for layer, how in (("net.0.proj", "colwise"), ("net.2", "rowwise"))}  # fmt: skip


def plan(mlp_ratio: int) -> dict[str, Any]:
    from diffusers.hooks.tensor_parallel import PackedRowwiseParallel

    return {
        **{f"transformer_blocks.*.attn.{name}": how for name, how in _ATTENTION.items()},
        **{f"transformer_blocks.*.{name}": how for name, how in _FEED_FORWARD.items()},
        **{f"single_transformer_blocks.*.attn.{name}": "colwise" for name in ("to_q", "to_k", "to_v")},
        "single_transformer_blocks.*.proj_mlp": "colwise",
        "single_transformer_blocks.*.proj_out": PackedRowwiseParallel([1, mlp_ratio]),
    }


def fsdp(model: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    for _, block in listed_blocks(model):
        fully_shard(block)
    return fully_shard(model)


def ddp(model: Any) -> Any:
    return nn.parallel.DistributedDataParallel(model)


def tensor_parallel(model: Any) -> Any:
    from diffusers import TensorParallelConfig
    from diffusers.hooks import tensor_parallel as hooks

    hooks._SUPPORTED_TP_DEVICES = ("cpu",)
    torch._C._get_accelerator = lambda: torch.device("cpu")
    torch.accelerator.device_count = lambda: 1
    type(model)._tp_plan = plan(int(model.config.mlp_ratio))
    model.enable_parallelism(config=TensorParallelConfig(tp_degree=dist.get_world_size()))
    for _, block in listed_blocks(model):
        if hasattr(block, "attn"):
            block.attn.heads //= dist.get_world_size()
    return model


COMPANIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "FSDP2": ("wan", fsdp),
    "FSDP2 with text": ("hunyuan_video", fsdp),
    "DDP": ("wan", ddp),
    "tensor parallel": ("hunyuan_video", tensor_parallel),
}


def run_one(model: Any, how: str, inputs: dict[str, Any], put: Callable[[Any], Any]) -> tuple[list[Any], list[Any]]:
    """The outputs and the forwards of a run of three steps, the first one dense."""
    torch._dynamo.reset()
    if how == "whole" or put is not ddp:
        model = put(model)
    if how == "blocks":
        for _, block in listed_blocks(model):
            block.compile(backend="svg", dynamic=False, options=SPARSE)
        model = ddp(model) if put is ddp else model
    else:
        compiled(model, how, **SPARSE)
    outputs: list[torch.Tensor] = []
    seen: list[Any] = []
    with watch(seen.append), svg_compile.denoising(model, steps=STEPS) as denoising:
        for output in run(model, inputs, STEPS):
            outputs.append(output)
            denoising.advance()
    return outputs, seen


def main(companion: str, how: str) -> None:
    name, put = COMPANIONS[companion]
    case = models.case(name)
    inputs = case.inputs(1, case.grid)
    one, _ = run_one(case.build(), "whole", inputs, lambda model: model)
    found: dict[str, Any] = {"rank": dist.get_rank()}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        outputs, seen = run_one(case.build(), how, inputs, put)
    # The parts of a product over processes are added in another order.
    plain = list(run(case.build(), inputs, STEPS))
    found["sparsity"] = max(float((got - want).abs().max()) for got, want in zip(outputs, plain, strict=True))
    found["off"] = max(float((got - want).abs().max()) for got, want in zip(outputs, one, strict=True))
    found["dense"] = [sum(len(each.layers) for each in seen if each.decision.dense and each.decision.position.step == i)
                      for i in range(STEPS)]  # fmt: skip
    found["sparse"] = [
        sum(len(each.layers) for each in seen if not each.decision.dense and each.decision.position.step == i)
        for i in range(STEPS)
    ]
    found["said"] = [str(each.message) for each in warned if str(each.message).startswith("svg: ")]
    # One write a line, for both processes write to the same pipe.
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    backend.lower = run_as_traced
    dist.init_process_group("gloo")
    with torch.no_grad():
        main(*sys.argv[1:])
    dist.barrier()
    dist.destroy_process_group()
