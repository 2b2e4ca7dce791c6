"""Example inputs for video transformers: what a class' pipeline would pass to one forward, at a size of one's choice.

Most arguments follow from their names and the model's configuration (`latents`, `text`, `timestep`, ...). What a class
wants beyond that is in `special_inputs`, and the size of its usual video in `svg_compile.zoo`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from svg_compile.errors import SvgError
from svg_compile.targets.special_inputs import SPECIAL_INPUTS, Size, noise, text_channels
from svg_compile.zoo import CLASSES, Grid, VideoClass


def inputs_for(model: torch.nn.Module, size: Size, dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments for one forward of `model`, on the CPU; raises SvgError where one cannot be guessed."""
    name = type(model).__name__
    config = _Config(getattr(model, "config", {}))
    parameters = inspect.signature(type(model).forward).parameters
    more = SPECIAL_INPUTS[name](config, size, dtype) if name in SPECIAL_INPUTS else {}
    common = [key for key in _COMMON if key in parameters and key not in more]
    made = {key: _COMMON[key](config, size, dtype) for key in common} | more
    if name in CLASSES and CLASSES[name].float_time:
        made["timestep"] = made["timestep"].to(torch.float32)
    made = {key: value for key, value in made.items() if value is not None}
    wanted = [
        key
        for key, parameter in parameters.items()
        if key != "self" and parameter.default is parameter.empty and parameter.kind not in (2, 4) and key not in made
    ]
    if wanted:
        raise SvgError(
            f"{name}.forward needs {', '.join(wanted)}, and there is no recipe for {name} that says what these are. "
            "Write a function that returns (model, args, kwargs) and pass it as module:function."
        )
    return made


def size_for(name: str, batch: int, latents: Grid | None, text: int | None) -> Size:
    """The size asked for, or the usual one of the class."""
    usual = CLASSES.get(name, VideoClass((21, 60, 104), 512))
    return Size(batch, latents or usual.latents, usual.text if text is None else text)


class _Config:
    """A diffusers configuration: attributes, None for those that it lacks."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        return self._values.get(name) if isinstance(self._values, Mapping) else getattr(self._values, name, None)


_COMMON: dict[str, Callable[[Any, Size, torch.dtype], Any]] = {
    "hidden_states": lambda config, size, dtype: noise(size.batch, config.in_channels, *size.latents, dtype=dtype),
    "timestep": lambda config, size, dtype: torch.full((size.batch,), 500),
    "encoder_hidden_states": lambda config, size, dtype: noise(
        size.batch, size.text, text_channels(config), dtype=dtype, seed=1
    ),
    "encoder_attention_mask": lambda config, size, dtype: torch.ones(size.batch, size.text, dtype=torch.int64),
    "pooled_projections": lambda config, size, dtype: (
        noise(size.batch, config.pooled_projection_dim, dtype=dtype, seed=2) if config.pooled_projection_dim else None
    ),
    "guidance": lambda config, size, dtype: (
        torch.full((size.batch,), 6000.0, dtype=dtype) if config.guidance_embeds else None
    ),
    "return_dict": lambda config, size, dtype: False,
}
