"""Read by mypy in `make lint`, never run: the types of the package reach its users, and those of passes and kernels are
checked across files. `assert_type` fails where a name is `Any` to mypy.
"""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import assert_type

import svg_compile
from svg_compile.kernels.plan import plan_from_kinds
from svg_compile.layout import VideoLayout
from svg_compile.passes.axes.axis import Atom, Kind


def check(atom: Atom, kinds: torch.Tensor, layout: VideoLayout, rows: torch.Tensor, model: torch.nn.Module) -> None:
    assert_type(atom.kind, Kind)
    assert_type(plan_from_kinds(kinds, layout, 0.3), torch.Tensor)
    assert_type(svg_compile.profile_heads(rows, rows, rows, layout), torch.Tensor)
    assert_type(svg_compile.sparse_attention(rows, rows, rows, kinds, layout), torch.Tensor)
    assert_type(svg_compile.explain(model, rows), svg_compile.Report)
    assert_type(svg_compile.VideoLayout(2, 3, 4).tokens, int)


def check_unknown_is_seen(anything: Any) -> None:
    assert_type(anything, Any)
