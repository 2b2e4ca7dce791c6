"""One changed line: a diffusers video transformer dense and sparse, on whatever machine this is.

The transformer is diffusers' own WanTransformer3DModel, small and with random weights, so this shows that and how
fast it runs, not what a picture looks like.

    python examples/quickstart.py --frames 8 --height 32 --width 32 --layers 2
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median

# Nothing here is fetched; keep diffusers from looking.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import WanTransformer3DModel
from tqdm import tqdm

import svg_compile


def build(layers: int, heads: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=64,
        num_layers=layers,
        ffn_dim=128 * heads,
        in_channels=4,
        out_channels=4,
        text_dim=64,
        freq_dim=64,
    )
    return model.eval()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8, help="latent frames")
    parser.add_argument("--height", type=int, default=32, help="tokens in height")
    parser.add_argument("--width", type=int, default=32, help="tokens in width")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--density", type=float, default=0.3, help="share of query-key pairs a sparse head computes")
    parser.add_argument("--repeat", type=int, default=3, help="timed forwards of each kind")
    args = parser.parse_args(argv)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(args.layers, args.heads).to(device, torch.bfloat16)
    latents = torch.randn(1, 4, args.frames, 2 * args.height, 2 * args.width, dtype=torch.bfloat16)
    inputs = (latents.to(device), torch.tensor([500], device=device), torch.randn(1, 32, 64).to(device, torch.bfloat16))
    options = {"density": args.density, "dense_layers": 0, "dense_steps": 0}

    with torch.inference_mode():
        print(svg_compile.explain(model, *inputs, options=options), "\n")
        dense = torch.compile(model, backend="inductor")
        sparse = torch.compile(model, backend="svg", options=options)
        seconds: dict[str, list[float]] = {"inductor": [], "svg": []}
        outputs: dict[str, torch.Tensor] = {}
        with tqdm(total=2 * (args.repeat + 1), desc="compiling and running", unit="forward") as bar:
            # Interleaved, so that both see the same state of the machine; the first of each compiles.
            for turn in range(args.repeat + 1):
                for name, compiled in (("inductor", dense), ("svg", sparse)):
                    start = time.perf_counter()
                    (outputs[name],) = compiled(*inputs, return_dict=False)
                    if device == "cuda":
                        torch.cuda.synchronize()
                    if turn:
                        seconds[name].append(time.perf_counter() - start)
                    bar.update()

    for name, values in seconds.items():
        print(f"{name:10s} {median(values):8.3f} s a forward")
    print(f"speedup    {median(seconds['inductor']) / median(seconds['svg']):8.2f} x")
    error = (outputs["svg"] - outputs["inductor"]).float().norm() / outputs["inductor"].float().norm()
    print(f"difference {error:8.4f} relative to dense (random weights: no head is sharp, read nothing into it)")


if __name__ == "__main__":
    main()
