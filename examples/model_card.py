"""Publish a training run: its weights, samples at full size, its loss curve and a model card, in one folder.

python examples/model_card.py --run out/train --hardware "2 cores of an AMD EPYC"
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from PIL import Image
from tqdm import tqdm

from moving_shapes import contact_sheet, parse
from train_video_dit import SHOWN, draw_losses
from video_model import KEYFRAME_EVERY, SCALES, SHIFT, WEIGHTS, WEIGHTS_NAME, denoise, keyframes_of, load_model

CARD = """---
license: apache-2.0
library_name: diffusers
tags: [image-to-video, video-diffusion, sparse-attention]
---

# Moving shapes: a small video diffusion transformer

diffusers' `WanTransformer3DModel`, {parameters:.1f} million parameters: {layers} layers of {heads} heads of
{head_dim} channels, MLPs {ffn} wide. Given a caption and keyframes, every {every}th frame and the last, it draws what
moves between. It works on pixels, one token for 4 x 4 pixels of one frame, and was made to show sparse attention on a
model that was really trained: `python examples/demo.py`.

![Samples: {frames} frames of {size} x {size} pixels, {sample_steps} steps, 8 frames shown](samples.png)

Each sample stands above the scene whose keyframes it was given; captions, from above:

{captions}

## Data

Procedural videos of `examples/moving_shapes.py`: one or two textured shapes that bounce, orbit, grow, fade or spin
before a drifting background. Every video follows from a number; nothing was downloaded, and there is nothing of
anybody's in it. A caption is a sequence of words of a small vocabulary, embedded by fixed random vectors.

## Training

`examples/train_video_dit.py`, flow matching (predict noise - data), levels of noise logit-normal with shift {shift:g}
(half of it for single frames), Muon for the blocks' matrices and AdamW for the rest, the weights averaged over steps.
Nine tenths of the videos are learned with their keyframes given, the rest with the first and the last frame alone;
single frames with none. Where a stage has a guidance, it was taught (model guidance, arXiv 2502.12154), so
that a sample takes one call a step.

- Steps: {steps:,} ({stages}; steps:frames:pixels:batch, and the guidance taught where there is a fifth number).
- Scale: {unit:g} pixels to a unit of space and {rate:g} frames to a unit of time at every size.
- Hardware: {hardware}.
- Last loss: {loss:.4f}.

![Loss](losses.png)

## Use

```python
from video_model import load_model  # examples/video_model.py

model = load_model()
```

Its input has 7 channels: the noisy video, the frames that are given (0 elsewhere), and 1 where they are given
(`keyframes_of`). Sample with `FlowMatchEulerDiscreteScheduler(shift={shift:g})`, 16 steps and more, without guidance,
at {frames} x {size} x {size} pixels ({tokens:,} tokens): `denoise`.

## Limits

It draws the shapes of its data and nothing else. {limits}

## Licence

Apache-2.0, as the repository.
"""


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    args.to.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", WEIGHTS_NAME):
        shutil.copyfile(args.run / "weights" / name, args.to / name)
        (args.to / name).chmod(0o644)
    state = torch.load(args.run / "checkpoint.pt", map_location="cpu", weights_only=True)
    draw_losses([tuple(pair) for pair in state["losses"]], args.to / "losses.png")

    dtype = torch.bfloat16
    model = load_model(args.to, dtype).to(args.device)
    clips = []
    for number, caption in enumerate(SHOWN):
        prompt, truth = keyframes_of(parse(caption), number, frames=args.frames, pixels=args.size)
        loop = denoise(model, prompt.to(args.device, dtype), steps=args.steps)
        *_, video = tqdm(loop, total=args.steps, desc=f"sample {number + 1} of {len(SHOWN)}", unit="step")
        clips += [video[0].float().cpu(), truth]
    Image.fromarray(contact_sheet(clips)).save(args.to / "samples.png")

    config = model.config
    card = CARD.format(
        parameters=sum(weight.numel() for weight in model.parameters()) / 1e6,
        layers=config.num_layers,
        heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        ffn=config.ffn_dim,
        frames=args.frames,
        size=args.size,
        tokens=args.frames * (args.size // 4) ** 2,
        every=KEYFRAME_EVERY,
        captions="\n".join(f"{number}. {caption}" for number, caption in enumerate(SHOWN, 1)),
        shift=SHIFT,
        steps=state["step"],
        sample_steps=args.steps,
        stages=args.stages,
        unit=SCALES["pixels_per_unit"],
        rate=SCALES["frames_per_unit"],
        hardware=args.hardware,
        loss=state["losses"][-1][1],
        limits=args.limits,
    )
    (args.to / "README.md").write_text(card)
    print(f"wrote {args.to}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of train_video_dit.py")
    parser.add_argument("--to", type=Path, default=WEIGHTS)
    parser.add_argument("--hardware", required=True, help='what it was trained on and how long, for the card: "..."')
    parser.add_argument("--stages", default="as in the script", help="the stages that were run, for the card")
    parser.add_argument("--limits", default="", help="a sentence on what does not work, for the card")
    parser.add_argument("--steps", type=int, default=24, help="denoising steps of the samples")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
