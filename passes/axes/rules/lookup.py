"""The rule of an operator: its own, or that of its kind."""

from __future__ import annotations

from typing import Any

import torch

from svg_compile._compat.operators import qualified_name, writes_operands
from svg_compile.passes.axes.rules import moves, views  # noqa: F401  (they fill RULES)
from svg_compile.passes.axes.rules.compute import pointwise
from svg_compile.passes.axes.rules.registry import RULES, Rule
from svg_compile.passes.axes.rules.rowwise import is_rowwise, rowwise


def rule_of(operator: Any) -> Rule | None:
    """The rule of an overload that writes none of its operands; None where there is none."""
    rule = RULES.get(operator.overloadpacket)
    if rule is None and not writes_operands(operator):
        if torch.Tag.pointwise in operator.tags:
            return pointwise
        if is_rowwise(qualified_name(operator) or ""):
            return rowwise
    return rule
