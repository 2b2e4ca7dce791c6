"""Inductor: compiling a graph, and its options by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch


def compile_graph(
    graph_module: torch.fx.GraphModule, example_inputs: Sequence[Any], patches: Mapping[str, Any]
) -> Callable[..., Any]:
    """Compile a graph by Inductor, all of it, with some of its options changed; it may change the graph module."""
    from torch._inductor.compile_fx import compile_fx

    return cast("Callable[..., Any]", compile_fx(graph_module, list(example_inputs), config_patches=dict(patches)))


def mode_options(mode: str) -> dict[str, Any]:
    """The options that a mode of `torch.compile` sets; raises ValueError where there is no such mode."""
    import torch._inductor

    try:
        return dict(torch._inductor.list_mode_options(mode))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def option_names() -> frozenset[str]:
    """The names of all options that Inductor has."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())


def option_type(name: str) -> Any:
    """The type that `torch.compile` expects of one of Inductor's options."""
    from torch._inductor import config

    # The stubs of torch's config modules do not list it.
    return getattr(config, "get_type")(name)  # noqa: B009
