"""Find the self-attention over video tokens, and say of every other attention why it is left alone.

    before   one scaled_dot_product_attention call a node, its axes inferred by `token_axes`
    after    a `Candidate` a call: the operands, the grid and the key mask, or a `Reason`

Rewritten only where everything is proven: query, key and value run over the same sequence of one video grid in
raster order with text on at most one side; the mask is none or hides keys alone; no causality, dropout, grouped
queries or gradients. What is not proven is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import fx

from svg_compile._compat.graphs import SDPA_TARGETS
from svg_compile._compat.sizes import at_most, settled, size_hint
from svg_compile.config import SvgConfig
from svg_compile.decisions import Reason, Site
from svg_compile.layout import VideoLayout
from svg_compile.passes.attention_call import Call, call_of, example, refused_call
from svg_compile.passes.axes.grid import Grid, grid_of, same_grid
from svg_compile.passes.axes.infer import AttentionAxes, TokenAxes, show
from svg_compile.passes.grid_marker import Marker, grids_of
from svg_compile.passes.symbols import computable


@dataclass(frozen=True)
class Candidate:
    """One SDPA node: how it was called, and the grid to rewrite it with or the reason not to."""

    module: fx.GraphModule
    node: fx.Node
    call: Call
    grid: Grid | None
    reason: Reason | None
    detail: str
    sequence: str

    @property
    def accepted(self) -> bool:
        return self.reason is None

    def site(self, block: int) -> Site:
        """The candidate as a row of the report."""
        query, key = (example(self.call[name]) for name in ("query", "key"))
        layout = None
        if self.grid is not None:
            frames, height, width, text_len = map(size_hint, self.grid.sizes)
            layout = VideoLayout(frames, height, width, text_len, self.grid.text_first, block)
        shape = [size_hint(size) for size in query.shape]
        return Site(
            rewritten=self.accepted,
            reason=self.reason,
            layer=layer_of(self.node),
            layout=layout,
            batch=shape[0] if len(shape) == 4 else 1,
            heads=shape[-3] if len(shape) > 2 else 1,
            head_dim=shape[-1],
            tokens=shape[-2],
            key_tokens=size_hint(key.shape[-2]),
            sequence=self.sequence,
            source=source_of(self.node),
            detail=self.detail,
            stack=stack_of(self.node),
        )


def find_attention(
    graph_module: fx.GraphModule, axes: TokenAxes, config: SvgConfig, markers: Mapping[str, Marker] | None = None
) -> tuple[Candidate, ...]:
    """Every SDPA of the graph and its child graphs, decided, in the order in which they stand.

    markers: what `strip_markers` found. A marked attention has the grid that the whole model gave it; which of the
    model's layers it is, and so whether it is one of the first `dense_layers`, is known only when the graph runs,
    unless the marker has the number.
    """
    found = []
    sparse_layers = 0
    nodes = list(attention_nodes(graph_module))
    marked = _marked([node for _, node in nodes], markers or {})
    numbers = {layer: marker.number for layer, marker in (markers or {}).items()}
    for module, node in nodes:
        candidate = _decide(module, node, axes.visits.get(node, ()), config, marked.get(node))
        if config.staged and candidate.accepted and module is not graph_module:
            detail = "density over steps and profile_every need inputs that a child graph has not"
            candidate = replace(candidate, reason=Reason.HIGHER_ORDER, detail=detail)
        if candidate.accepted:
            number = numbers[layer_of(node)] if node in marked else sparse_layers
            sparse_layers += node not in marked
            if number is not None and number < config.dense_layers:
                candidate = replace(candidate, reason=Reason.DENSE_LAYER)
        found.append(candidate)
    return tuple(found)


def attention_nodes(graph_module: fx.GraphModule) -> Iterator[tuple[fx.GraphModule, fx.Node]]:
    """(module, node) of every SDPA call, child graphs where they are called."""
    seen: set[int] = set()

    def walk(module: fx.GraphModule) -> Iterator[tuple[fx.GraphModule, fx.Node]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        for node in module.graph.nodes:
            if node.op == "call_function" and node.target in SDPA_TARGETS:
                yield module, node
            elif node.op in ("get_attr", "call_module"):
                child = getattr(module, str(node.target), None)
                if isinstance(child, fx.GraphModule):
                    yield from walk(child)

    yield from walk(graph_module)


def _marked(nodes: list[fx.Node], markers: Mapping[str, Marker]) -> dict[fx.Node, Grid | Reason]:
    """What the markers say of the attentions of marked layers."""
    found: dict[fx.Node, Grid | Reason] = {}
    for layer, marker in markers.items():
        of_layer, grids = [node for node in nodes if layer_of(node) == layer], grids_of(marker)
        # With another number of calls than in the whole model, nothing says which grid is whose.
        same = len(grids) == len(of_layer)
        found.update(zip(of_layer, grids if same else [Reason.UNKNOWN_GRID] * len(of_layer)))
    return found


def _decide(
    module: fx.GraphModule,
    node: fx.Node,
    visits: tuple[AttentionAxes, ...],
    config: SvgConfig,
    marked: Grid | Reason | None,
) -> Candidate:
    call = call_of(node)
    if isinstance(marked, Reason):
        return Candidate(module, node, call, None, marked, "as the whole model has it", "")
    if marked is not None and not _agree(config.layout, marked):
        sizes = "x".join(str(size_hint(size)) for size in marked.sizes[:3])
        return Candidate(module, node, call, None, Reason.LAYOUT_CONFLICT, f"the whole model has {sizes}", "")
    tokens = example(call["query"]).shape[-2], example(call["key"]).shape[-2]
    sequence = f"[{show(visits[0].query[-2])}]".replace("[[", "[").replace("]]", "]") if visits else ""
    grid, reason, detail = None, Reason.HIGHER_ORDER if not visits else None, ""
    for visit in visits:
        seen, reason, detail = grid_of(visit, tokens, config, marked)
        if reason is None and grid is not None and not same_grid(seen, grid):
            # A child graph shared by calls of different grids has one body, which cannot hold two.
            reason, detail = Reason.SEVERAL_GRIDS, "a shared subgraph is called with different grids"
        if reason is not None:
            break
        grid = grid or seen
    if reason in (None, Reason.NOT_VIDEO, Reason.UNKNOWN_GRID):
        refusal = refused_call(call, example(node), config)
        if refusal is not None and (reason is None or refusal[0] is Reason.GRADIENT):
            reason, detail = refusal
    if reason is None and grid is not None and not settled(at_most, config.min_tokens, grid.tokens):
        reason, detail = Reason.TOO_SHORT, f"{size_hint(grid.tokens)} < {config.min_tokens}"
    if reason is None and grid is not None and not computable(module.graph, grid.sizes):
        reason = Reason.SYMBOLIC
    return Candidate(module, node, call, grid, reason, detail, sequence)


def _agree(given: VideoLayout | None, marked: Grid) -> bool:
    """Whether a given layout, which may leave out the text, is that which the whole model has."""
    if given is None:
        return True
    layout = Grid(given.frames, given.height, given.width, given.text_len, given.text_first)
    return same_grid(layout, marked if given.text_len else replace(marked, text_len=0, text_first=False))


def layer_of(node: fx.Node) -> str:
    """The module path of the layer that made the node, "" where the graph does not say."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values()]
    if not paths:
        return ""
    path = re.sub(r"\[['\"]?([^'\"\]]+)['\"]?\]", r".\1", paths[-1])
    parts = [part for part in path.split(".") if part not in ("L", "self", "_modules", "__dict__", "_orig_mod", "")]
    return ".".join(parts)


def stack_of(node: fx.Node) -> tuple[str, ...]:
    """file:line of every source line on the way to the node, outermost first; empty where the graph does not say."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return tuple(f"{file}:{line}" for file, line in frames)


def source_of(node: fx.Node) -> str:
    """The innermost source line that made the node in the model's own file, which defines its outermost module.

    Libraries' dispatchers call SDPA in one place for all models: that line would say nothing. "" where there is none.
    """
    stack = stack_of(node)
    modules = (node.meta.get("nn_module_stack") or {}).values()
    outermost = next((entry[1] for entry in modules if isinstance(entry[1], type)), None)
    file = getattr(sys.modules.get(getattr(outermost, "__module__", "")), "__file__", None)
    own = [frame for frame in stack if frame.rpartition(":")[0] == file]
    return (own or list(stack) or [""])[-1]
