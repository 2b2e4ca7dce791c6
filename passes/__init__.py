"""Graph passes of svg_compile, one a file; the order in which they run stands here and nowhere else."""

from __future__ import annotations

from torch import fx

from svg_compile._compat import fake_mode_of
from svg_compile.config import SvgConfig
from svg_compile.passes.find_attention import attention_nodes, find_attention
from svg_compile.passes.rewrite_attention import rewrite_attention
from svg_compile.passes.token_axes import infer_token_axes
from svg_compile.report import Report


def run_passes(graph_module: fx.GraphModule, config: SvgConfig, *, rewrite: bool = True) -> Report:
    """Infer the axes, find the attention, rewrite it; the graph is changed in place unless `rewrite` is False."""
    fake_mode = fake_mode_of(graph_module)
    if fake_mode is None or not any(attention_nodes(graph_module)):
        return Report()
    axes = infer_token_axes(graph_module, fake_mode)
    candidates = find_attention(graph_module, axes, config)
    report = Report(tuple(candidate.site(config.block) for candidate in candidates))
    if rewrite:
        rewrite_attention(candidates, config)
    return report
