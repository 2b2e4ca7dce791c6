"""The checks of the options of `svg_compile.config`, one per key; each returns the value to store."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from svg_compile.errors import OptionError
from svg_compile.layout import VideoLayout

ENGINES = ("auto", "triton", "cpu", "reference")
WIDTHS = ("adaptive", "uniform")


def unknown_option(key: object, known: Mapping[str, Any]) -> str:
    """The message for an option that nobody knows, with the nearest name."""
    near = difflib.get_close_matches(str(key), list(known), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown option {key!r}.{hint} Known: {', '.join(known)}; and torch.compile's own Inductor options."


def _integer(least: int) -> Any:
    def check(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(f"option {key!r}: expected an integer of at least {least}, got {value!r}.")
        if value > 2**31 - 1:
            raise OptionError(f"option {key!r}: {value!r} is too large; use a value below 2**31.")
        return value

    return check


def _density(key: str, value: Any) -> float | tuple[tuple[float, float], ...]:
    if isinstance(value, (list, tuple)):
        return _density_over_steps(key, value)
    if not _is_number(value) or not 0.0 < value <= 1.0:
        raise OptionError(
            f"option {key!r}: expected a number above 0 and up to 1 (1 is dense), or a list of (fraction of the steps, "
            f"density) pairs, got {value!r}."
        )
    return float(value)


def _density_over_steps(key: str, value: Any) -> tuple[tuple[float, float], ...]:
    """Pairs whose fractions begin at 0 and rise."""
    pairs = tuple(tuple(pair) if isinstance(pair, (list, tuple)) else (pair,) for pair in value)
    numbers = all(len(pair) == 2 and all(map(_is_number, pair)) for pair in pairs)
    if not numbers or not pairs or pairs[0][0] != 0 or not all(0.0 < density <= 1.0 for _, density in pairs):
        raise OptionError(
            f"option {key!r}: expected (fraction, density) pairs, the first fraction 0.0 and each density above 0 and "
            f"up to 1, as in [(0.0, 0.5), (0.5, 0.3)]; got {value!r}."
        )
    fractions = [fraction for fraction, _ in pairs]
    if not all(low < high for low, high in zip(fractions, [*fractions[1:], 1.0])):
        raise OptionError(f"option {key!r}: the fractions must rise and stay below 1, got {fractions}.")
    return tuple((float(fraction), float(density)) for fraction, density in pairs)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _steps(key: str, value: Any) -> int | float:
    if not isinstance(value, bool):
        if isinstance(value, int) and 0 <= value < 2**31:
            return value
        if isinstance(value, float) and 0.0 <= value <= 1.0:
            return value
    raise OptionError(
        f"option {key!r}: expected a count of steps (an int from 0) or a share of them (a float from 0.0 to 1.0), "
        f"got {value!r}."
    )


def _block(key: str, value: Any) -> int:
    block = _integer(1)(key, value)
    if block & (block - 1):
        raise OptionError(f"option {key!r}: expected a power of two, got {value!r}: try 64, 128 or 256.")
    return block


def _choice(*choices: str) -> Any:
    def check(key: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise OptionError(f"option {key!r}: expected one of {', '.join(map(repr, choices))}, got {value!r}.")
        return value

    return check


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"option {key!r}: expected True or False, got {value!r}.")
    return value


def _folder(key: str, value: Any) -> str | None:
    import os

    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise OptionError(f"option {key!r}: expected the path of a folder or None, got {value!r}.")
    return path


def _grid(key: str, value: Any) -> Any:
    if value is None or isinstance(value, VideoLayout):
        return value
    shape = "(frames, height, width) or (frames, height, width, text_len, 'first' or 'last')"
    if not isinstance(value, (tuple, list)) or len(value) not in (3, 5):
        raise OptionError(f"option {key!r}: expected {shape}, got {value!r}.")
    if len(value) == 5 and not (isinstance(value[4], str) and value[4] in ("first", "last")):
        raise OptionError(f"option {key!r}: expected {shape}; the last entry was {value[4]!r}.")
    return tuple(value)


CHECKS: dict[str, Any] = {
    "density": _density,
    "dense_steps": _steps,
    "num_inference_steps": _integer(1),
    "dense_layers": _integer(0),
    "sampled_rows": _integer(1),
    "profile_every": _integer(1),
    "repair": _flag,
    "widths": _choice(*WIDTHS),
    "share_layers": _flag,
    "share_processes": _flag,
    "eager_attention": _flag,
    "layout": _grid,
    "block": _block,
    "min_tokens": _integer(0),
    "engine": _choice(*ENGINES),
    "on_error": _choice("fallback", "raise"),
    "strict": _flag,
    "dump_dir": _folder,
}
