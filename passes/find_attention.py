"""Find the self-attention over video tokens, and say of every other attention why it is left alone.

    before   one scaled_dot_product_attention call a node, its axes inferred by `token_axes`
    after    a `Candidate` a call: the operands, the grid and the key mask, or a `Reason`

Rewritten only where everything is proven: key and value run over one sequence, query over the same or a part of it, and
that is one video grid in raster order with text or few other tokens around it; the mask is none or hides keys alone; no
causality, dropout or gradients. What is not proven is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import fx

from svg_compile._compat.graphs import SDPA_TARGETS, graph_nodes
from svg_compile._compat.sizes import at_most, settled, size_hint
from svg_compile.config import SvgConfig
from svg_compile.decisions import Reason, Site
from svg_compile.layout import VideoLayout
from svg_compile.passes.attention_call import Call, call_of, example, refused_call
from svg_compile.passes.axes.grid import grid_of
from svg_compile.passes.axes.infer import AttentionAxes, TokenAxes
from svg_compile.passes.axes.read_grid import Grid, Refusal, same_grid
from svg_compile.passes.axes.text import show_sequence
from svg_compile.passes.grid_marker import Marker, grids_of
from svg_compile.passes.node_origin import layer_of as layer_of
from svg_compile.passes.node_origin import source_of as source_of
from svg_compile.passes.node_origin import stack_of as stack_of
from svg_compile.passes.symbols import computable


@dataclass(frozen=True)
class Candidate:
    """One SDPA node: how it was called, and the grid to rewrite it with or the reason not to.

    bias_hides: each value of a mask that is no boolean one is proven to be 0 or to hide a key.
    """

    module: fx.GraphModule
    node: fx.Node
    call: Call
    grid: Grid | None
    reason: Reason | None
    detail: str
    sequence: str
    bias_hides: bool = False

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
            before=0 if self.grid is None else size_hint(self.grid.before),
            unasked=(0, 0) if self.grid is None else tuple(map(size_hint, self.grid.unasked)),  # type: ignore[arg-type]
        )


def find_attention(
    graph_module: fx.GraphModule,
    axes: TokenAxes,
    config: SvgConfig,
    markers: Mapping[str, Marker] | None = None,
    layers_before: int = 0,
) -> tuple[Candidate, ...]:
    """Every SDPA of the graph and its child graphs, decided, in the order in which they stand.

    markers: what `strip_markers` found. A marked attention has the grid that the whole model gave it; which of the
    model's layers it is, and so whether it is one of the first `dense_layers`, is known only when the graph runs,
    unless the marker has the number. layers_before: how many attentions with a grid ran before this graph.
    """
    found = []
    sparse_layers = layers_before
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
    nodes = graph_nodes(graph_module)
    return ((each, node) for each, node in nodes if node.op == "call_function" and node.target in SDPA_TARGETS)


def _marked(nodes: list[fx.Node], markers: Mapping[str, Marker]) -> dict[fx.Node, Grid | Reason]:
    """The grid or refusal of each attention of a marked layer, from its marker."""
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
    sequence = show_sequence(visits[0].query[-2]) if visits else ""
    bias_hides = bool(visits) and all(visit.bias_hides for visit in visits)
    found = _common_grid([grid_of(visit, tokens, config, marked) for visit in visits])
    grid, reason, detail = None, None, ""
    if isinstance(found, Refusal):
        reason, detail = found.reason, found.detail
    else:
        grid, detail = found, found.note
    if reason in (None, Reason.NOT_VIDEO, Reason.UNKNOWN_GRID):
        refusal = refused_call(call, example(node), config, bias_hides)
        if refusal is not None and (reason is None or refusal[0] is Reason.GRADIENT):
            reason, detail = refusal
    if reason is None and grid is not None and not settled(at_most, config.min_tokens, grid.tokens):
        reason, detail = Reason.TOO_SHORT, f"{size_hint(grid.tokens)} < {config.min_tokens}"
    if reason is None and grid is not None and not computable(module.graph, (*grid.sizes, grid.before, *grid.unasked)):
        reason = Reason.SYMBOLIC
    return Candidate(module, node, call, grid, reason, detail, sequence, bias_hides)


def _common_grid(found: list[Grid | Refusal]) -> Grid | Refusal:
    """The one grid of all runs of an attention."""
    refusal = next((each for each in found if isinstance(each, Refusal)), None)
    if not found or refusal is not None:
        return refusal or Refusal(Reason.HIGHER_ORDER)
    grids = [each for each in found if isinstance(each, Grid)]
    if not all(same_grid(grid, grids[0]) for grid in grids[1:]):
        # A child graph shared by calls of different grids has one body, which cannot hold two.
        return Refusal(Reason.SEVERAL_GRIDS, "a shared subgraph is called with different grids")
    return grids[0]


def _agree(given: VideoLayout | None, marked: Grid) -> bool:
    """True if options["layout"], which may omit the text, equals the whole model's grid."""
    if given is None:
        return True
    layout = Grid(given.frames, given.height, given.width, given.text_len, given.text_first)
    marked = replace(marked, unasked=(0, 0))
    return same_grid(layout, marked if given.text_len else replace(marked, text_len=0, text_first=False, before=0))
