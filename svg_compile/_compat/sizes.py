"""Sizes that may be symbolic: hints, facts that hold for every size, and facts that are made to hold by a guard."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true


def _hint(size: Any) -> int | None:
    """The size of the traced example, None for a size that depends on data."""
    if isinstance(size, int):
        return size
    node = size.node
    return node.hint if node.has_hint() else None


def size_hint(size: Any) -> int:
    """The size of the traced example as an int; 0 where it depends on data."""
    return _hint(size) or 0


# Facts already decided, per shape environment: deciding one symbolic fact costs milliseconds, and layers repeat them.
_DECIDED: Any = WeakKeyDictionary()


def holds(fact: Callable[..., Any], *sizes: Any) -> bool:
    """True if a fact about sizes holds for every input that this compiled graph will accept.

    Plain ints decide directly. Symbolic sizes: proven, or true of the traced example and then guarded, so that an
    input of which it is untrue recompiles. A fact untrue of the example is False without a guard: callers must treat
    False as "not proven". `fact` must be a module-level function, for its decisions are remembered.
    """
    symbolic = next((size for size in sizes if not isinstance(size, int)), None)
    if symbolic is None:
        return bool(fact(*sizes))
    # The cheap answers first: the same expression, then the example.
    terms = tuple(map(expression, sizes))
    if fact in (equal, at_most) and terms[0] == terms[1]:
        return True
    hints = [_hint(size) for size in sizes]
    if None not in hints and not fact(*hints):
        return False
    decided = _DECIDED.setdefault(symbolic.node.shape_env, {})
    key = (fact, *terms)
    if key not in decided:
        claim = fact(*sizes)
        decided[key] = statically_known_true(claim) if None in hints else bool(claim)
    return bool(decided[key])


def settled(fact: Callable[..., Any], *sizes: Any) -> bool:
    """True if a fact holds. Both answers are guarded, so another input recompiles; False if it cannot be decided."""
    if all(isinstance(size, int) for size in sizes):
        return bool(fact(*sizes))
    if None in map(_hint, sizes):
        return statically_known_true(fact(*sizes))
    return bool(fact(*sizes))


def product_is(factors: Sequence[Any], size: Any) -> bool:
    """`holds` of: the product of `factors` is `size`; mostly decided without a symbolic product."""
    hints = [_hint(factor) for factor in (*factors, size)]
    known = [hint for hint in hints if hint is not None]
    if len(known) == len(hints) and math.prod(known[:-1]) != known[-1]:
        return False
    if all(isinstance(factor, int) for factor in (*factors, size)):
        return True
    product, whole = sympy.Mul(*map(expression, factors)), sympy.sympify(expression(size))
    return bool(product == whole or sympy.expand(product) == sympy.expand(whole)) or holds(
        equal, product_of(factors), size
    )


def within(factors: Sequence[Any], size: Any) -> bool:
    """True if the product of `factors` divides `size` in the traced example; nothing is proven or guarded by it."""
    hints = [_hint(factor) for factor in (*factors, size)]
    if any(not hint for hint in hints):
        return False
    known = [hint for hint in hints if hint is not None]
    return known[-1] % math.prod(known[:-1]) == 0


def equal(left: Any, right: Any) -> Any:
    """Fact: two sizes are equal."""
    return left == right


def divides(divisor: Any, size: Any) -> Any:
    """Fact: `divisor` is positive and divides `size`."""
    return False if isinstance(divisor, int) and divisor == 0 else size % divisor == 0


def at_most(small: Any, large: Any) -> Any:
    """Fact: one size is not above another."""
    return small <= large


def negative(size: Any) -> Any:
    """Fact: a position counts from the end."""
    return size < 0


def product_of(sizes: Sequence[Any]) -> Any:
    """The product of sizes."""
    total: Any = 1
    for size in sizes:
        total = size if isinstance(total, int) and total == 1 else total * size
    return total


def expression(size: Any) -> Any:
    """A size as a sympy expression, or the int that it is."""
    return size if isinstance(size, int) else size.node.expr


def constant(value: Any, only: float | None = None) -> int | float | None:
    """A number as a Python number; a symbolic one by a guard that fixes it to the traced example's.

    None where it is no number, or depends on data. With `only`, a symbolic number is fixed to that value or left.
    """
    if isinstance(value, (int, float)):
        return value
    if not isinstance(value, (torch.SymInt, torch.SymFloat)) or not value.node.has_hint():
        return None
    if only is not None and value.node.hint != only:
        return None
    return int(value) if isinstance(value, torch.SymInt) else float(value)


def is_symbolic(size: Any) -> bool:
    """True if a size is symbolic."""
    return not isinstance(size, int)
