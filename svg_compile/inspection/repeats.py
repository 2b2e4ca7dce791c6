"""Blocks of a model that run alike, one after another, so that a trace of a few of them says what all do.

The model runs once as plain Python on tensors without values, in all its depth. Its blocks (elements of the outermost
lists of modules) tell how they were called. A run is blocks in a row of which each but the first

    has equal facts (`alike`) at the moment of its call: classes, attributes, shapes of weights, values of buffers
    gets the results of the block before it, untouched, at the same places of its arguments, and nothing else that
    differs from that block's arguments
    leaves no trace: no attribute, argument or global is another one after it ran, and it reads no value

Whatever the model does with its blocks by their numbers shows here, in its own code at its full depth: a window at
every second block, blocks left out, a residual of another network added between. Such a model has no such run there.
Of a run the first two blocks really run, and the others answer with tensors of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import count
from types import MethodType
from typing import Any, Union

import torch
from torch import Tensor, nn

from svg_compile._compat.fake_values import ValueMode, written
from svg_compile._compat.modules import listed_blocks
from svg_compile._compat.operators import qualified_name, writes_operands
from svg_compile._compat.pytree import tensors_in, tree_flatten, tree_leaves
from svg_compile._compat.storages import storage_of
from svg_compile.inspection.alike import Facts, tensor_facts
from svg_compile.inspection.cost import counting_flops
from svg_compile.passes.attention_operators import attention_operator

# How many blocks of a run really run here.
_REAL = 2
# In the names of operators that attention is made of.
_ATTENTION = ("scaled_dot_product", "softmax")
# Operators whose result, or its shape, follows from values.
_READING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class NotRepeated(Exception):
    """The model's blocks do something that only a trace of all of them shows."""


# A place among the arguments of a block: a number, or a name.
Place = Union[int, str]
Chain = tuple[tuple[int, Place], ...]


@dataclass(frozen=True)
class Run:
    """Blocks that run alike, by their paths, in the order in which they run.

    chain: the place among the results of a block, and that among the arguments of the next one. kind: what a block
    returns: a tensor, or a tuple or a list of so many results. flops: of one block.
    """

    paths: tuple[str, ...]
    chain: Chain
    kind: type
    results: int
    flops: int


@dataclass
class _Call:
    """One call of a block. Calls with equal `facts` run the same operators.

    given (its arguments) and results hold the tensors themselves, as tensors are compared by identity.
    """

    path: str
    facts: Hashable
    chain: Chain
    given: Mapping[Place, Any]
    results: list[Any]
    kind: type
    flops: int


def could_repeat(model: nn.Module, least: int) -> bool:
    """True if a model has a list of at least so many blocks of one class."""
    kinds = [(path.rpartition(".")[0], type(block)) for path, block in listed_blocks(model)]
    return any(kinds.count(kind) >= least for kind in set(kinds))


def repeated_runs(clone: nn.Module, args: Any, kwargs: Any, mode: ValueMode) -> tuple[Run, ...]:
    """The runs of two and more blocks, found by a forward of a clone of a model on tensors of `mode`.

    Raises NotRepeated, or what the forward itself raises.
    """
    recorder = _Recorder(mode)
    for path, block in listed_blocks(clone):
        block.forward = MethodType(recorder.recording(path, type(block).forward), block)
    with mode:
        clone(*args, **kwargs)
    return recorder.found()


class _Recorder:
    """Stands around the blocks of a clone while it runs."""

    def __init__(self, mode: ValueMode) -> None:
        self._facts = Facts(mode.value)
        self._runs: list[list[_Call]] = []
        self._inside = False
        # Storages that were written since the last block began or ended, and those that were made since.
        self._written: set[int] = set()
        self._made: set[int] = set()
        self._reads = 0
        # True if attention has run outside of any block since.
        self._attended = False
        self._numbers = count()
        mode.listener = self._hear

    def recording(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward that a block gets instead of its own."""

        def recorded(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._inside:
                raise NotRepeated(f"{path} runs inside another block")
            given: dict[Place, Any] = dict(enumerate(args))
            given.update(kwargs)
            before = self._runs[-1][-1] if self._runs else None
            facts, chain = self._seen(block, given, before)
            alike = before is not None and before.facts == facts and _goes_on(before, chain) and not self._attended
            run = self._runs[-1] if alike else []
            if len(run) < _REAL:
                out, flops = self._run(path, block, forward, args, kwargs)
                results, kind = _parted(path, out)
                # Where results look otherwise than those of the block before, this one is the first of a run.
                if run and (kind, _looks(results)) != (run[-1].kind, _looks(run[-1].results)):
                    run = []
            else:
                results, kind, flops = list(map(_twin, run[-1].results)), run[-1].kind, run[-1].flops
                out = results[0] if kind is Tensor else kind(results)
            run.append(_Call(path, facts, chain, given, results, kind, flops))
            if len(run) == 1:
                self._runs.append(run)
            self._written, self._made, self._attended = set(), set(), False
            return out

        return recorded

    def _seen(self, block: nn.Module, given: Mapping[Place, Any], before: _Call | None) -> tuple[Hashable, Chain]:
        """(the facts of a call of a block, which results of the block before it gets as which arguments)."""
        results = [] if before is None else [id(result) for result in before.results]
        chain: list[tuple[int, Place]] = []
        facts: list[Any] = []
        for name, value in given.items():
            leaves, structure = tree_flatten(value)
            kept = [id(leaf) for leaf in tree_leaves(before.given.get(name))] if before is not None else []
            facts += [name, str(structure)]
            for place, leaf in enumerate(leaves):
                if not isinstance(leaf, Tensor):
                    facts.append(leaf)
                    continue
                touched = storage_of(leaf) in self._written
                if leaf is value and id(leaf) in results and not touched:
                    chain.append((results.index(id(leaf)), name))
                    facts.append(("chained", tensor_facts(leaf)))
                elif kept[place : place + 1] == [id(leaf)] and not touched:
                    facts.append(("kept", tensor_facts(leaf)))
                else:
                    # A new tensor gets a unique fact.
                    facts.append(("new", next(self._numbers)))
        return (tuple(chain), self._facts.of(block, facts)), tuple(chain)

    def _run(self, path: str, block: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, int]:
        """Run a block and check that it has no side effects; returns its results and its FLOPs."""
        given = [_shown(leaf) for leaf in tree_leaves((args, kwargs))]
        before, reads = self._facts.of(block, given), self._reads
        self._inside, self._written, self._made = True, set(), set()
        try:
            out, flops = counting_flops(lambda: forward(block, *args, **kwargs))
        finally:
            self._inside = False
        if before != self._facts.of(block, [_shown(leaf) for leaf in tree_leaves((args, kwargs))]) or self._written:
            raise NotRepeated(f"{path} writes what another one may read")
        if reads != self._reads:
            raise NotRepeated(f"{path} reads a value")
        return out, flops

    def _hear(self, operator: Any, args: Any, kwargs: Any, out: Any) -> None:
        """An operator was called."""
        name = qualified_name(operator) or ""
        attention = any(part in name for part in _ATTENTION) or attention_operator(operator) is not None
        self._attended |= attention and not self._inside
        self._reads += bool(set(_READING) & set(operator.tags))
        given = set(map(storage_of, tensors_in((args, kwargs))))
        if writes_operands(operator):
            self._written |= {storage_of(target) for target in written(operator, args, kwargs)} - self._made
        # A view of what was there before was not made here.
        self._made |= set(map(storage_of, tensors_in(out))) - given

    def found(self) -> tuple[Run, ...]:
        """The runs of several blocks, where each block ran once."""
        paths = [call.path for run in self._runs for call in run]
        several = [run for run in self._runs if len(run) > 1]
        for call in (call for run in several for call in run):
            if paths.count(call.path) > 1:
                raise NotRepeated(f"{call.path} runs several times")
        return tuple(
            Run(tuple(call.path for call in run), run[-1].chain, run[-1].kind, len(run[-1].results), run[-1].flops)
            for run in several
        )


def _goes_on(before: _Call, chain: Chain) -> bool:
    """True if all results of a block are arguments of the next one."""
    went = {result for result, _ in chain}
    return all(place in went for place, result in enumerate(before.results) if result is not None)


def _parted(path: str, out: Any) -> tuple[list[Any], type]:
    """(the results of a block, whether they came in a tuple, a list or alone)."""
    if isinstance(out, Tensor):
        return [out], Tensor
    if type(out) in (tuple, list) and all(one is None or isinstance(one, Tensor) for one in out):
        return list(out), type(out)
    raise NotRepeated(f"{path} returns something else than tensors")


def _looks(results: list[Any]) -> Hashable:
    return tuple(None if one is None else tensor_facts(one) for one in results)


def _shown(leaf: Any) -> Any:
    return tensor_facts(leaf) if isinstance(leaf, Tensor) else leaf


def _twin(result: Any) -> Any:
    if result is None:
        return None
    return torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device=result.device)
