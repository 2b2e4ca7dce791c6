"""Wrappers that libraries install on a model's modules, those that affect how its blocks are served.

diffusers and accelerate are not imported: their hooks are recognised by the attributes that they set on modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from svg_compile._compat.spread import is_gathered
from svg_compile.decisions import Site
from svg_compile.inspection.bare_clone import is_own_method


def hides_grid(model: nn.Module) -> bool:
    """True if a hook of a step cache, of offloading, FSDP or context parallelism wraps a module's forward.

    Such hooks break the model's graph at the module, or exchange tokens between processes in it.
    """
    return any(
        is_gathered(module) or ("forward" in vars(module) and not is_own_method(vars(module)["forward"], module))
        for module in model.modules()
    )


def why_not_in_parallel(model: nn.Module, sites: tuple[Site, ...]) -> str | None:
    """Why the grids of a model that is spread over processes are not those of its bare clone; None where they are.

    Ulysses gives each process a run of tokens [B, N, C], and attention the whole sequence, which is then in the order
    that it has without: process after process. That holds where the sequence is the video alone. Where text stands in
    it, it may be [text, video] of each process in turn; and tokens cut along another axis come in another order.
    """
    splits = list(_splits(model))
    if not splits:
        return None
    config = getattr(getattr(model, "_parallel_config", None), "context_parallel_config", None)
    if (getattr(config, "ring_degree", None) or 1) > 1:
        return (
            "it runs ring attention, where no process sees the whole sequence: use Ulysses, "
            "ContextParallelConfig(ulysses_degree=...)"
        )
    for name, split in splits:
        # [batch, tokens], or with channels.
        if getattr(split, "split_dim", None) != 1 or getattr(split, "expected_dims", None) not in (2, 3):
            return f"context parallelism splits {name} along another axis than the tokens of [batch, tokens, channels]"
    if any(site.layout is not None and site.layout.text_len for site in sites):
        return (
            "its tokens are distributed over processes with text among them, which mixes the order of text and video: "
            "run it without context parallelism"
        )
    return None


def _splits(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, how it is split) of each argument of a module that a hook of diffusers splits over processes."""
    for path, module in model.named_modules():
        hooks = getattr(vars(module).get("_diffusers_hook"), "hooks", None)
        for hook in hooks.values() if isinstance(hooks, Mapping) else ():
            plan = getattr(hook, "metadata", None)
            if type(hook).__module__.endswith(".context_parallel") and isinstance(plan, Mapping):
                # Integer keys are results of the module that are split (tables of positions); names are arguments.
                named = [(name, how) for name, how in plan.items() if isinstance(name, str)]
                yield from ((f"{name} of {path or 'the model'}", how) for name, how in named)
