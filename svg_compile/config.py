"""The options of `torch.compile(model, backend="svg", options={...})`, checked once and then frozen."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from svg_compile.errors import LayoutError, OptionError
from svg_compile.layout import VideoLayout

ENGINES = ("auto", "triton", "cpu", "reference")


@dataclass(frozen=True)
class SvgConfig:
    """Options of the backend; see docs/options.md.

    density: share of (query, key) pairs a sparse head computes, text and frame 0 included; 1.0 equals dense. Or
        ((0.0, density), (fraction, density), ...): each from that fraction of the run's steps on.
    dense_steps: first denoising steps left dense; an int counts steps, a float is a fraction.
    num_inference_steps: resolves that fraction where no schedule is attached.
    dense_layers: how many of the first rewritable layers stay dense.
    sampled_rows: query rows that the profile looks at.
    profile_every: profile the heads at each n-th sparse step of a run, and keep their kinds and repairs in between.
    repair: mend what the mask leaves out, by a map fitted on the sampled rows of each head.
    layout: None, (frames, height, width), or (frames, height, width, text_len, "first" or "last").
    block: granularity of the band in tokens, a power of two.
    min_tokens: shorter sequences stay dense.
    engine: "auto", "triton", "cpu" or "reference".
    on_error: "fallback" compiles the untouched graph when a pass fails; "raise" raises.
    strict: raise when nothing was rewritten.
    dump_dir: folder for graph dumps, or None.
    """

    density: float | tuple[tuple[float, float], ...] = 0.3
    dense_steps: int | float = 0.25
    num_inference_steps: int = 50
    dense_layers: int = 1
    sampled_rows: int = 64
    profile_every: int = 1
    repair: bool = True
    layout: VideoLayout | None = None
    block: int = 128
    min_tokens: int = 2048
    engine: str = "auto"
    on_error: str = "fallback"
    strict: bool = False
    dump_dir: str | None = None

    @property
    def always_sparse(self) -> bool:
        """Whether no step is left dense."""
        return self.dense_steps == 0

    @property
    def always_dense(self) -> bool:
        """Whether every step is left dense: the fraction 1.0, not a count of one step."""
        return isinstance(self.dense_steps, float) and self.dense_steps == 1.0

    @property
    def densities(self) -> tuple[float, ...]:
        """The densities of a run, each once, in the order of their first steps."""
        if isinstance(self.density, float):
            return (self.density,)
        return tuple(dict.fromkeys(density for _, density in self.density))

    @property
    def staged(self) -> bool:
        """Whether what a sparse step computes depends on its place in the run."""
        return len(self.densities) > 1 or self.profile_every > 1

    def dense_until(self, total: int) -> int:
        """How many of the first steps of a run of `total` are dense; a started step counts whole."""
        return self.dense_steps if isinstance(self.dense_steps, int) else first_step(self.dense_steps, total)

    def stage(self, step: int, total: int) -> int:
        """The place in `densities` of the density of a step."""
        if isinstance(self.density, float):
            return 0
        density = next(d for fraction, d in reversed(self.density) if first_step(fraction, total) <= step)
        return self.densities.index(density)

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> SvgConfig:
        """Check `options` (keys of this class alone) and freeze them; raises OptionError."""
        given = dict(options or {})
        for key in given:
            if key not in _CHECKS:
                raise OptionError(unknown_option(key, _CHECKS))
        values = {key: _CHECKS[key](key, value) for key, value in given.items()}
        if values.get("layout") is not None:
            values["layout"] = _layout(values["layout"], values.get("block", cls.block))
        return cls(**values)


def first_step(fraction: float, total: int) -> int:
    """The first step, of `total`, that lies wholly behind a fraction of a run."""
    # 0.1 * 30 is 3.0000000000000004: three steps, not four.
    return math.ceil(round(fraction * total, 9))


def split_options(options: Mapping[str, Any] | None, mode: str | None = None) -> tuple[SvgConfig, dict[str, Any]]:
    """Split what `torch.compile` was given into our config and Inductor's config patches.

    `options` may hold our keys, Inductor's own, and "mode" (torch.compile takes no `mode=` beside `options=`).
    """
    import torch._inductor
    from torch._inductor import config as inductor_config

    given = dict(options or {})
    mode = given.pop("mode", mode)
    patches: dict[str, Any] = {}
    if mode is not None and mode != "default":
        try:
            patches.update(torch._inductor.list_mode_options(mode))
        except (RuntimeError, TypeError, AttributeError) as error:
            raise OptionError(f'option "mode": expected a mode of torch.compile, got {mode!r}: {error}') from None
    ours = {key: given.pop(key) for key in list(given) if key in _CHECKS}
    known = inductor_config.get_config_copy()
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in known:
            raise OptionError(unknown_option(key, _CHECKS))
        patches[name] = value
    return SvgConfig.from_options(ours), patches


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
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise OptionError(f"option {key!r}: expected the path of a folder or None, got {value!r}.")
    return str(os.fspath(value))


def _grid(key: str, value: Any) -> Any:
    if value is None or isinstance(value, VideoLayout):
        return value
    shape = "(frames, height, width) or (frames, height, width, text_len, 'first' or 'last')"
    if not isinstance(value, (tuple, list)) or len(value) not in (3, 5):
        raise OptionError(f"option {key!r}: expected {shape}, got {value!r}.")
    if len(value) == 5 and value[4] not in ("first", "last"):
        raise OptionError(f"option {key!r}: expected {shape}; the last entry was {value[4]!r}.")
    return tuple(value)


def _layout(value: Any, block: int) -> VideoLayout:
    if isinstance(value, VideoLayout):
        return dataclasses.replace(value, block=block)
    frames, height, width = value[:3]
    text_len, side = (value[3], value[4]) if len(value) == 5 else (0, "last")
    try:
        return VideoLayout(frames, height, width, text_len, side == "first", block)
    except LayoutError as error:
        raise OptionError(f"option 'layout': {error}") from None


_CHECKS: dict[str, Any] = {
    "density": _density,
    "dense_steps": _steps,
    "num_inference_steps": _integer(1),
    "dense_layers": _integer(0),
    "sampled_rows": _integer(1),
    "profile_every": _integer(1),
    "repair": _flag,
    "layout": _grid,
    "block": _block,
    "min_tokens": _integer(0),
    "engine": _choice(*ENGINES),
    "on_error": _choice("fallback", "raise"),
    "strict": _flag,
    "dump_dir": _folder,
}
