"""What the commands of `svg-compile bench` make of what they were asked, and where their results go."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from svg_compile.cli_checks import usage, writable
from svg_compile.errors import SvgError


def prepare(file: Path | None) -> None:
    """Make the folder of a file that is written at the end; SvgError where it could not be written."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        writable(file)


def place_of(device: str | None, threads: int | None) -> Any:
    """The device; the process is the benchmark's own, so its thread count is too."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise click.UsageError(f"--device: {error}") from error
    if place.type not in ("cpu", "cuda"):
        raise click.UsageError(f"--device: expected cuda or cpu, got {device}.")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise SvgError("there is no GPU that torch can use here: leave --device out, or say --device cpu.")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise SvgError(f"there is no {place} here, only {torch.cuda.device_count()} GPUs, counted from 0.")
    return place


def shape_of(shape: Any, grid: Any, asked: dict[str, Any]) -> Any:
    """The preset with what was asked for in its place."""
    from dataclasses import replace

    layout = shape.layout
    if grid:
        frames, height, width = grid
        layout = replace(layout, frames=frames, height=height, width=width)
    if asked["text"] is not None:
        layout = replace(layout, text_len=asked["text"])
    if asked["text_first"] is not None:
        layout = replace(layout, text_first=asked["text_first"])
    changed = {name: asked[name] for name in ("heads", "head_dim", "batch") if asked[name] is not None}
    name = shape.name if layout == shape.layout and not changed else "custom"
    return replace(shape, name=name, layout=layout, **changed)


def transformer(
    model: str | None,
    latents: Any,
    device: str | None,
    threads: int | None,
    json_file: Path | None,
    **asked: Any,
) -> tuple[Any, Any, Path | None]:
    """The model in the size asked for, the options and where to store the results of `bench block` and `forward`."""
    from svg_compile.bench.transformer import Options
    from svg_compile.config import split_options
    from svg_compile.zoo import MODELS

    prepare(json_file)
    try:
        split_options(None, asked["mode"])
    except SvgError as error:
        raise usage(error) from error
    place = place_of(device, threads)
    chosen = MODELS[model or ("hunyuanvideo" if place.type == "cuda" else "small")]
    return replace(chosen, latents=latents or chosen.latents), Options(place, **asked), json_file


def finish(results: list[dict[str, Any]], json_file: Path | None) -> None:
    """Store the results and print them."""
    from rich import box
    from rich.console import Console

    from svg_compile.bench.tables import conditions, notes, table, title

    written = store(results, json_file, several=len(results) > 1)
    console = Console(width=None if Console().is_terminal else 160, highlight=False, soft_wrap=False)
    for result in results:
        click.echo(title(result))
        figures = table(result)
        console.print(figures.rich(no_wrap=figures.headers, box=box.SIMPLE, pad_edge=False))
        for line in [*notes(result), conditions(result)]:
            click.echo(line)
    for file in written:
        click.echo(file, err=True)


def store(results: list[dict[str, Any]], json_file: Path | None, several: bool = False) -> list[Path]:
    """One file each, numbered where there are or will be several -> the files."""
    if json_file is None:
        return []
    json_file.parent.mkdir(parents=True, exist_ok=True)
    files = [json_file.with_stem(f"{json_file.stem}_{n + 1}") if several else json_file for n in range(len(results))]
    for file, result in zip(files, results, strict=True):
        file.write_text(json.dumps(result, indent=1) + "\n")
    return files
