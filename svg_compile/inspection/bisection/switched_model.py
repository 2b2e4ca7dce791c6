"""A model whose attentions are switched between sparse and dense from run to run, without compiling anew.

Dynamo traces the model, and the passes rewrite its graph as the backend does; the graph is then run as it is, without
Inductor. Whether an attention is sparse is a switch in the graph, looked at when it runs: a dense one is the model's
own scaled_dot_product_attention, and is not profiled. Attentions are identified by the order in which they run, so
that several graphs, one graph for several layers, and a recompile are all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from svg_compile._compat.compiled import isolated_compile
from svg_compile._compat.graphs import SDPA, copy_graph_module, graph_modules
from svg_compile._compat.modules import uncompiled
from svg_compile.config import split_options
from svg_compile.decisions import Decisions
from svg_compile.errors import SvgError
from svg_compile.inspection.preserve_state import module_of, untouched
from svg_compile.inspection.recording.naming import layer_names, numbered, parameter_name
from svg_compile.kernels import repair_ops
from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.runtime.dispatcher import key_parameter

_PROFILES = (torch.ops.svg.profile.default, repair_ops.PROFILE)


@dataclass
class _Site:
    """One rewritten attention of a graph: its layer, and which attention of the forward it is at the moment."""

    layer: str
    at: int = -1


@dataclass
class _State:
    """One forward: which attentions are sparse, by their order; their layers and the plans so far."""

    sparse: Any = ()
    layers: list[str] = field(default_factory=list)
    plans: dict[int, tuple[Tensor, VideoLayout]] = field(default_factory=dict)


class _Profile(nn.Module):
    """Stands for a profile, of repaired heads or not."""

    def __init__(self, site: _Site, state: _State, op: Any) -> None:
        super().__init__()
        self.site, self.state, self.op = site, state, op

    def forward(self, query: Tensor, *more: Any, **options: Any) -> tuple[Tensor, ...]:
        self.site.at = len(self.state.layers)
        self.state.layers.append(self.site.layer)
        if self.site.at in self.state.sparse:
            profiled: tuple[Tensor, ...] = self.op(query, *more, **options)
            return profiled
        # Nobody reads them: the attention looks at the switch.
        plan = query.new_full((*query.shape[:2], 2), int(HeadKind.DENSE), dtype=torch.int32)
        return (plan, *[query.new_zeros(0) for _ in self.op._schema.returns[1:]])


class _Attention(nn.Module):
    """Stands for `svg::attention`."""

    def __init__(self, site: _Site, state: _State) -> None:
        super().__init__()
        self.site, self.state = site, state

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, plan: Tensor, key_mask: Tensor | None, **options: Any
    ) -> Tensor:
        if self.site.at in self.state.sparse:
            self.state.plans[self.site.at] = (plan, VideoLayout.of(options["grid"]))
            attended: Tensor = torch.ops.svg.attention.default(query, key, value, plan, key_mask, **options)
            return attended
        mask = None if key_mask is None else key_mask[:, None, None, :]
        dense: Tensor = SDPA(query, key, value, attn_mask=mask, scale=options["scale"])
        return dense


class _Repair(nn.Module):
    """Stands for `svg::repair_`."""

    def __init__(self, site: _Site, state: _State) -> None:
        super().__init__()
        self.site, self.state = site, state

    def forward(self, *operands: Any, **options: Any) -> None:
        if self.site.at in self.state.sparse:
            repair_ops.REPAIR(*operands, **options)


class SwitchedModel:
    """A model whose rewritten attentions are sparse or dense from run to run."""

    def __init__(self, model: Callable[..., Any], inputs: Any, options: Mapping[str, Any] | None) -> None:
        config, _ = split_options(options)
        self.config = replace(config, density=config.densities[-1], profile_every=1, share_layers=False)
        self.inputs = inputs
        self.model = uncompiled(model)
        self.module = module_of(self.model)
        self.compiled: Callable[..., Any] | None = None
        # One object: a bound method is a new one at each access.
        self.backend: Callable[..., Any] = self._rewritten
        self.state = _State()
        self.reports: list[Decisions] = []

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of the last run, in order, each named unlike all others."""
        return numbered(self.state.layers)

    @property
    def plans(self) -> Mapping[int, tuple[Tensor, VideoLayout]]:
        """The plans of the last run."""
        return self.state.plans

    def run(self, sparse: Any) -> Any:
        """The model's output with these of its attentions sparse; each run finds the model as the first one did."""
        before = len(self.state.layers)
        self.state.sparse, self.state.layers, self.state.plans = sparse, [], {}
        with untouched(self.module, self.inputs, torch.device("cpu")) as ((args, kwargs), fake_mode):
            if fake_mode is not None:
                raise SvgError("bisect runs the model: it needs weights and inputs with data, not on the meta device.")
            if self.compiled is None:
                # Not before: torch.compile marks the module.
                self.compiled = isolated_compile(self.model, self.backend)
            output = self.compiled(*args, **kwargs)
        if before not in (0, len(self.state.layers)):
            raise SvgError(f"bisect: one forward has {before} attentions, another {len(self.state.layers)}.")
        return output

    def _rewritten(self, graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """The backend: the graph with its switches, run as it is."""
        from svg_compile.passes import run_passes
        from svg_compile.passes.expose_plans import ports_of

        twin = copy_graph_module(graph_module)
        report = run_passes(twin, self.config)
        self.reports.append(report)
        if not report.rewritten:
            return graph_module.forward
        sites = _switch(twin, self.state)
        names = [site.layer for site in sites]
        outputs, place = ports_of(twin).outputs, key_parameter(graph_module)

        def run(*inputs: Any) -> Any:
            path = None
            if place is not None and self.module is not None:
                path = parameter_name(self.module, inputs[place])
            for site, name in zip(sites, layer_names(self.module, path, names)):
                site.layer = name
            return twin(*inputs)[:outputs]

        return run


def _switch(graph_module: fx.GraphModule, state: _State) -> list[_Site]:
    """Put switches in the place of the ops, in the graph and its child graphs; returns them in order."""
    from svg_compile.passes.find_attention import layer_of

    sites = []
    for module in graph_modules(graph_module):
        nodes = [node for node in module.graph.nodes if node.op == "call_function"]
        profiles = [node for node in nodes if node.target in _PROFILES]
        attentions = [node for node in nodes if node.target is torch.ops.svg.attention.default]
        for profile, attention in zip(profiles, attentions, strict=True):
            site = _Site(layer_of(profile))
            sites.append(site)
            switches = [(profile, _Profile(site, state, profile.target)), (attention, _Attention(site, state))]
            switches += [(user, _Repair(site, state)) for user in attention.users if user.target is repair_ops.REPAIR]
            for node, switch in switches:
                name = f"svg_switch_{len(sites)}_{type(switch).__name__}"
                module.add_submodule(name, switch)
                with module.graph.inserting_before(node):
                    new = module.graph.call_module(name, node.args, node.kwargs)
                node.replace_all_uses_with(new)
                module.graph.erase_node(node)
        module.recompile()
    return sites
