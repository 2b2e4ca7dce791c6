"""The command line: `svg-compile explain | dump | masks | plot | bench`.

Exit status: 0 all went well, 1 something failed, and the error says what to do, 2 wrong usage, 3 `explain --check`
found nothing to make sparse.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from svg_compile.bench.cli import bench
from svg_compile.cli_checks import Errors, Fraction, Grid, busy, described, picture, usage, writable
from svg_compile.errors import LayoutError, SvgError

_TARGET_HELP = """TARGET is a diffusers class, with SETTINGS that replace its configuration's defaults:

\b
  svg-compile {command} WanTransformer3DModel num_layers=4
  svg-compile {command} WanTransformer3DModel --config config.json

or FILE.py:FUNCTION or MODULE:FUNCTION, a function without arguments that returns (model, args, kwargs).
"""


@click.group(cls=Errors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="svg-compile", prog_name="svg-compile")
@click.option("--traceback", is_flag=True, help="Show Python's traceback of an error.")
def main(traceback: bool) -> None:
    """Inspect what svg_compile does to a video transformer.

    \b
      svg-compile explain WanTransformer3DModel      which attentions become sparse, and the possible speedup
      svg-compile masks 21x30x52                     a picture of the masks
      svg-compile bench attention                    the speed on this machine

    Models are built without weights, so a model of any size fits on a laptop.
    """


main.add_command(bench)


def _target(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments that every command over a model takes."""
    options = (
        click.argument("target"),
        click.argument("settings", nargs=-1, metavar="[KEY=VALUE]..."),
        click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSON file."),
        click.option("-o", "--option", multiple=True, metavar="KEY=VALUE", help="Backend option, as -o density=0.25."),
        click.option("--latents", type=Grid(), metavar="FxHxW",
                     help="Latent frames x height x width.  [default: the class' usual]"),
        click.option("--text", type=click.IntRange(0), help="Text tokens.  [default: the class' usual]"),
        click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Batch size."),
        click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16",
                     show_default=True, help="Dtype of weights and inputs."),
        click.option("--weights", is_flag=True, help="Build random weights on the CPU, for models that read values."),
    )  # fmt: skip
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@main.command(short_help="Which attentions become sparse, why the others do not, and the possible speedup.",
              help="Print for each attention: sparse, or the reason why not; and the possible speedup.\n\n"
              + _TARGET_HELP.format(command="explain"))  # fmt: skip
@_target
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - is standard output.")
@click.option("--html", "html_file", metavar="FILE", help="Write the report as a page for a browser.")
@click.option(
    "--markdown", "markdown_file", metavar="FILE", help="Write the report as Markdown, to paste into an issue."
)
@click.option("--check", is_flag=True, help="Exit with status 3 if no attention becomes sparse.")
@click.pass_context
def explain(ctx: click.Context, json_file: str, html_file: str, markdown_file: str, check: bool, **asked: Any) -> None:
    import torch

    from svg_compile.inspection.render.terminal import print_report
    from svg_compile.inspection.tracing import explain as explained

    if (json_file, html_file, markdown_file).count("-") > 1:
        raise click.UsageError("only one report can go to standard output: give the others a file.")
    writable(*(file for file in (json_file, html_file, markdown_file) if file != "-"))
    target, options = _load(**asked)
    with torch.no_grad(), busy(f"tracing {asked['target']}"):
        given = {"options": options, **target.kwargs}
        report = _tried(asked["target"], lambda: explained(target.model, *target.args, **given))
    asked_for = ((json_file, report.to_json), (html_file, report.to_html), (markdown_file, report.to_markdown))
    for file, make in asked_for:
        if file:
            _write(file, make())
    if "-" not in (json_file, html_file, markdown_file):
        print_report(report, Console())
    if check and not report.rewritten:
        ctx.exit(3)


@main.command(short_help="The graphs before and after each pass, as files with an index.",
              help="Write the graphs before and after each pass, with an index to open in a browser.\n\n"
              + _TARGET_HELP.format(command="dump"))  # fmt: skip
@_target
@click.option("--out", default="svg_dumps", show_default=True, metavar="FOLDER",
              type=click.Path(file_okay=False), help="Folder for the dump.")  # fmt: skip
@click.option("--code", is_flag=True, help="Also compile, and write Inductor's code; takes minutes for a large model.")
def dump(out: str, code: bool, **asked: Any) -> None:
    import torch

    from svg_compile.inspection.dump_run import dump_graphs

    target, options = _load(**asked)
    with torch.no_grad(), busy(f"{'compiling' if code else 'tracing'} {asked['target']}"):
        process = _tried(
            asked["target"], lambda: dump_graphs(target.model, target.args, target.kwargs, options, out, code)
        )
    for graph in process.graphs:
        click.echo(f"{graph.name}: {graph.summary.partition(chr(10))[0] or 'no attention'}", err=True)
    click.echo(str(process.folder / "index.html"))


@main.command(short_help="A picture of the spatial and the temporal mask.")
@click.argument("layout", type=Grid(), metavar="FxHxW")
@click.option("--text", type=click.IntRange(0), default=0, show_default=True, help="Text tokens.")
@click.option("--text-first", is_flag=True, help="The text is before the video, not after it.")
@click.option("--density", type=Fraction(), default=0.3, show_default=True, help="Share of the pairs to compute.")
@click.option("--block", type=int, default=128, show_default=True, help="Granularity of the band, in tokens.")
@click.option("--out", default="masks.png", show_default=True, metavar="FILE", help="PNG, PDF or SVG, by its ending.")
def masks(layout: Any, text: int, text_first: bool, density: float, block: int, out: str) -> None:
    """Draw the mask of a spatial and of a temporal head.

    FxHxW are frames, height and width in tokens, as `svg-compile explain` prints them:

    \b
      svg-compile masks 21x30x52
      svg-compile masks 33x45x80 --text 256 --density 0.2 --out masks.pdf
    """
    from svg_compile.inspection.pictures import draw_masks, save
    from svg_compile.layout import VideoLayout

    try:
        frames, height, width = layout
        drawn = VideoLayout(frames, height, width, text, text_first, block)
    except LayoutError as error:
        raise usage(error) from error
    picture(out)
    with busy(f"drawing {drawn.tokens:,} tokens"):
        save(draw_masks(drawn, density), out)
    click.echo(out)


@main.command(short_help="Pictures of a recording: kinds and margins of the heads.")
@click.argument("recording", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", default="plans", show_default=True, metavar="NAME", help="Writes NAME_kinds.png and NAME_margins.png."
)
@click.option("--layer", metavar="PATH", help="Only this layer.  [default: all]")
def plot(recording: Path, out: str, layer: str | None) -> None:
    """Draw the kind of each head over layers, steps and heads, and the margin of the choice.

    RECORDING is a file that `svg_compile.record(...)` saved: recording.save("plans.npz").

    \b
      svg-compile plot plans.npz
      svg-compile plot plans.npz --layer blocks.3.attn1 --out third
    """
    from svg_compile.inspection.pictures import save
    from svg_compile.inspection.recording.plan_pictures import draw_kinds, draw_margins
    from svg_compile.inspection.recording.recorded import Recording

    out = out.removesuffix(".png")
    writable(*(f"{out}_{name}.png" for name in ("kinds", "margins")))
    plans = Recording.load(recording)
    plans = plans if layer is None else plans.select(layer=layer)
    click.echo(plans.summary)
    for name, draw in (("kinds", draw_kinds), ("margins", draw_margins)):
        with busy(f"drawing {name}"):
            save(draw(plans), f"{out}_{name}.png")
        click.echo(f"{out}_{name}.png")


def _load(
    target: str, settings: tuple[str, ...], config: Path | None, option: tuple[str, ...], latents: Any,
    text: int | None, batch: int, dtype: str, weights: bool,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """The target and the backend's options."""
    from svg_compile.config import split_options
    from svg_compile.targets import Request, load, values

    try:
        options, replaced = values(option), values(settings)
        # Wrong options raise before anything is built.
        split_options(options)
    except SvgError as error:
        raise usage(error) from error
    if ":" in target and (settings or config):
        raise click.UsageError("settings and --config belong to a diffusers class; a function takes none.")
    given = {} if config is None else _configuration(config)
    with busy(f"building {target}"):
        return load(target, Request({**given, **replaced}, batch, latents, text, dtype, weights)), options


def _configuration(file: Path) -> dict[str, Any]:
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SvgError(f"{file} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise SvgError(f"{file} is not a configuration: expected a JSON object, got {type(given).__name__}.")
    return given


def _tried(target: str, call: Callable[[], Any]) -> Any:
    """The result of a call that runs a model; SvgError if the model fails."""
    try:
        return call()
    except (SvgError, OSError):
        raise
    except Exception as error:
        raise SvgError(
            f"{target} cannot be traced: {described(error).rstrip('.')}. Do its inputs fit it? Where its code reads "
            "values, add --weights. `svg-compile --traceback explain ...` shows where it fails."
        ) from error


def _write(file: str, text: str) -> None:
    if file == "-":
        click.echo(text.rstrip("\n"))
    else:
        Path(file).write_text(text, encoding="utf-8")
        click.echo(file, err=True)
