"""Which input of a traced denoiser is its timestep, and reading it as seldom as possible."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from svg_compile._compat.dynamo import argument_name, constant_arguments, is_parameter_or_buffer
from svg_compile._compat.graphs import version_of
from svg_compile._compat.sizes import size_hint
from svg_compile._compat.storages import storage_of
from svg_compile.decisions import Decisions
from svg_compile.passes.timestep_names import NAMES, is_timestep

# So many different timesteps in one forward are all looked at.
_FEW = 8
_WAVES = frozenset({"sin", "cos"})
# A timestep is embedded by waves before anything mixes it with other inputs.
_MIXERS = frozenset({"linear", "matmul", "bmm", "mm", "addmm", "einsum", "scaled_dot_product_attention", "embedding"})


@dataclass(frozen=True)
class Timestep:
    """A timestep input: its place among the graph's inputs, or the number that Dynamo made a constant of the graph.

    It may be a number, a tensor of one element, of one a sample, or of one a token.
    """

    name: str
    index: int | None
    constant: float | None = None

    def of(self, inputs: Sequence[Any]) -> Any:
        """The timestep of a call, a tensor or a number."""
        return self.constant if self.index is None else inputs[self.index]


class _LastRead(threading.local):
    """The tensor that this thread read last, and its value: guidance passes one timestep to several forwards."""

    tensor: Any = None
    version: int = -1
    values: tuple[float, ...] = ()


_LAST_READ = _LastRead()


class Moment:
    """The timestep of one forward, which waits for its device only where its value is asked for."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._values: tuple[float, ...] | None = None

    @property
    def was_read(self) -> bool:
        """True if the value was already read to the host."""
        return self._values is not None

    @property
    def known(self) -> bool:
        """True if the forward has a timestep."""
        return isinstance(self._given, (Tensor, int, float))

    @property
    def value(self) -> float | None:
        """The largest timestep of the forward (conditioning frames are clean and hold 0); None where it has none."""
        return next(iter(self.values), None)

    @property
    def values(self) -> tuple[float, ...]:
        """The timesteps of the forward, the largest first: all, where it passes a few different ones, as for a video
        and its sound; else the largest alone.
        """
        if self._values is None and self.known:
            self._values = _read(self._given) if isinstance(self._given, Tensor) else (float(self._given),)
        return self._values or ()

    def place_in(self, timesteps: Any) -> int | None:
        """The index at which the timestep is a view of a schedule's tensor: then nothing needs to be read."""
        given = self._given
        if not (isinstance(given, Tensor) and isinstance(timesteps, Tensor) and given.dtype == timesteps.dtype):
            return None
        one = all(size == 1 or stride == 0 for size, stride in zip(given.shape, given.stride()))
        if not one or not given.numel() or timesteps.dim() != 1 or given.device != timesteps.device:
            return None
        if storage_of(given) != storage_of(timesteps):
            return None
        offset, stride = given.storage_offset() - timesteps.storage_offset(), max(timesteps.stride(0), 1)
        place = offset // stride
        return place if offset % stride == 0 and 0 <= place < len(timesteps) else None


def _read(tensor: Tensor) -> tuple[float, ...]:
    # Without a version counter nobody would notice that the tensor was written.
    version = -1 if tensor.is_inference() else version_of(tensor)
    last = None if _LAST_READ.tensor is None else _LAST_READ.tensor()
    if version >= 0 and last is tensor and _LAST_READ.version == version:
        return _LAST_READ.values
    few = tensor if tensor.numel() <= _FEW else tensor.amax()
    values = tuple(sorted({float(value) for value in few.flatten().tolist()}, reverse=True))
    _LAST_READ.tensor, _LAST_READ.version, _LAST_READ.values = weakref.ref(tensor), version, values
    return values


def find_timestep(graph_module: fx.GraphModule, report: Decisions) -> Timestep | None:
    """The timestep of the traced call, by the name of the argument, else by what becomes of it; None where unknown."""
    batch = max((site.batch for site in report.sites), default=1)
    tokens = max((site.tokens for site in report.sites), default=1)
    named: dict[str, Timestep] = {}
    embedded: list[Timestep] = []
    for index, node in enumerate(graph_module.graph.find_nodes(op="placeholder")):
        if is_parameter_or_buffer(node):
            continue
        name, value = argument_name(node), node.meta.get("example_value")
        if name is not None and (name in NAMES or is_timestep(name)) and _holds_at_most(value, batch * tokens):
            named.setdefault(name, Timestep(name, index))
        elif _per_sample(value, batch, tokens) and _reached(node) >= _WAVES:
            embedded.append(Timestep(node.name, index))
    for name, number in constant_arguments().items():
        if name in NAMES or is_timestep(name):
            named.setdefault(name, Timestep(name, None, float(number)))
    for name in (*NAMES, *named):
        if name in named:
            return named[name]
    return embedded[0] if len(embedded) == 1 else None


def _holds_at_most(value: Any, elements: int) -> bool:
    """True if an input is a number or a numeric tensor of at most so many elements."""
    if isinstance(value, Tensor):
        return size_hint(value.numel()) <= elements and value.dtype is not torch.bool and not value.is_complex()
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) and not isinstance(value, bool)


def _per_sample(value: Any, batch: int, tokens: int) -> bool:
    """True if a tensor has the shape of a timestep: one element, [B], [B, 1], or one per token, [B, N].

    Positions, the other thing that waves are made of, have no batch axis.
    """
    if not isinstance(value, Tensor) or not _holds_at_most(value, batch * tokens):
        return False
    shape = [size_hint(size) for size in value.shape]
    return max(shape, default=1) == 1 or (shape[0] == batch and (len(shape) == 1 or shape[1:] in ([1], [tokens])))


def _reached(node: fx.Node) -> set[str]:
    """The waves that a value flows into, through anything that does not mix it with other inputs."""
    found: set[str] = set()
    seen, open_nodes = {node}, [node]
    while open_nodes:
        for user in open_nodes.pop().users:
            name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
            if name in _WAVES:
                found.add(name)
            elif user not in seen and name not in _MIXERS and user.op in ("call_function", "call_method"):
                seen.add(user)
                open_nodes.append(user)
    return found
