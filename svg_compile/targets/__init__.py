"""Targets of the command line: a diffusers class and its configuration, or a function that builds a model.

WanTransformer3DModel num_layers=4              the class' defaults, with one value replaced
WanTransformer3DModel --config config.json      a configuration file, as model repositories have it
my_models.py:build, my_package.models:build     called without arguments; returns (model, args, kwargs)
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svg_compile._compat.pytree import tree_map_only
from svg_compile.errors import SvgError
from svg_compile.targets.example_inputs import inputs_for, size_for
from svg_compile.zoo import CLASSES, Grid

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Target:
    """A model and the arguments of one forward."""

    model: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """The options of a target: configuration, sizes of the inputs, dtype, and whether to allocate weights.

    device: where weights, if any, and inputs are made.
    """

    config: Mapping[str, Any]
    batch: int = 1
    latents: Grid | None = None
    text: int | None = None
    dtype: str = "bfloat16"
    weights: bool = False
    device: str = "cpu"


def load(name: str, request: Request) -> Target:
    """Build the model of a name; raises SvgError with a remedy."""
    return _from_function(name) if ":" in name else _from_diffusers(name, request)


def values(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs; a value is read as JSON if it is valid JSON, and is a string otherwise."""
    out = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise SvgError(f"expected key=value, got {pair!r}.")
        try:
            out[key] = json.loads(value)
        except json.JSONDecodeError:
            out[key] = {"True": True, "False": False, "None": None}.get(value, value)
    return out


def grid(text: str) -> Grid:
    """`21x60x104` as three sizes."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise SvgError(f"expected frames x height x width such as 21x60x104, got {text!r}.")
    frames, height, width = map(int, parts)
    return frames, height, width


def _from_function(name: str) -> Target:
    where, _, function = name.rpartition(":")
    build = getattr(_module(where), function, None)
    if build is None:
        raise SvgError(f"{where} has no {function!r}.")
    if not callable(build):
        raise SvgError(f"{name} must be a function that returns (model, args, kwargs), got {type(build).__name__}.")
    made = _run(name, build)
    is_target = isinstance(made, tuple) and len(made) == 3 and callable(made[0])
    if not (is_target and isinstance(made[1], (tuple, list)) and isinstance(made[2], Mapping)):
        parts = ", ".join(type(part).__name__ for part in made) if isinstance(made, tuple) else ""
        got = f"({parts})" if isinstance(made, tuple) else type(made).__name__
        raise SvgError(
            f"{name} must return (model, args, kwargs), got {got}: a model, a tuple and a dict are expected."
        )
    return Target(made[0], tuple(made[1]), dict(made[2]))


def _run(name: str, call: Callable[[], Any]) -> Any:
    """The result of the user's own code; SvgError with its place where it raises, or ends the process."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        if isinstance(error, SvgError):
            raise
        *_, frame = traceback.extract_tb(error.__traceback__)
        text = f"{name} failed: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
        raise SvgError(text) from error


def _module(where: str) -> Any:
    path = Path(where)
    if path.suffix == ".py":
        # Dynamo and dataclasses look modules up by name; a file called json.py must not replace Python's.
        name = path.stem
        while name in sys.modules:
            name += "_"
        spec = importlib.util.spec_from_file_location(name, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise SvgError(f"there is no file {where}.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        _run(where, functools.partial(spec.loader.exec_module, module))
        return module
    sys.path.insert(0, "")
    try:
        return _run(where, functools.partial(_imported, where))
    finally:
        sys.path.remove("")


def _imported(where: str) -> Any:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise SvgError(f"cannot import {where}: {error}. A file is written with its ending: {where}.py:...") from error


def _from_diffusers(name: str, request: Request) -> Target:
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError as error:
        raise SvgError(f"{name!r} is a diffusers class: pip install diffusers") from error
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        near = [known for known in CLASSES if name and name.lower() in known.lower()]
        near = near or difflib.get_close_matches(name, CLASSES, n=1)
        hint = f" Did you mean {' or '.join(near)}?" if near else f" Known: {', '.join(CLASSES)}."
        raise SvgError(f"diffusers has no model class {name!r}.{hint}")
    usual = CLASSES[name].config if name in CLASSES else {}
    config = {**usual, **{key: value for key, value in request.config.items() if not key.startswith("_")}}
    known = inspect.signature(cls.__init__).parameters
    for key in config:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise SvgError(f"{name} has no setting {key!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
    dtype = DTYPES[request.dtype]
    try:
        with torch.device(request.device if request.weights else "meta"):
            model = cls(**config).eval()
    except Exception as error:
        raise SvgError(f"{name} cannot be built with these settings: {type(error).__name__}: {error}") from error
    cast(model, dtype)
    size = size_for(name, request.batch, request.latents, request.text)
    try:
        inputs = inputs_for(model, size, dtype)
    except SvgError:
        raise
    except Exception as error:
        # PyTorch adds its own C++ stack to some errors.
        text = str(error).partition("\n")[0]
        raise SvgError(f"inputs of {size} cannot be made for {name}: {type(error).__name__}: {text}") from error
    moved = tree_map_only(torch.Tensor, lambda tensor: tensor.to(request.device), inputs)
    return Target(model, (), moved)


def cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """As `from_pretrained(torch_dtype=...)` does: modules that a class names stay in float32."""
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not any(part in kept for part in name.split(".")):
            tensor.data = tensor.data.to(dtype)
