"""Checks of the commands' arguments before any work begins, and how errors are printed.

A wrong argument is wrong usage and exits with 2; whatever fails later exits with 1. Neither shows a traceback, unless
`svg-compile --traceback` asks for it.
"""

from __future__ import annotations

import errno
import math
import os
import sys
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from svg_compile.errors import NeedsData, SvgError


class Errors(click.Group):
    """Shows errors in one line, without a traceback unless it is asked for."""

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            # Names of modules may hold what the terminal cannot show; a replacement is better than no report.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except Exception as error:
            broken_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE
            if isinstance(error, (click.ClickException, click.exceptions.Exit, click.Abort)) or broken_pipe:
                raise
            if ctx.params["traceback"]:
                raise
            raise click.ClickException(_message(error)) from error


def _message(error: Exception) -> str:
    if isinstance(error, NeedsData):
        return f"{error} Here: --weights, and settings for a small model."
    if isinstance(error, (SvgError, OSError)):
        return str(error)
    return f"{described(error)}\n`svg-compile --traceback ...` shows where it comes from."


def described(error: BaseException) -> str:
    """An error of someone else's in one line: its type and the first line of what it says."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class Grid(click.ParamType):
    """FxHxW as three sizes."""

    name = "FxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from svg_compile.targets import grid

        try:
            return grid(value) if isinstance(value, str) else value
        except SvgError as error:
            self.fail(str(error), param, ctx)


class Fraction(click.FloatRange):
    """A number above 0 and up to 1."""

    def __init__(self) -> None:
        super().__init__(0, 1, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        # NaN fails no comparison of a range.
        return self.fail(f"{value} is no number.", param, ctx) if math.isnan(number) else number


def usage(error: Exception) -> click.UsageError:
    """An error of ours that an argument led to, as one of usage."""
    return click.UsageError(str(error))


def writable(*files: str | Path | None) -> None:
    """SvgError where a file could not be written: before the work, not after it."""
    for file in (Path(file) for file in files if file):
        parent = file.absolute().parent
        if not parent.is_dir():
            raise SvgError(f"cannot write {file}: there is no folder {parent}.")
        if file.is_dir():
            raise SvgError(f"cannot write {file}: it is a folder.")
        if not os.access(file if file.exists() else parent, os.W_OK):
            raise SvgError(f"cannot write {file}: permission denied.")


def picture(file: str) -> None:
    """UsageError where the ending of a name is no format of pictures; SvgError where it cannot be written."""
    from svg_compile.inspection.pictures import formats

    ending = Path(file).suffix.lower().removeprefix(".")
    if ending not in formats():
        raise click.UsageError(f"--out {file}: the ending says the format, one of {', '.join(formats())}.")
    writable(file)


def busy(what: str) -> AbstractContextManager[Any]:
    """A spinner on standard error while something takes its time; nothing where that is no terminal."""
    warnings.filterwarnings("ignore", message="In CPU autocast")
    # As text: paths may hold what rich takes for markup.
    return Console(stderr=True).status(Text(f"{what} ..."))
