"""The options of `torch.compile(model, backend="svg", options={...})`, checked once and then frozen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_origin

from svg_compile._compat.inductor import mode_options, option_names, option_type
from svg_compile.errors import LayoutError, OptionError
from svg_compile.layout import VideoLayout
from svg_compile.option_checks import CHECKS, unknown_option


def option(default: Any, help: str) -> Any:
    """A field of `SvgConfig`: its default, and what it means, as docs/options.md prints it."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class SvgConfig:
    """Options of the backend, checked; docs/options.md lists them with the `help` of each field."""

    density: float | tuple[tuple[float, float], ...] = option(
        0.3,
        "share of the (query, key) pairs that sparse heads compute, including text and first frame, as a mean over all "
        "heads; 1.0 equals dense. Or a list of (fraction of the steps, density) pairs, as in "
        "`[(0.0, 0.5), (0.6, 0.25)]`",
    )
    dense_steps: int | float = option(
        0.25,
        "number of dense steps at the start of a run: an int counts steps, a float is a share of the steps",
    )
    num_inference_steps: int = option(
        50, "length of a run, from which that share is computed if no schedule is attached"
    )
    dense_layers: int = option(
        1,
        "number of dense layers among the first rewritable ones; counted per graph, so use 0 where each block is a "
        "graph and `layout` gives the grid",
    )
    sampled_rows: int = option(64, "query rows that the profile samples")
    profile_every: int = option(
        1,
        "profile at each n-th sparse step; the steps in between keep the heads' kinds and repairs, but never across "
        "runs",
    )
    repair: bool = option(
        True,
        "reduce the error of the mask by a linear map for each head, fitted on the sampled rows, and not applied where "
        "it does not help on rows left out of the fit. False gives the bare sparse attention",
    )
    widths: str = option(
        "adaptive",
        '"adaptive": heads that lose more by a narrow band get a wider one, at the same mean density; "uniform": all '
        "heads of a kind have the same half-width",
    )
    share_layers: bool = option(
        True,
        "with adaptive widths, layers whose heads lose more get more of the pairs, by the profiles of the previous "
        "step; `density` is then the mean over the layers. False gives each layer the same density",
    )
    share_processes: bool = option(
        True,
        "with adaptive widths and a layer's heads distributed over processes (Ulysses), the heads of all processes "
        "share the pairs, as in one process. False: each process shares them among its own heads, so that all compute "
        "about as much and none waits for another",
    )
    eager_attention: bool = option(
        True,
        "attention that runs as plain Python in a module whose grid is proven (hooks at every layer, caches that "
        "switch compiling off) is compiled by itself and runs sparse. False leaves it dense",
    )
    layout: VideoLayout | None = option(
        None,
        "the grid, where the graph does not show it: `(frames, height, width)` in tokens, where all other tokens of "
        'the sequence are text; or `(frames, height, width, text_len, "first" or "last")`, where the graph '
        "does not show the text either",
    )
    block: int = option(128, "granularity of the band in tokens, a power of two")
    min_tokens: int = option(2048, "shorter sequences stay dense")
    engine: str = option("auto", '"triton", "cpu", or "reference" (the float64 oracle: slow, for debugging)')
    on_error: str = option(
        "fallback", '"fallback": a pass that fails leaves plain Inductor and one warning; "raise": it raises'
    )
    strict: bool = option(False, "raise if no attention was rewritten")
    dump_dir: str | None = option(
        None,
        "folder for graph dumps: the graph before and after the passes, the axes and decisions of each attention, "
        "Inductor's code, and an `index.html`; the environment variable `SVG_COMPILE_DUMP_DIR` has the same "
        "effect",
    )

    @property
    def always_sparse(self) -> bool:
        """True if no step is left dense."""
        return self.dense_steps == 0

    @property
    def always_dense(self) -> bool:
        """True if every step is left dense: the fraction 1.0, not a count of one step."""
        return isinstance(self.dense_steps, float) and self.dense_steps == 1.0

    @property
    def adaptive_widths(self) -> bool:
        """True if each head has the half-width that it needs."""
        return self.widths == "adaptive"

    @property
    def shares_layers(self) -> bool:
        """True if the layers of a model share the pairs."""
        return self.adaptive_widths and self.share_layers

    @property
    def densities(self) -> tuple[float, ...]:
        """The densities of a run, each once, in the order of their first steps."""
        if isinstance(self.density, float):
            return (self.density,)
        return tuple(dict.fromkeys(density for _, density in self.density))

    @property
    def staged(self) -> bool:
        """True if the result of a sparse step depends on its number in the run."""
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
            if key not in CHECKS:
                raise OptionError(unknown_option(key, CHECKS))
        values = {key: CHECKS[key](key, value) for key, value in given.items()}
        if values.get("layout") is not None:
            values["layout"] = _layout(values["layout"], values.get("block", cls.block))
        return cls(**values)


def first_step(fraction: float, total: int) -> int:
    """The first step, of `total`, that lies wholly behind a fraction of a run."""
    # 0.1 * 30 is 3.0000000000000004: three steps, not four.
    return math.ceil(round(fraction * total, 9))


def split_options(options: Mapping[str, Any] | None, mode: str | None = None) -> tuple[SvgConfig, dict[str, Any]]:
    """Split the options of `torch.compile` into our config and Inductor's config patches.

    `options` may hold our keys, Inductor's own, and "mode" (torch.compile takes either `mode=` or `options=`).
    """
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"options must be a dict such as {{'density': 0.3}}, got {options!r}.")
    given = dict(options or {})
    mode = given.pop("mode", mode)
    patches: dict[str, Any] = {}
    if mode is not None and mode != "default":
        # "" would list all modes.
        if not isinstance(mode, str) or not mode:
            raise OptionError(f'option "mode": expected the name of a mode of torch.compile, got {mode!r}.')
        try:
            patches.update(mode_options(mode))
        except (ValueError, KeyError) as error:
            raise OptionError(f'option "mode": expected a mode of torch.compile, got {mode!r}: {error}') from None
    ours = {key: given.pop(key) for key in list(given) if key in CHECKS}
    known = option_names()
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise OptionError(unknown_option(key, CHECKS))
        # As torch.compile checks them for Inductor: of a generic type isinstance knows nothing.
        expected = option_type(name)
        if get_origin(expected) is None and not isinstance(value, expected):
            raise OptionError(f"Inductor's option {key!r}: expected {_name_of(expected)}, got {value!r}.")
        patches[name] = value
    return SvgConfig.from_options(ours), patches


def _layout(value: Any, block: int) -> VideoLayout:
    try:
        if isinstance(value, VideoLayout):
            return dataclasses.replace(value, block=block)
        frames, height, width = value[:3]
        text_len, side = (value[3], value[4]) if len(value) == 5 else (0, "last")
        return VideoLayout(frames, height, width, text_len, side == "first", block)
    except LayoutError as error:
        raise OptionError(f"option 'layout': {error}") from None


def _name_of(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) else str(expected)
