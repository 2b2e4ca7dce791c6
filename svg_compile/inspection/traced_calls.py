"""The events of a model's trace: calls of its graphs, and operators that Python code calls between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from svg_compile._compat.fake_values import ValueMode
from svg_compile._compat.operators import qualified_name
from svg_compile._compat.pytree import tensors_in
from svg_compile._compat.subclasses import is_quantised
from svg_compile.config import SvgConfig
from svg_compile.decisions import Reason, Site
from svg_compile.inspection.callers import Callers, place, stack
from svg_compile.inspection.held_tensors import held_tensors
from svg_compile.inspection.opened import opened
from svg_compile.layout import VideoLayout
from svg_compile.passes.attention_operators import AttentionCall, heads_first, read_call
from svg_compile.passes.axes.axis import Axis
from svg_compile.passes.axes.grid import grid_of
from svg_compile.passes.axes.ledger import GraphCall, InputFacts, Ledger
from svg_compile.passes.axes.read_grid import Grid
from svg_compile.passes.axes.text import show_sequence
from svg_compile.passes.axes.tracker import AttentionAxes

_ATTENTION = "scaled_dot_product"
_BETWEEN = "between graphs"
_CARRIED = "with svg_compile.attach(pipe), as its grid is carried across a graph break"


class TracedCalls:
    """The calls of one trace, and the attentions in them, in the order in which they run.

    why_between: what parted the graphs at last, for attention that runs between them.
    """

    def __init__(
        self, model: Any, inputs: Any, mode: ValueMode, config: SvgConfig, why_between: Callable[[], str]
    ) -> None:
        self.config = config
        self._callers = Callers(model)
        self._why_between = why_between
        self._found: dict[tuple[Any, Site], int] = {}
        # Attentions with a grid so far.
        self._layers = 0
        self.ledger = Ledger(
            tensors_in(opened(inputs)),
            _state_of(model),
            lambda: mode.data_was_read,
        )
        mode.listener = self._hear

    @property
    def sites(self) -> tuple[Site, ...]:
        """The attentions; one that ran several times, and nothing tells the calls apart, is one of so many calls."""
        return tuple(replace(site, calls=calls) for (_, site), calls in self._found.items())

    @property
    def in_graphs(self) -> tuple[Site, ...]:
        """Those that are part of a graph."""
        return tuple(replace(site, calls=calls) for (where, site), calls in self._found.items() if where != _BETWEEN)

    def call(self, facts: InputFacts, inputs: Mapping[fx.Node, Any], *, first: bool) -> GraphCall:
        """A graph is called with these inputs."""
        return GraphCall(self.ledger, facts, inputs, first=first, layers_before=self._layers)

    def add(self, graph: fx.GraphModule, sites: Sequence[Site], alone: Sequence[Site]) -> None:
        """The attentions of the call of a graph that runs now. alone: as the graph shows them by itself."""
        shown = alone if len(alone) == len(sites) else sites
        for number, (site, by_itself) in enumerate(zip(sites, shown)):
            detail = site.detail
            self._layers += site.rewritten or site.reason is Reason.DENSE_LAYER
            if site.rewritten and not by_itself.rewritten:
                detail = f"{_CARRIED}; {detail}" if detail else _CARRIED
            self._note((graph, number), replace(site, layer=self._callers.layer(site.layer), detail=detail))

    def _note(self, where: Any, site: Site) -> None:
        self._found[where, site] = self._found.get((where, site), 0) + 1

    def _hear(self, operator: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Python code has called an operator between the graphs."""
        here = place()
        if _ATTENTION in (qualified_name(operator) or "") and len(args) > 2:
            self._attention(args[:3], [list(self.ledger.of(each)) for each in args[:3]], here)
        elif isinstance(call := read_call(operator, args, kwargs), AttentionCall):
            operands = (call.query, call.key, call.value)
            axes = [_heads_first(list(self.ledger.of(each)), call) for each in operands]
            self._attention([heads_first(call, each) for each in operands], axes, here)
        self.ledger.hear(operator, args, kwargs, out, here)

    def _attention(self, operands: Sequence[Tensor], of: Sequence[Sequence[Axis]], here: str) -> None:
        """Attention of query, key and value [B, H, N, D], with their axes."""
        query, key, _ = operands
        of_query, of_key, of_value = map(tuple, of)
        axes = AttentionAxes(of_query, of_key, of_value)
        tokens = query.shape[-2], key.shape[-2]
        found = grid_of(axes, tokens, self.config) if query.dim() == 4 else None
        layout, reason, detail = None, Reason.UNPROVEN_BETWEEN_GRAPHS, self._why_between()
        if isinstance(found, Grid):
            reason = Reason.BETWEEN_GRAPHS
            layout = VideoLayout(*found.sizes, found.text_first, self.config.block)
        elif found is None:
            detail = f"{detail}; {Reason.RANK.text}".lstrip("; ")
        elif found.reason in (Reason.UNKNOWN_GRID, Reason.NOT_VIDEO):
            detail = f"{detail}; {found.detail or found.reason.text}".lstrip("; ")
        else:
            reason, detail = found.reason, found.detail
        site = Site(
            rewritten=False,
            reason=reason,
            layer=self._callers.layer(),
            layout=layout,
            batch=query.shape[0] if query.dim() == 4 else 1,
            heads=query.shape[-3] if query.dim() > 2 else 1,
            head_dim=query.shape[-1],
            tokens=tokens[0],
            key_tokens=tokens[1],
            sequence=show_sequence(axes.query[-2]),
            source=here,
            detail=detail,
            stack=stack(),
            before=found.before if isinstance(found, Grid) else 0,
            unasked=found.unasked if isinstance(found, Grid) else (0, 0),
        )
        self._note(_BETWEEN, site)


def _heads_first(axes: list[Axis], call: AttentionCall) -> list[Axis]:
    """The axes of an operand by the dimensions [B, H, N, D]."""
    axes = axes if call.lengths is None else [(), *axes]
    return [axes[0], axes[2], axes[1], axes[3]] if call.operator.layout == "BNHD" else axes


def _state_of(model: Any) -> Iterable[Tensor]:
    """The parameters, buffers and other tensors that a model holds, with those that quantised weights hold."""
    for module in model.modules() if isinstance(model, nn.Module) else ():
        for _, tensor in held_tensors(module):
            yield tensor
            # Scales, and values that stand for the weight's own.
            beside = vars(tensor).values() if is_quantised(tensor) else ()
            yield from (part for part in beside if isinstance(part, Tensor))
