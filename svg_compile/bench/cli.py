"""The commands of `svg-compile bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from svg_compile.bench.asked import finish, place_of, prepare, shape_of, store, transformer
from svg_compile.cli_checks import Fraction, Grid, usage
from svg_compile.errors import SvgError
from svg_compile.zoo import MODELS, PRESETS

_DTYPES = click.Choice(["bfloat16", "float16", "float32"])
_out = click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
                    help="Store the figures with machine and versions, for `bench page`.")  # fmt: skip
_dtype = click.option(
    "--dtype", type=_DTYPES, default="bfloat16", show_default=True, help="Dtype of weights and inputs."
)
_seconds = click.option("--seconds", type=click.FloatRange(0, min_open=True), default=float("inf"), metavar="NUMBER",
                        help="Start no new turn after this time.  [default: none]")  # fmt: skip
_device = click.option("--device", metavar="NAME", help="cuda or cpu.  [default: cuda if available]")
_threads = click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's]")


@click.group()
def bench() -> None:
    """Time sparse against dense attention, in one run and in turns: an attention, a block, a whole forward.

    \b
      svg-compile bench attention --grid 8x32x32 --json attention.json
      svg-compile bench page attention.json --out results.md

    `--json` stores medians, ratios, machine and versions; `bench page` makes tables and plots from them.
    """


@bench.command(short_help="One layer's attention, by every available implementation.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="[default: hunyuanvideo-720p on a GPU, else small]")
@click.option("--grid", type=Grid(), metavar="FxHxW", help="Token grid, instead of the preset's.")
@click.option("--text", type=click.IntRange(0), help="Text tokens, instead of the preset's.")
@click.option("--text-first/--text-last", default=None, help="Text before or after the video.")
@click.option("--heads", type=click.IntRange(1), help="Heads, instead of the preset's.")
@click.option("--head-dim", type=click.IntRange(16, 256), help="Head dim, instead of the preset's.")
@click.option("--batch", type=click.IntRange(1), help="Batch size, instead of the preset's.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(["spatial", "temporal", "mixed"]),
    help="Kind of heads; may be repeated.  [default: all three]",
)
@click.option(
    "--density",
    "densities",
    multiple=True,
    type=Fraction(),
    help="Share of the pairs to compute; may be repeated.  [default: 0.3]",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME",
    help="One of cudnn, flash, sdpa (dense), svg, svg-MxNxWxS (its Triton kernel with another tile), hopper, flex, "
    "flex-flash, transpose; may be repeated.  [default: all but hopper, flex-flash and other tiles]",
)
@click.option(
    "--rows", type=click.IntRange(1), default=64, show_default=True, help="Query rows that the profile samples."
)
@click.option("--repeats", type=click.IntRange(1), help="Number of turns.  [default: 20 on a GPU, else 7]")
@_seconds
@_dtype
@_device
@_threads
@_out
def attention(preset: str | None, grid: Any, device: str | None, threads: int | None, json_file: Path | None,
              **asked: Any) -> None:  # fmt: skip
    """Time one layer's attention: dense by each backend of SDPA, svg::attention, and alternatives to it.

    \b
      svg-compile bench attention --preset wan-720p --density 0.2 --density 0.3
      svg-compile bench attention --grid 8x32x32 --heads 4 --head-dim 64 --peer sdpa --peer svg
    """
    from svg_compile.bench import attention as benchmark
    from svg_compile.bench.peers import peer
    from svg_compile.targets import DTYPES

    try:
        for name in asked["peers"]:
            peer(name)
    except SvgError as error:
        raise usage(error) from error
    prepare(json_file)
    place = place_of(device, threads)
    gpu = place.type == "cuda"
    shape = shape_of(PRESETS[preset or ("hunyuanvideo-720p" if gpu else "small")], grid, asked)
    chosen = {name: asked[name] for name in ("kinds", "densities", "peers") if asked[name]}
    repeats = asked["repeats"] or (20 if gpu else 7)
    request = benchmark.Request(
        shape,
        DTYPES[asked["dtype"]],
        place,
        sampled_rows=asked["rows"],
        repeats=repeats,
        seconds=asked["seconds"],
        **chosen,
    )
    finish([benchmark.measure(request, lambda result: store([result], json_file))], json_file)


def _model_options(command: Any) -> Any:
    for option in reversed(
        (
            click.option(
                "--model", type=click.Choice(list(MODELS)), help="[default: hunyuanvideo on a GPU, else small]"
            ),
            click.option(
                "--density",
                type=Fraction(),
                default=0.25,
                show_default=True,
                help="Share of the pairs to compute.",
            ),
            click.option(
                "--latents", type=Grid(), metavar="FxHxW", help="Size of the latents, before patches. [default: 720p]"
            ),
            click.option(
                "--mode", default="default", show_default=True, help="Mode of torch.compile, for dense and sparse."
            ),
            click.option("--repeats", type=click.IntRange(1), default=10, show_default=True, help="Number of turns."),
            _seconds,
            _dtype,
            _device,
            _threads,
            _out,
        )
    ):
        command = option(command)
    return command


@bench.command(short_help="One transformer block of each class, and a projection to a whole run.")
@click.option(
    "--compile-times/--no-compile-times",
    default=True,
    show_default=True,
    help="Also time compiles with empty and with full caches; takes five more compiles.",
)
@click.option(
    "--once",
    is_flag=True,
    help="Time one forward of each, under the profiler, after one that compiles: for sizes that take minutes per run.",
)
@_model_options
def block(**asked: Any) -> None:
    """Time a real model of one block, random weights: dense by inductor, sparse by svg, part by part.

    The time of a whole run is projected from it: blocks times steps.

    \b
      svg-compile bench block --model wan-14b --json block.json
      svg-compile bench block --model wan-14b --latents 21x60x104 --once
    """
    from svg_compile.bench.transformer import measure_blocks

    model, options, json_file = transformer(**asked)
    several = len(model.blocks) > 1
    finish(measure_blocks(model, options, lambda results: store(results, json_file, several)), json_file)


@bench.command(short_help="A whole transformer's forward.")
@_model_options
def forward(**asked: Any) -> None:
    """Time one forward of a whole real model, random weights: dense by inductor, sparse by svg, with peak memory.

    \b
      svg-compile bench forward --model small --dtype float32
    """
    from svg_compile.bench.transformer import measure_forward

    model, options, json_file = transformer(**asked)
    finish([measure_forward(model, options)], json_file)


@bench.command(short_help="The CPU time of tracing a whole model.")
@click.option(
    "--model", "models", multiple=True, metavar="CLASS", help="A class of diffusers.  [default: four classes]"
)
@_out
def trace(models: tuple[str, ...], json_file: Path | None) -> None:
    """Time the trace of whole models without weights: the first call of a model compiled by blocks, and explain.

    \b
      svg-compile bench trace --model WanTransformer3DModel --json trace.json
    """
    from svg_compile.bench import traces

    prepare(json_file)
    finish([traces.measure(models or traces.CLASSES, lambda row: click.echo(json.dumps(row), err=True))], json_file)


@bench.command(short_help="Tables and plots of stored results.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="The page, as Markdown; plots are written to the same folder.")  # fmt: skip
@click.option("--heading", default="Benchmarks", show_default=True, help="Heading of the page.")
def page(files: tuple[Path, ...], out: Path, heading: str) -> None:
    """Write a page of the results in FILES, as `--json` stored them.

    \b
      svg-compile bench page attention.json block.json --out results.md
    """
    from svg_compile.bench.page import write

    prepare(out)
    for path in write(files, out, heading):
        click.echo(path)
