"""Procedural videos: textured shapes that move, bounce, turn, hide one another and change, before a drifting scene.

Every video is drawn from its number alone, so a data set is a seed: nothing is downloaded or stored. A caption names
its contents, from a small vocabulary:

    red striped circle bouncing, small blue plain square orbiting; waves

    python examples/moving_shapes.py --count 8 --out out/moving_shapes.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

COLOURS = {
    "red": (0.90, 0.16, 0.14),
    "orange": (0.98, 0.55, 0.10),
    "yellow": (0.97, 0.86, 0.20),
    "green": (0.16, 0.68, 0.28),
    "cyan": (0.14, 0.74, 0.80),
    "blue": (0.16, 0.30, 0.88),
    "purple": (0.58, 0.22, 0.80),
    "white": (0.96, 0.96, 0.96),
}
SHAPES = ("circle", "square", "triangle", "ring")
TEXTURES = ("plain", "striped", "checked", "dotted")
MOTIONS = ("bouncing", "orbiting", "growing", "fading", "spinning")
SIZES = ("small", "large")
BACKGROUNDS = ("sky", "waves", "hills", "night")
MAX_SHAPES = 2
# One word of each kind a shape, then the background; 0 pads a shape that is not there.
CAPTION_LENGTH = 5 * MAX_SHAPES + 1
_WORDS = ("", *SIZES, *COLOURS, *TEXTURES, *SHAPES, *MOTIONS, *BACKGROUNDS)
VOCABULARY = {word: index for index, word in enumerate(_WORDS)}


@dataclass(frozen=True)
class Thing:
    """One shape of a scene, in words."""

    size: str
    colour: str
    texture: str
    shape: str
    motion: str

    @property
    def words(self) -> tuple[str, ...]:
        return self.size, self.colour, self.texture, self.shape, self.motion


@dataclass(frozen=True)
class Scene:
    """What a video shows; the later things stand in front."""

    things: tuple[Thing, ...]
    background: str

    @property
    def caption(self) -> str:
        return ", ".join(" ".join(thing.words) for thing in self.things) + f"; {self.background}"

    def tokens(self) -> Tensor:
        """The caption as int64 [CAPTION_LENGTH] indices into the vocabulary."""
        words = [word for thing in self.things for word in thing.words]
        words += [""] * (5 * MAX_SHAPES - len(words)) + [self.background]
        return torch.tensor([VOCABULARY[word] for word in words])


def parse(caption: str) -> Scene:
    """The scene that a caption names; a word out of place is an error that lists what could stand there."""
    listed, _, background = caption.partition(";")
    things = []
    for text in listed.split(","):
        words = text.split()
        kinds = (SIZES, tuple(COLOURS), TEXTURES, SHAPES, MOTIONS)
        if len(words) != len(kinds):
            raise ValueError(f"a shape is 'size colour texture shape motion', got {text.strip()!r}")
        for word, known in zip(words, kinds, strict=True):
            if word not in known:
                raise ValueError(f"{word!r} is not among {', '.join(known)}")
        things.append(Thing(*words))
    if len(things) > MAX_SHAPES:
        raise ValueError(f"at most {MAX_SHAPES} shapes, got {len(things)}")
    background = background.strip() or BACKGROUNDS[0]
    if background not in BACKGROUNDS:
        raise ValueError(f"{background!r} is not among {', '.join(BACKGROUNDS)}")
    return Scene(tuple(things), background)


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene of one or two things of different colours."""
    colours = rng.permutation(list(COLOURS))
    things = tuple(
        Thing(
            str(rng.choice(SIZES)),
            str(colours[index]),
            str(rng.choice(TEXTURES)),
            str(rng.choice(SHAPES)),
            str(rng.choice(MOTIONS)),
        )
        for index in range(int(rng.integers(1, MAX_SHAPES + 1)))
    )
    return Scene(things, str(rng.choice(BACKGROUNDS)))


def render(
    scene: Scene,
    rng: np.random.Generator,
    frames: int,
    height: int,
    width: int,
    *,
    pixels_per_unit: float | None = None,
    frames_per_unit: float | None = None,
) -> Tensor:
    """The video, float32 [3, frames, height, width] in [-1, 1]; `rng` decides places, speeds and phases.

    Without the two scales a video is one unit of time long and two units of space wide, however it is sampled. With
    them, smaller and shorter videos show less of the world, at the same size of things in pixels and the same speed in
    pixels a frame: what a model learns on them holds on larger ones.
    """
    unit = pixels_per_unit or min(height, width) / 2
    length = 1.0 if frames_per_unit is None else (frames - 1) / frames_per_unit
    start = rng.uniform(0, max(0.0, 1 - length))
    time = np.linspace(start, start + length, frames, dtype=np.float32)[:, None, None]
    half = np.array([height, width]) / (2 * unit)
    y, x = np.meshgrid(
        np.linspace(-half[0], half[0], height, dtype=np.float32),
        np.linspace(-half[1], half[1], width, dtype=np.float32),
        indexing="ij",
    )
    picture = _background(scene.background, rng, time, y[None], x[None])
    for thing in scene.things:
        colour, cover = _thing(thing, rng, time, y[None], x[None], half, 1 / unit)
        picture = picture * (1 - cover[..., None]) + colour * cover[..., None]
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(3, 0, 1, 2), dtype=np.float32)) * 2 - 1


def video(
    number: int, frames: int = 16, height: int = 64, width: int = 64, seed: int = 0, **scales: float
) -> tuple[Tensor, Scene]:
    """Video `number` of the endless data set `seed`: (float32 [3, F, H, W] in [-1, 1], its scene).

    `scales`: `render`'s pixels_per_unit and frames_per_unit.
    """
    rng = np.random.default_rng([seed, number])
    scene = random_scene(rng)
    return render(scene, rng, frames, height, width, **scales), scene


def _background(kind: str, rng: np.random.Generator, time: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    drift = rng.uniform(-0.6, 0.6) * time + rng.uniform(0, 6.28)
    level = rng.uniform(0, 6.28)
    if kind == "sky":
        shade = 0.55 + 0.25 * y + 0.12 * np.sin(3 * (x + drift) + 2 * y + level) * np.cos(2.3 * x - drift)
        low, high = (0.25, 0.45, 0.75), (0.75, 0.88, 0.98)
    elif kind == "waves":
        shade = 0.5 + 0.5 * np.sin(9 * y + 1.2 * np.sin(3 * x + 4 * drift) + 6 * drift)
        low, high = (0.05, 0.25, 0.38), (0.20, 0.52, 0.60)
    elif kind == "hills":
        ridge = 0.25 * np.sin(2.5 * (x + 2 * drift)) + 0.12 * np.sin(6 * (x + 2 * drift) + 1)
        shade = np.clip((y - ridge) * 12, 0, 1) + 0 * time
        low, high = (0.80, 0.78, 0.66), (0.30, 0.42, 0.22)
    else:
        stars = np.sin(11 * (x + drift)) * np.sin(11 * y + 1.5 * np.sin(4 * (x + drift)) + level)
        shade = np.clip((stars - 0.7) * 4, 0, 1) + 0.15 * (1 - y)
        low, high = (0.03, 0.03, 0.12), (0.80, 0.80, 0.95)
    mix = np.clip(shade, 0, 1)[..., None].astype(np.float32)
    return np.array(low, np.float32) * (1 - mix) + np.array(high, np.float32) * mix


def _thing(
    thing: Thing,
    rng: np.random.Generator,
    time: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    half: np.ndarray,
    pixel: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(colour [F, H, W, 3], cover [F, H, W] in 0 to 1) of one thing; `half`: half of the picture's height and width."""
    radius = {"small": 0.20, "large": 0.31}[thing.size] * np.ones_like(time)
    start, speed = rng.uniform(-0.5, 0.5, 2) * half, rng.uniform(0.5, 1.1, 2) * rng.choice([-1, 1], 2)
    phase, turn = rng.uniform(0, 6.28), rng.choice([-1, 1])
    angle, cover_share = 0 * time, 1.0 + 0 * time
    if thing.motion == "orbiting":
        centre = [0.45 * half[0] * np.sin(phase + turn * 5 * time), 0.45 * half[1] * np.cos(phase + turn * 5 * time)]
    elif thing.motion == "bouncing":
        reach = np.maximum(half[:, None, None, None] - radius, 0.05)
        centre = [_bounce(start[i] + 1.6 * speed[i] * time, reach[i]) for i in range(2)]
    else:
        centre = [start[i] + 0.25 * speed[i] * time for i in range(2)]
    if thing.motion == "growing":
        radius = radius * (0.55 + 0.9 * time)
    elif thing.motion == "fading":
        cover_share = 0.5 + 0.5 * np.cos(phase + 6.28 * time)
    elif thing.motion == "spinning":
        angle = phase + turn * 5 * time
    dy, dx = y - centre[0], x - centre[1]
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / radius
    u = (np.sin(angle) * dy + np.cos(angle) * dx) / radius
    distance = {
        "circle": np.hypot(u, v) - 1,
        "ring": np.abs(np.hypot(u, v) - 0.75) - 0.25,
        "square": np.maximum(np.abs(u), np.abs(v)) - 0.85,
        "triangle": np.maximum(v - 0.6, np.abs(u) * 0.866 - v * 0.5 - 0.5),
    }[thing.shape]
    # One pixel of slope at the edge: shapes are not jagged and move by less than a pixel smoothly.
    cover = np.clip(0.5 - distance * radius / pixel, 0, 1) * cover_share
    tone = {
        "plain": np.ones_like(u),
        "striped": _soft(np.sin(7 * u)),
        "checked": _soft(np.sin(5 * u) * np.sin(5 * v)),
        "dotted": _soft(np.cos(6 * u) + np.cos(6 * v) - 0.8),
    }[thing.texture]
    # Lit from above on the left, whichever way the thing is turned.
    light = np.clip(0.92 - 0.16 * (dx + dy) / radius, 0.6, 1.1)
    base = np.array(COLOURS[thing.colour], np.float32)
    colour = base * ((0.35 + 0.65 * tone) * light)[..., None]
    return np.minimum(colour, 1).astype(np.float32), cover.astype(np.float32)


def _bounce(position: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """A straight path folded between walls at -reach and reach."""
    folded = np.mod(position + reach, 4 * reach)
    return np.where(folded > 2 * reach, 4 * reach - folded, folded) - reach


def _soft(wave: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 4 * wave, 0, 1)


def contact_sheet(videos: list[Tensor], columns: int = 8) -> np.ndarray:
    """uint8 [H', W', 3]: one row a video, `columns` of its frames from first to last."""
    rows = []
    for clip in videos:
        picks = np.linspace(0, clip.shape[1] - 1, columns).round().astype(int)
        rows.append(torch.cat([clip[:, pick] for pick in picks], dim=2))
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0)
    return ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=8, help="videos to draw")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=64, help="pixels in height and width")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/moving_shapes.png"), help="contact sheet to write")
    args = parser.parse_args()
    from PIL import Image

    clips = []
    for number in range(args.count):
        clip, scene = video(number, args.frames, args.size, args.size, args.seed)
        clips.append(clip)
        print(f"{number:3d}  {scene.caption}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(contact_sheet(clips)).save(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
