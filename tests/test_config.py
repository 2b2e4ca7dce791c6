"""Options: accepted values, and the text of errors."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from svg_compile import OptionError, VideoLayout
from svg_compile.config import SvgConfig, split_options

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"


def table() -> str:
    """The options as docs/options.md lists them."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(SvgConfig):
        default = f'"{field.default}"' if isinstance(field.default, str) else str(field.default)
        rows.append(f"| `{field.name}` | {default} | {field.metadata['help']} |")
    return "\n".join(rows)


def test_the_page_lists_the_options_with_their_defaults() -> None:
    shown = re.compile(r"^\|.*\|$(?:\n\|.*\|$)*", re.MULTILINE)
    if os.environ.get("UPDATE_GOLDENS"):
        PAGE.write_text(shown.sub(lambda _: table(), PAGE.read_text(), count=1))
    found = shown.search(PAGE.read_text())
    assert found is not None
    assert found[0] == table(), f"{PAGE}: make goldens rewrites it"


def test_every_option_is_explained_and_checked() -> None:
    for field in dataclasses.fields(SvgConfig):
        assert len(field.metadata["help"]) > 10, field.name
        with pytest.raises(OptionError):
            SvgConfig.from_options({field.name: object()})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("density", 0, "above 0 and up to 1"),
        ("density", 1.01, "above 0 and up to 1"),
        ("density", float("nan"), "above 0 and up to 1"),
        ("density", "0.3", "above 0 and up to 1"),
        ("density", True, "above 0 and up to 1"),
        ("dense_steps", -1, "a count of steps"),
        ("dense_steps", 1.5, "a share of them"),
        ("dense_steps", float("inf"), "a share of them"),
        ("dense_steps", float("nan"), "a share of them"),
        ("dense_steps", False, "a count of steps"),
        ("dense_layers", -1, "at least 0"),
        ("dense_layers", 1.0, "an integer"),
        ("num_inference_steps", 0, "at least 1"),
        ("sampled_rows", 0, "at least 1"),
        ("sampled_rows", 2**40, "too large"),
        ("profile_every", 0, "at least 1"),
        ("layout", (4, 8), "(frames, height, width)"),
        ("layout", (4, 8, 8, 3, "middle"), "'middle'"),
        ("layout", (4, 8, -1), "width must be an integer of at least 1"),
        ("layout", (4, 8, 8.0), "width must be an integer"),
        ("layout", "4x8x8", "(frames, height, width)"),
        ("block", 96, "power of two"),
        ("block", 0, "at least 1"),
        ("min_tokens", -5, "at least 0"),
        ("engine", "cuda", "'auto'"),
        ("engine", None, "'auto'"),
        ("on_error", "ignore", "'fallback'"),
        ("strict", 1, "True or False"),
        ("density", [], "(fraction, density) pairs"),
        ("density", [0.5, 0.3], "(fraction, density) pairs"),
        ("density", [(0.5, 0.3)], "the first fraction 0.0"),
        ("density", [(0, 0.5), (0.5, 2)], "each density above 0"),
        ("density", [(0, 0.5), (0.7, 0.4), (0.6, 0.3)], "must rise"),
        ("density", [(0, 0.5), (float("nan"), 0.3)], "must rise"),
        ("density", torch.tensor(0.3), "above 0 and up to 1"),
        ("density", None, "above 0 and up to 1"),
        ("dense_steps", 2**31, "a count of steps"),
        ("dense_steps", "10", "a count of steps"),
        ("num_inference_steps", 50.0, "an integer"),
        ("profile_every", None, "an integer"),
        ("layout", (4, 8, 8, 3, ["first"]), "['first']"),
        ("layout", torch.tensor([4, 8, 8]), "(frames, height, width)"),
        ("layout", (4, 8, 10**9), "in pixels"),
        ("layout", (4, 8, None), "width must be an integer"),
        ("layout", {}, "(frames, height, width)"),
        ("block", 2.0**7, "an integer"),
        ("strict", None, "True or False"),
        ("on_error", True, "'fallback'"),
        ("dump_dir", b"dumps", "path of a folder"),
        ("dump_dir", "a\0b", "path of a folder"),
        ("dump_dir", 7, "path of a folder"),
        ("dump_dir", "", "path of a folder"),
    ],
)
def test_a_bad_value_says_what_was_expected_and_what_came(key: str, value: Any, expected: str) -> None:
    with pytest.raises(OptionError) as error:
        SvgConfig.from_options({key: value})
    assert expected in str(error.value)
    assert f"'{key}'" in str(error.value)


def test_an_unknown_option_names_the_nearest_one() -> None:
    with pytest.raises(OptionError, match=r"unknown option 'densty'\. Did you mean 'density'"):
        split_options({"densty": 0.3})


@pytest.mark.parametrize("options", [["density"], "density=0.3", 3, [("density", 0.3)]])
def test_options_that_are_no_dict_are_named(options: Any) -> None:
    with pytest.raises(OptionError, match="options must be a dict"):
        split_options(options)


@pytest.mark.parametrize("key", [3, None, ("density",), 0.3])
def test_keys_that_are_no_names_are_unknown(key: Any) -> None:
    with pytest.raises(OptionError, match="unknown option"):
        split_options({key: 0.3})


@pytest.mark.parametrize(("key", "value"), [("max_autotune", "yes"), ("max-autotune", 1), ("triton.cudagraphs", "no")])
def test_inductors_options_are_checked_as_torch_checks_them(key: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"Inductor's option '{key}': expected bool, got {value!r}"):
        split_options({key: value})


def test_layout_takes_text_and_the_block_option() -> None:
    config = SvgConfig.from_options({"layout": (4, 8, 6, 11, "first"), "block": 64})
    assert config.layout == VideoLayout(4, 8, 6, 11, True, 64)
    assert SvgConfig.from_options({"layout": [4, 8, 6]}).layout == VideoLayout(4, 8, 6)


def test_inductor_options_and_mode_pass_through() -> None:
    config, patches = split_options({"density": 0.2, "max_autotune": True, "mode": "max-autotune-no-cudagraphs"})
    assert config.density == 0.2
    assert patches["max_autotune"] is True
    assert "triton.cudagraphs" not in patches or patches["triton.cudagraphs"] is False
    assert split_options(None, "reduce-overhead")[1]["triton.cudagraphs"] is True


@pytest.mark.parametrize("mode", ["fastest", "", 3, ["default"], True])
def test_an_unknown_mode_is_an_error(mode: Any) -> None:
    with pytest.raises(OptionError, match=re.escape(repr(mode))):
        split_options({"mode": mode})
