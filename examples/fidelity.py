"""How near sparse generation comes to dense generation: by density, by dense steps, and against other ways to plan.

    python examples/fidelity.py --prompts 16                 the whole study; stop it and start it again at will
    python examples/fidelity.py --prompts 4 --only main      the main setting alone: all planners at one density
    python examples/fidelity.py --page docs/fidelity-tables.md    write the tables and their pictures from the rows

Rows are stored one by one in docs/fidelity/rows.jsonl, or in the folder that --out names, and what is there already is
not computed again. Everything runs eagerly in one process: the dense result and the dense steps by the same dense
attention, the sparse ones by svg_compile's own op. Prompts and noise follow from their numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from fidelity_page import write_page
from moving_shapes import Scene, contact_sheet, random_scene
from planned_attention import PlannedAttention
from planners import PLANNERS
from quality import lpips_or_none, psnr, ssim
from svg_compile import VideoLayout
from svg_compile.config import first_step
from video_model import WEIGHTS, WEIGHTS_NAME, Prompt, denoise, keyframes, keyframes_of, load_model

DENSITIES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
DENSE_STEPS = (0.0, 0.1, 0.25, 0.4)
MAIN = (0.3, 0.25)


@dataclass(frozen=True)
class Case:
    """One generation to compare with the dense one of the same prompt."""

    prompt: int
    planner: str
    density: float
    dense_steps: float


def cases(prompts: int, only: str) -> Iterator[Case]:
    """Every planner at the main setting, then the profile over the grid, or over two lines of it.

    What mends the profile goes along the line of densities.
    """
    for prompt in range(prompts):
        for planner in PLANNERS:
            # The floor checks the study itself; "watched" is "shared" with dense attention computed too.
            if planner not in ("floor", "watched") or prompt < 2:
                yield Case(prompt, planner, *MAIN)
    grid = [(density, MAIN[1]) for density in DENSITIES] + [(MAIN[0], share) for share in DENSE_STEPS]
    if only == "all":
        grid += [(density, share) for density in DENSITIES for share in DENSE_STEPS]
    if only != "main":
        for setting in dict.fromkeys(grid):
            for prompt in range(prompts):
                if setting == MAIN:
                    continue
                yield Case(prompt, "profile", *setting)
                if setting[1] == MAIN[1]:
                    watched = ("watched",) if prompt < 2 else ()
                    for planner in ("repair", "widths", "both", "shared", "clusters", *watched):
                        yield Case(prompt, planner, *setting)


class Study:
    """The model, the rows so far, and the dense runs that cases start from."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.dtype = getattr(torch, args.dtype)
        self.model: nn.Module = load_model(args.weights, self.dtype).to(args.device)
        self.steps, self.frames, self.size, self.device = args.steps, args.frames, args.size, args.device
        self.layout = VideoLayout(args.frames, args.size // 4, args.size // 4)
        # Rows of other weights or sizes may stand in the same file; they are no answers to this study's questions.
        checksum = zlib.crc32((args.weights / WEIGHTS_NAME).read_bytes())
        self.setting = {"weights": f"{checksum:08x}", "frames": args.frames, "size": args.size, "steps": args.steps}
        self.setting |= {"dtype": args.dtype, "device": torch.device(args.device).type}
        self.file = args.out / "rows.jsonl"
        args.out.mkdir(parents=True, exist_ok=True)
        self.rows = [row for row in stored(self.file) if all(row[key] == self.setting[key] for key in self.setting)]
        self.dense_run: tuple[int, list[Tensor], float] | None = None

    def has(self, case: Case) -> bool:
        return any(all(row[key] == value for key, value in asdict(case).items()) for row in self.rows)

    def scene(self, prompt: int) -> Scene:
        return random_scene(np.random.default_rng([5, prompt]))

    def prompt(self, number: int) -> Prompt:
        prompt, _ = keyframes_of(self.scene(number), number, frames=self.frames, pixels=self.size)
        return prompt.to(self.device, self.dtype)

    def run(self, case: Case) -> None:
        """Generate, compare, store."""
        dense, seconds = self.dense(case.prompt)
        first = first_step(case.dense_steps, self.steps)
        planner = PLANNERS[case.planner](self.layout, density=case.density, dense_steps=first)
        start = time.perf_counter()
        video = self.generate(self.prompt(case.prompt), planner, first, dense[first])[-1]
        row: dict[str, object] = {**asdict(case), **self.setting, "caption": self.scene(case.prompt).caption}
        row |= {"psnr": psnr(video[0], dense[-1][0]), "ssim": ssim(video[0], dense[-1][0])}
        drawn = ~keyframes(self.frames)
        row["psnr_drawn"] = psnr(video[0][:, drawn], dense[-1][0][:, drawn])
        row |= {"lpips": lpips_or_none(video[0], dense[-1][0]), "seconds": time.perf_counter() - start}
        row |= {"sparse_steps": self.steps - first, "dense_step_seconds": seconds}
        if (case.prompt, case.density, case.dense_steps) == (0, *MAIN):
            for name, clip in ((case.planner, video), ("dense", dense[-1])):
                strip = contact_sheet([clip[0].float().cpu()])
                Image.fromarray(strip).save(self.file.with_name(f"frames_{self.setting['weights']}_{name}.png"))
        kinds = [kind for plan in planner.plans.values() for kind in plan[0, :, 0].tolist()]
        row["temporal_share"] = kinds.count(1) / len(kinds) if kinds else None
        row |= planner.figures()
        self.rows.append(row)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def dense(self, prompt: int) -> tuple[list[Tensor], float]:
        """(the noise and the video after each dense step, the seconds of a step); kept for the last prompt."""
        if self.dense_run is None or self.dense_run[0] != prompt:
            given = self.prompt(prompt)
            start = time.perf_counter()
            videos = self.generate(given, None)
            self.dense_run = prompt, [given.noise, *videos], (time.perf_counter() - start) / self.steps
        return self.dense_run[1:]

    def generate(self, prompt: Prompt, planner: object, first: int = 0, video: Tensor | None = None) -> list[Tensor]:
        """The videos after each step from step `first` on, which goes on from `video`; dense without a planner."""
        loop = denoise(self.model, prompt, steps=self.steps, start=first, video=video)
        if planner is None:
            return list(loop)
        videos = []
        with PlannedAttention(self.layout, planner, len(self.model.blocks)) as mode:  # type: ignore[arg-type]
            mode.step = first
            for video in loop:
                videos.append(video)
                mode.step += 1
        return videos


def stored(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.page is not None:
        write_page(stored(args.out / "rows.jsonl"), args.page, args.out, args.note)
        print(f"wrote {args.page}")
        return
    study = Study(args)
    # By prompt, as one dense run serves all cases of its prompt.
    todo = sorted(
        (case for case in cases(args.prompts, args.only) if not study.has(case)), key=lambda case: case.prompt
    )
    print(f"{len(study.rows)} rows are there, {len(todo)} to go")
    end = time.monotonic() + args.minutes * 60
    for case in (bar := tqdm(todo, desc="fidelity", unit="video")):
        if time.monotonic() > end:
            print("time is up; start again to go on")
            break
        bar.set_postfix_str(f"{case.planner} {case.density} {case.dense_steps}")
        study.run(case)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16, help="prompts, each with noise of its own")
    parser.add_argument("--only", choices=("main", "lines", "all"), default="lines", help="how much of the grid")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no case after this time")
    parser.add_argument("--out", type=Path, default=Path("docs/fidelity"), help="folder of the rows")
    parser.add_argument("--page", type=Path, help="only write this page from the stored rows")
    parser.add_argument("--note", default="", help="a paragraph for the page's head")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
