"""Products with weights that are stored otherwise than `aten.mm` wants them, and such operators of other libraries.

Rows of the result are rows of the first operand: [..., K] -> [..., N].
"""

from __future__ import annotations

from typing import Any

from svg_compile._compat.operators import operators_named, qualified_name, writes_operands
from svg_compile.passes.axes.axis import Axis, Kind, is_table
from svg_compile.passes.axes.new_axes import axis_of, mixed_in, opaque_axis
from svg_compile.passes.axes.rules.call import Call
from svg_compile.passes.axes.rules.registry import same_size, takes_all

# Operators of other libraries, by their qualified name, `namespace::operator`: those that were declared, and those of
# which no graph shows what they do but their own documents and tests/test_quantised.py.
_REGISTERED: set[str] = set()
_KNOWN = frozenset(
    f"bitsandbytes::{name}"
    for name in (
        *("gemm_4bit", "int8_vectorwise_quant", "int8_linear_matmul", "int8_mm_dequant"),
        *("int8_scaled_mm", "int8_mixed_scaled_mm"),
    )
)


def register_rowwise_op(operator: Any) -> None:
    """Declare that an operator's result [..., N] has the rows of its first tensor operand [..., K], in their order.

    Row i of the result may depend on row i of that operand and on all of the other operands, as in a product with
    quantised weights. The token grid is then proven through it.

    operator: "namespace::name", or what `torch.ops.namespace.name` and `torch.library.custom_op` give. It holds for the
    process, as a registration of the operator itself does. A declaration that is not true gives wrong results. Raises
    TypeError for what names no operator, ValueError for one of torch's own or that writes its operands.
    """
    name = operator if isinstance(operator, str) else qualified_name(operator)
    if name is None or "::" not in name:
        raise TypeError(f"expected an operator or its name, 'namespace::operator', not {operator!r}")
    name = name.partition(".")[0]
    if name.startswith("aten::"):
        raise ValueError(f"{name} is torch's own: declare operators of other libraries")
    if not isinstance(operator, str) and writes_operands(operator):
        raise ValueError(f"{name} writes its operands")
    _REGISTERED.add(name)


def is_rowwise(name: str) -> bool:
    """True if an operator, by its qualified name, is known or declared to keep the rows of its first operand."""
    return name in _REGISTERED or name in _KNOWN


@takes_all(
    *operators_named("_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu"),
    *operators_named("_weight_int4pack_mm_with_scales_and_zeros", "_dyn_quant_matmul_4bit"),
)
def rowwise(call: Call) -> list[Axis]:
    """Rows of the first operand; the data of the others flows into all of them."""
    axes, shape = call.axes, call.shape
    tables = all(is_table(axis) for other in call.tensors[1:] for axis in call.of(other))
    alike = len(shape) == len(axes) and all(map(same_size, shape[:-1], call.source.shape[:-1]))
    if not alike or not axes:
        return [opaque_axis(size, *axes) for size in shape]
    rows = [axis if tables and is_table(axes[-1]) else mixed_in(axis) for axis in axes[:-1]]
    made = Kind.TABLE if tables and all(map(is_table, axes)) else Kind.MIXED
    return [*rows, axis_of(shape[-1], made)]
