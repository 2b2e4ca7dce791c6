"""The warning about a forward in which blocks carry a grid and none of their graphs ran, so all of it was dense."""

from __future__ import annotations

from torch import nn

from svg_compile._compat.compiled import at_recompile_limit
from svg_compile.passes.grid_marker import OF_BLOCK
from svg_compile.regional.blocks import compiled_blocks
from svg_compile.regional.forward import Forward

_AT_LIMIT = (
    "svg: torch.compile has stopped compiling {} (torch._dynamo.config.recompile_limit is reached), so these sizes run "
    "uncompiled and dense. Compile with dynamic=True, which serves all sizes by one graph, or raise the limit."
)
_PARTED = (
    "svg: the attention that {} itself calls stays dense: a graph break separates it from the module of the block "
    "that carries the grid (TORCH_LOGS=graph_breaks names the line). Put the attention into a module of its own, where "
    "breaks do no harm, or remove the break."
)


def why_unserved(forward: Forward, model: nn.Module) -> str | None:
    """The warning about a forward in which no graph of a marked block ran; None where nothing was to run."""
    markers = {path: marker for path, marker in (forward.markers or {}).items() if marker.has_grid}
    if forward.parted:
        blocks = sorted({path.rpartition(".")[0] for path, each in markers.items() if each.text.startswith(OF_BLOCK)})
        more = f" (and {len(blocks) - 1} more)" if len(blocks) > 1 else ""
        return _PARTED.format(f"{blocks[0]}{more}") if blocks else None
    stuck = [path for path, block in compiled_blocks(model) if at_recompile_limit(block)] if markers else []
    return _AT_LIMIT.format(type(model.get_submodule(stuck[0])).__name__) if stuck else None
