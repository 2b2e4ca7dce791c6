"""A card of 24 GB: float8 weights that wait in main memory, an adapter, and sparse attention.

    pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-14B-Diffusers", torch_dtype=torch.bfloat16)
    pipe.load_lora_weights(...)
    prepare(pipe.transformer, torch.device("cuda"))
    compile_blocks(pipe.transformer, "svg")
    svg_compile.attach(pipe)

This script does the same to the example model, on whatever machine this is:

    pip install torchao
    python examples/small_card.py
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from torchao.quantization import Float8WeightOnlyConfig, quantize_

from miniature import OPTIONS, arguments, compare


def prepare(model: Any, device: torch.device) -> None:
    """Weights are kept in float8 and in main memory; each block's are brought to the device while the one before it
    runs. Quantised by hooks (`enable_layerwise_casting`) the model would run as plain Python, layer by layer.
    """
    in_blocks = {module for block in model.blocks for module in block.modules() if isinstance(module, torch.nn.Linear)}
    quantize_(model, Float8WeightOnlyConfig(), filter_fn=lambda module, path: module in in_blocks)
    model.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )


def compile_blocks(model: Any, backend: str) -> None:
    """One compile for all blocks. The options are those of this backend; Inductor takes none of them."""
    options = OPTIONS if backend == "svg" else None
    model.compile_repeated_blocks(backend=backend, options=options, dynamic=False)


def add_adapter(model: Any) -> None:
    """A random adapter, in the place of one that was trained."""
    torch.manual_seed(0)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    model.add_adapter(LoraConfig(r=4, lora_alpha=1, init_lora_weights=False, target_modules=targets))


def main(argv: list[str] | None = None) -> tuple[float, int]:
    def with_adapter(model: Any, device: torch.device) -> None:
        add_adapter(model)
        prepare(model, device)

    return compare(arguments(__doc__, argv), with_adapter, compile_blocks)


if __name__ == "__main__":
    main()
