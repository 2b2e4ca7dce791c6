"""Find the self-attention over video tokens, and say of every other attention why it is left alone.

    before   one scaled_dot_product_attention call a node, its axes inferred by `token_axes`
    after    a `Candidate` a call: the operands, the grid and the key mask, or a `Reason`

Rewritten only where everything is proven: query, key and value run over the same sequence of one video grid in
raster order with text on at most one side; the mask is none or hides keys alone; no causality, dropout, grouped
queries or gradients. What is not proven is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from svg_compile._compat import SDPA_TARGETS, at_most, equal, holds, size_hint
from svg_compile.config import SvgConfig
from svg_compile.layout import VideoLayout
from svg_compile.passes.axes import Atom, Axis, Concat, expand, is_opaque, length, resolve, same_axis
from svg_compile.passes.symbols import computable
from svg_compile.passes.token_axes import AttentionAxes, TokenAxes, show
from svg_compile.report import Reason, Site

_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_DEFAULTS = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TRITON_HEAD_DIMS = range(16, 257)


@dataclass(frozen=True)
class Grid:
    """The token grid of one sequence; sizes may be symbolic."""

    frames: Any
    height: Any
    width: Any
    text_len: Any = 0
    text_first: bool = False

    @property
    def sizes(self) -> tuple[Any, Any, Any, Any]:
        return self.frames, self.height, self.width, self.text_len

    @property
    def tokens(self) -> Any:
        return self.frames * self.height * self.width + self.text_len


@dataclass(frozen=True)
class Candidate:
    """One SDPA node: how it was called, and the grid to rewrite it with or the reason not to."""

    module: fx.GraphModule
    node: fx.Node
    call: dict[str, Any]
    grid: Grid | None
    reason: Reason | None
    detail: str
    sequence: str

    @property
    def accepted(self) -> bool:
        return self.reason is None

    def site(self, block: int) -> Site:
        """The candidate as a row of the report."""
        query, key = (_example(self.call[name]) for name in ("query", "key"))
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
        )


def find_attention(graph_module: fx.GraphModule, axes: TokenAxes, config: SvgConfig) -> tuple[Candidate, ...]:
    """Every SDPA of the graph and its child graphs, decided, in the order in which they stand."""
    found = []
    sparse_layers = 0
    for module, node in attention_nodes(graph_module):
        candidate = _decide(module, node, axes.visits.get(node, ()), config)
        if candidate.accepted:
            sparse_layers += 1
            if sparse_layers <= config.dense_layers:
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


def _decide(module: fx.GraphModule, node: fx.Node, visits: tuple[AttentionAxes, ...], config: SvgConfig) -> Candidate:
    call = dict(_DEFAULTS) | dict(zip(_PARAMETERS, node.args)) | dict(node.kwargs)
    sequence = f"[{show(visits[0].query[-2])}]".replace("[[", "[").replace("]]", "]") if visits else ""
    grid, reason, detail = None, Reason.HIGHER_ORDER if not visits else None, ""
    for visit in visits:
        seen, reason, detail = _grid_of(visit, _tokens(call), config)
        if reason is None and grid is not None and not _same_grid(seen, grid):
            # A child graph shared by calls of different grids has one body, which cannot hold two.
            reason, detail = Reason.SEVERAL_GRIDS, "a shared subgraph is called with different grids"
        if reason is not None:
            break
        grid = seen
    if reason in (None, Reason.NOT_VIDEO, Reason.UNKNOWN_GRID):
        refusal = _refused_call(call, config)
        if refusal is not None and (reason is None or refusal[0] is Reason.GRADIENT):
            reason, detail = refusal
    if reason is None and grid is not None and not holds(at_most, config.min_tokens, grid.tokens):
        reason, detail = Reason.TOO_SHORT, f"{size_hint(grid.tokens)} < {config.min_tokens}"
    if reason is None and grid is not None and not computable(module.graph, grid.sizes):
        reason = Reason.SYMBOLIC
    return Candidate(module, node, call, grid, reason, detail, sequence)


def _tokens(call: dict[str, Any]) -> tuple[Any, Any]:
    return _example(call["query"]).shape[-2], _example(call["key"]).shape[-2]


Verdict = tuple["Grid | None", "Reason | None", str]


def _grid_of(visit: AttentionAxes, tokens: tuple[Any, Any], config: SvgConfig) -> Verdict:
    """The grid of one visit, or why there is none."""
    query, key, value = (axes[-2] for axes in (visit.query, visit.key, visit.value))
    if not holds(equal, *tokens):
        return None, Reason.CROSS_ATTENTION, ""
    given = _given_grid(config, tokens[0])
    if not (same_axis(query, key) and same_axis(key, value)):
        if not any(_has_opaque(axis) for axis in (query, key, value)):
            return None, Reason.CROSS_ATTENTION, ""
        return (given, None, "") if given else (None, Reason.UNKNOWN_GRID, "")
    grid, reason, detail = _segments(query)
    if reason is None and not _whole_sequence(visit, query):
        grid, reason, detail = None, Reason.UNKNOWN_GRID, "part of the grid stands in the batch or head axis"
    if reason in (Reason.NOT_VIDEO, Reason.UNKNOWN_GRID) and given:
        return given, None, ""
    if reason is None and config.layout is not None and not (given and _same_grid(grid, given)):
        return None, Reason.LAYOUT_CONFLICT, f"found {show(query)}"
    if reason is None and grid is not None and not holds(equal, grid.tokens, tokens[0]):
        return None, Reason.UNKNOWN_GRID, "the segments do not add up to the sequence"
    return grid, reason, detail


def _given_grid(config: SvgConfig, tokens: Any) -> Grid | None:
    layout = config.layout
    if layout is None or not holds(equal, layout.tokens, tokens) or layout.frames == 1:
        return None
    return Grid(layout.frames, layout.height, layout.width, layout.text_len, layout.text_first)


def _same_grid(left: Grid | None, right: Grid | None) -> bool:
    if left is None or right is None or left.text_first is not right.text_first:
        # Where there is no text its side does not matter.
        if left is None or right is None or not (left.text_len is right.text_len == 0):
            return False
    return all(holds(equal, a, b) for a, b in zip(left.sizes, right.sizes))


def _has_opaque(axis: Axis) -> bool:
    return any(
        part.opaque if isinstance(part, Atom) else any(_has_opaque(segment) for segment in part.segments)
        for part in resolve(axis)
    )


def _segments(axis: Axis) -> Verdict:
    """Read a sequence axis: one video segment, plain (text) segments on one side of it."""
    parts = resolve(axis)
    segments = parts[0].segments if len(parts) == 1 and isinstance(parts[0], Concat) else (parts,)
    videos = [position for position, segment in enumerate(segments) if video_grid(segment) is not None]
    if len(videos) > 1:
        return None, Reason.SEVERAL_GRIDS, ""
    plain = [len(segment) <= 1 and not is_opaque(segment) for segment in segments]
    if not videos:
        if any(_frame_of_one(segment) for segment in segments):
            return None, Reason.SINGLE_FRAME, ""
        return None, Reason.NOT_VIDEO if all(plain) else Reason.UNKNOWN_GRID, ""
    at = videos[0]
    before, after = segments[:at], segments[at + 1 :]
    if not all(plain[:at] + plain[at + 1 :]):
        grids = any(len(segment) > 1 for segment in (*before, *after))
        return None, Reason.SEVERAL_GRIDS if grids else Reason.UNKNOWN_GRID, ""
    if before and after:
        return None, Reason.SEVERAL_GRIDS, "text on both sides of the video"
    frames, height, width = (part.size for part in segments[at])
    text_len = sum(length(segment) for segment in (*before, *after))
    return Grid(frames, height, width, text_len, bool(before)), None, ""


def video_grid(segment: Axis) -> tuple[Atom, ...] | None:
    """The three atoms of (frames, height, width), or None where the segment is not proven to be a raster of them.

    Each must count whole tokens (no inner part of a split, as a window would have), come from an input's axis or an
    arange of coordinates, and no two from one input in another order than there.
    """
    parts = expand(segment)
    atoms = tuple(part for part in parts if isinstance(part, Atom))
    if len(parts) != 3 or len(atoms) != 3 or len({id(atom.root) for atom in atoms}) != 3:
        return None
    if any(atom.opaque or atom.inner or atom.origin is None for atom in atoms):
        return None
    last: dict[str, int] = {}
    for atom in atoms:
        assert atom.origin is not None
        source, dim = atom.origin.source, atom.origin.dim
        if source != "arange" and dim <= last.get(source, 0):
            return None
        last[source] = dim
    return atoms


def _frame_of_one(segment: Axis) -> bool:
    """Two neighbouring axes of a 5-D input: height and width of a video of one frame, whose axis of 1 is dropped."""
    atoms = [part for part in expand(segment) if isinstance(part, Atom)]
    if len(atoms) != 2 or any(atom.origin is None or atom.inner or atom.opaque for atom in atoms):
        return False
    first, second = (atom.origin for atom in atoms)
    assert first is not None
    assert second is not None
    return first.source == second.source and first.rank == 5 and second.dim == first.dim + 1


def _whole_sequence(visit: AttentionAxes, query: Axis) -> bool:
    """Whether the sequence holds all of the grid: none of it stands in the batch or head axis, as windows would."""
    segments: list[Axis] = []
    for part in resolve(query):
        segments += part.segments if isinstance(part, Concat) else [(part,)]
    tokens = [part for segment in segments for part in expand(segment) if isinstance(part, Atom)]
    roots = {id(atom.root) for atom in tokens}
    sources = {atom.origin.source for atom in tokens if atom.origin is not None} - {"arange"}
    outer = [axis for axes in (visit.query, visit.key, visit.value) for axis in axes[:-3]] + [visit.value[-3]]
    for part in (part for axis in outer for part in expand(axis)):
        if not isinstance(part, Atom) or part.opaque or id(part.root) in roots:
            return False
        if part.origin is not None and part.origin.source in sources and part.origin.dim != 0:
            return False
    return True


def _refused_call(call: dict[str, Any], config: SvgConfig) -> tuple[Reason, str] | None:
    """What of the call itself, apart from the tokens, cannot be rewritten."""
    query, key, value = (_example(call[name]) for name in ("query", "key", "value"))
    if any(tensor.requires_grad for tensor in (query, key, value)):
        return Reason.GRADIENT, ""
    if call["is_causal"] is not False:
        return Reason.CAUSAL, ""
    if not isinstance(call["dropout_p"], (int, float)) or call["dropout_p"] != 0:
        return Reason.DROPOUT, f"dropout_p={call['dropout_p']}"
    alike = all(holds(equal, query.shape[d], t.shape[d]) for t in (key, value) for d in range(query.dim() - 2))
    if call["enable_gqa"] is not False or not query.dim() == key.dim() == value.dim() == 4 or not alike:
        return Reason.GROUPED_QUERY, f"query {list(query.shape)}, key {list(key.shape)}"
    if call["attn_mask"] is not None and not _is_key_mask(_example(call["attn_mask"]), query):
        mask = _example(call["attn_mask"])
        return Reason.MASK, f"{mask.dtype} {list(mask.shape)}".replace("torch.", "")
    if call["scale"] is not None and not isinstance(call["scale"], (int, float)):
        return Reason.SCALE, ""
    if query.dtype not in _DTYPES or not query.dtype == key.dtype == value.dtype:
        return Reason.DTYPE, str(query.dtype).removeprefix("torch.")
    on_gpu = query.device.type == "cuda"
    head_dims = [tensor.shape[-1] for tensor in (query, key, value)]
    if len(set(head_dims)) != 1 or not isinstance(head_dims[0], int):
        return Reason.HEAD_DIM, f"{head_dims}"
    if on_gpu and config.engine in ("auto", "triton") and head_dims[0] not in _TRITON_HEAD_DIMS:
        return Reason.HEAD_DIM, f"{head_dims[0]}"
    if query.device.type not in ("cpu", "cuda") or config.engine == ("cpu" if on_gpu else "triton"):
        return Reason.DEVICE, f"{query.device.type}, engine {config.engine!r}"
    return None


def _is_key_mask(mask: Tensor, query: Tensor) -> bool:
    """A boolean [B, 1, 1, N] or [1, 1, 1, N] hides keys from all queries alike, whatever made it."""
    if mask.dtype is not torch.bool or mask.dim() != 4:
        return False
    batch, heads, rows, columns = mask.shape
    one_batch = holds(equal, batch, 1) or holds(equal, batch, query.shape[0])
    return one_batch and holds(equal, heads, 1) and holds(equal, rows, 1) and holds(equal, columns, query.shape[2])


def _example(value: Any) -> Any:
    return value.meta["example_value"] if isinstance(value, fx.Node) else value


def layer_of(node: fx.Node) -> str:
    """The module path of the layer that made the node, "" where the graph does not say."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(entry[0]) for entry in stack.values()]
    if not paths:
        return ""
    path = re.sub(r"\[['\"]?([^'\"\]]+)['\"]?\]", r".\1", paths[-1])
    parts = [part for part in path.split(".") if part not in ("L", "self", "_modules", "__dict__", "_orig_mod", "")]
    return ".".join(parts)


def source_of(node: fx.Node) -> str:
    """file:line of the innermost source line that made the node, "" where the graph does not say."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""
