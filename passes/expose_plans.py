"""Lead the plans of a rewritten graph out of it, and what they follow from into it.

    before   profiled = svg.profile(q, k, v, ..., when=None, previous=None, share=None)
             return (out,)
    after    profiled = svg.profile(q, k, v, ..., when=when, previous=previous, share=share)
             return (out, plan, errors)

Outputs: the plan and the errors of each profiled attention, so that a recorder can show them and a later step keep
them; where layers share the pairs, what its half-widths miss; with `repair` and `profile_every` its fit as well.
Inputs, only where the options need them: `when`, int32 [2], the place of the step's density and whether the heads are
profiled anew; `previous`, int32 [B, H, 2], one a profile, whose kinds are kept where they are not; after all of these
`previous_fit`, float32 [B, H, D + 2, D], one a profile; at last `shares`, float32 [profiles, B], of each layer.

Layers share only where the graph is for one batch size. Where grids are symbolic their sizes are led out as well,
behind all else: what is shared out depends on them.

Dynamo knows nothing of these: it calls the graph it traced, and `svg_compile.runtime.sparse_variant` stands between.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from svg_compile._compat.dynamo import pin_source
from svg_compile._compat.sizes import constant, is_symbolic
from svg_compile.config import SvgConfig
from svg_compile.kernels import repair_ops
from svg_compile.kernels.spread import Spread
from svg_compile.passes.node_origin import layer_of
from svg_compile.passes.spread_heads import SPREAD

_KEY = "svg_plan_ports"
_PROFILES = (torch.ops.svg.profile.default, repair_ops.PROFILE)
# The results of a profile.
_PLAN, _ERRORS, _FIT = 0, 1, 3
# The last of them.
_MISSING = -1


@dataclass(frozen=True)
class PlanPorts:
    """How plans pass in and out of a graph.

    layers: the module path of each profile that is led out, in the order of the outputs that follow the graph's own.
    spreads: of each the processes that its layer's heads are spread over, if any.
    grids: of each the (frames, height, width, text_len, text_first, block), None for a size that is symbolic.
    outputs: how many outputs are the graph's own.
    staged: whether the graph takes `when` after its own inputs, and then a `previous` for each of `shapes`.
    fits: whether fits are outputs next to plans and errors, and inputs after all of `shapes`.
    shared: whether the missing mass is led out behind plans and errors, and `shares` taken in after all else.
    sizes: how many symbolic sizes of `grids`, in their order, are the last outputs.
    inputs: examples of those inputs.
    """

    layers: tuple[str, ...] = ()
    spreads: tuple[Spread | None, ...] = ()
    grids: tuple[tuple[int | None, ...], ...] = ()
    outputs: int = 0
    staged: bool = False
    shapes: tuple[tuple[int, ...], ...] = ()
    fits: bool = False
    shared: bool = False
    sizes: int = 0
    inputs: tuple[Tensor, ...] = ()


def ports_of(graph_module: fx.GraphModule) -> PlanPorts:
    """The ports that `expose_plans` made in a graph; none where it did not run."""
    ports: PlanPorts = graph_module.meta.get(_KEY, PlanPorts())
    return ports


def expose_plans(graph_module: fx.GraphModule, config: SvgConfig, fake_mode: Any) -> None:
    """Add the ports for every `svg::profile` of the graph itself; lints and recompiles it, not child graphs."""
    graph = graph_module.graph
    profiles = [node for node in graph.nodes if node.op == "call_function" and node.target in _PROFILES]
    keeps = config.profile_every > 1
    fits = keeps and config.repair
    (output,) = graph.find_nodes(op="output")
    own = list(output.args[0])
    examples: list[Tensor] = []
    shapes: list[tuple[int, ...]] = []
    if config.staged:
        device = profiles[0].meta["example_value"][0].device
        examples = [torch.zeros(2, dtype=torch.int32, device=device)]
        when = _emit_placeholder(graph, "svg_when", examples[0], fake_mode)
        previous: list[list[fx.Node]] = [[] for _ in profiles]
        for part, name in ((_PLAN, "svg_previous"), *([(_FIT, "svg_previous_fit")] if fits else [])):
            for index, profile in enumerate(profiles if keeps else []):
                # Kept plans must fit: a graph that takes them is for one batch size, by a guard where it is symbolic.
                shown = profile.meta["example_value"][part]
                shape = tuple(int(constant(size) or 0) for size in shown.shape)
                if part == _PLAN:
                    shapes.append(shape)
                examples.append(torch.zeros(shape, dtype=shown.dtype, device=device))
                previous[index].append(_emit_placeholder(graph, f"{name}_{index}", examples[-1], fake_mode))
        for profile, kept in zip(profiles, previous, strict=True):
            profile.update_kwarg("when", when)
            for name, node in zip(("previous", "previous_fit"), kept):
                profile.update_kwarg(name, node)
    batch = _batch_of(profiles) if config.shares_layers else None
    shared = batch is not None
    if batch is not None:
        device = profiles[0].meta["example_value"][_PLAN].device
        shares = torch.ones(len(profiles), batch, dtype=torch.float32, device=device)
        examples.append(shares)
        _emit_shares(graph, profiles, _emit_placeholder(graph, "svg_shares", shares, fake_mode))
    for profile in profiles:
        missing = len(profile.meta["example_value"]) + _MISSING
        with graph.inserting_after(profile):
            led_out = (_PLAN, _ERRORS, *([missing] if shared else []), *([_FIT] if fits else []))
            parts = [graph.call_function(operator.getitem, (profile, part)) for part in led_out]
        for node, part in zip(parts, led_out, strict=True):
            node.meta.update({**profile.meta, "example_value": profile.meta["example_value"][part]})
        own += parts
    grids = [profile.kwargs["grid"] for profile in profiles]
    sizes = [size for grid in grids for size in grid if shared and isinstance(size, fx.Node)]
    graph_module.meta[_KEY] = PlanPorts(
        layers=tuple(layer_of(profile) for profile in profiles),
        spreads=tuple(profile.meta.get(SPREAD) for profile in profiles),
        grids=tuple(tuple(None if isinstance(size, fx.Node) else size for size in grid) for grid in grids),
        outputs=len(output.args[0]),
        staged=config.staged,
        shapes=tuple(shapes),
        fits=fits,
        shared=shared,
        sizes=len(sizes),
        inputs=tuple(examples),
    )
    output.args = (tuple(own + sizes),)
    graph.lint()
    graph_module.recompile()


def _batch_of(profiles: list[fx.Node]) -> int | None:
    """The batch size of all profiles; None where they differ, or where it is symbolic."""
    sizes = [profile.meta["example_value"][_PLAN].shape[0] for profile in profiles]
    known = all(not is_symbolic(size) and size == sizes[0] for size in sizes)
    return sizes[0] if profiles and known else None


def _emit_shares(graph: fx.Graph, profiles: list[fx.Node], shares: fx.Node) -> None:
    """Give each profile its row of `shares` [profiles, B]."""
    for index, profile in enumerate(profiles):
        with graph.inserting_before(profile):
            share = graph.call_function(torch.select, (shares, 0, index))
        share.meta["example_value"] = shares.meta["example_value"][index]
        profile.update_kwarg("share", share)


def _emit_placeholder(graph: fx.Graph, name: str, example: Tensor, fake_mode: Any) -> fx.Node:
    """An input after all others; it has no source in the user's code, so nothing guards it."""
    *_, last = graph.find_nodes(op="placeholder")
    with graph.inserting_after(last):
        node = graph.placeholder(name)
    node.meta["example_value"] = fake_mode.from_tensor(example, static_shapes=True)
    pin_source(node, name)
    return node
