"""The argument of a rule: one call of an operator, with the axes of its operands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from svg_compile._compat.pytree import tensors_in
from svg_compile.passes.axes.axis import Axis

# The axes of an operand.
AxesOf = Callable[[Tensor], list[Axis]]


@dataclass(frozen=True)
class Call:
    """One call of an operator, as a rule sees it.

    arguments: by the names of the operator's schema, those that were left out at their defaults. results: of which a
    rule names one, `out`. of: the axes of a tensor.
    """

    arguments: Mapping[str, Any]
    results: Sequence[Tensor]
    out: Tensor
    of: AxesOf

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arguments

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or the default where this overload of the operator has none of that name."""
        return self.arguments.get(name, default)

    @property
    def tensors(self) -> list[Tensor]:
        """The operands, those in lists too."""
        return tensors_in(list(self.arguments.values()))

    @property
    def source(self) -> Tensor:
        """The first operand."""
        return self.tensors[0]

    @property
    def axes(self) -> list[Axis]:
        """The axes of the first operand."""
        return list(self.of(self.source))

    @property
    def before(self) -> Sequence[Tensor]:
        """The results that stand before the one that is named."""
        return self.results[: next(at for at, result in enumerate(self.results) if result is self.out)]

    @property
    def shape(self) -> tuple[Any, ...]:
        """The shape of the result; sizes may be symbolic."""
        return tuple(self.out.shape)

    def dims(self, *names: str) -> list[int]:
        """The dimensions of the first operand that an argument of one of these names gives, all where it is None."""
        given = next((self.arguments[name] for name in names if name in self.arguments), None)
        rank = max(self.source.dim(), 1)
        if given is None or given == []:
            return list(range(self.source.dim()))
        return [dim % rank for dim in (given if isinstance(given, Iterable) else [given])]


def bound_arguments(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those left out at their defaults."""
    bound = {}
    for at, argument in enumerate(schema.arguments):
        if at < len(args):
            bound[argument.name] = args[at]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound
