"""The guards of a model's call: everything that decides its token grids, so that equal calls share one trace.

Dynamo guards all that a compiled model reads. A model whose blocks are compiled one by one runs as Python around them,
guarded by nothing, so its calls are distinguished here:

    the shapes of tensors, and the values of arguments that are no tensors; of the timestep its shape or type alone;
    the modules, and the processors that diffusers lets one put into attentions;
    the plain attributes of both: numbers, strings, flags, and tuples or lists of them;
    the values of integer tensors, arguments or state of the model, where the trace had breaks: Python code may read
    them;
    the values of positions that are the raster of a video (`passes.coordinates`), which prove the grid, and of ids
    that are concatenated with them;
    the values of integers [N], which may number frames or be an index;

    the values of small floating-point arguments where the trace ends at a line that reads one: of those that hold
    zeros and ones, as masks do, and of one more where these are not enough (whether an image is all zeros).

The values of other floating-point tensors, of latents, weights and the timestep, decide nothing: where Python code
reads one, the trace ends, and the blocks stay dense.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.utils.weak import WeakIdKeyDictionary

from svg_compile._compat.fake_values import MOST_ELEMENTS
from svg_compile._compat.graphs import version_of
from svg_compile._compat.pytree import tensors_in, tree_flatten
from svg_compile.inspection.held_tensors import held_tensors
from svg_compile.inspection.opened import opened
from svg_compile.passes.position_inputs import ids_of, raster_seen, rise_seen, runs_seen
from svg_compile.passes.timestep_names import is_timestep

# A grid is a few numbers; longer attributes are data.
_FEW = 16
# An attribute that changed this often without any grid is a counter, and would cost a trace at every step.
_HARMLESS = 3
# Arguments that are other ones at each step.
_CHANGING = ("hidden_states", "sample", "latents", "x")
_PLAIN = (bool, int, float, str, type(None))
# By tensor: the version of its values, None where writes are not counted, and their hash.
_DIGESTS: WeakIdKeyDictionary = WeakIdKeyDictionary()


@dataclass(frozen=True)
class CallKey:
    """Two calls of equal keys have the same grids; `attributes` by (number of the module, name)."""

    call: Any
    modules: tuple[int, ...]
    attributes: frozenset[tuple[Any, Any]]


class CallFacts:
    """The keys of one model's calls, and what its traces taught of them."""

    def __init__(self) -> None:
        self.reads_values = False
        # The names of floating-point arguments whose values were read.
        self.reads: frozenset[str] = frozenset()
        self._changes: Counter[Any] = Counter()

    def key(self, model: nn.Module, arguments: Mapping[str, Any]) -> CallKey:
        """The key of a call with these arguments, by name."""
        things: list[Any] = []
        for module in model.modules():
            # A forward of its own is a wrapper's: a step cache, an offload.
            things += (module, vars(module).get("processor"), vars(module).get("forward"))
        attributes = (
            ((number, name), value if type(value) in (bool, int, str) else repr(value))
            for number, thing in enumerate(things)
            if not type(thing).__module__.startswith("torch.nn.")
            for name, value in getattr(thing, "__dict__", {}).items()
            if _is_plain(value) and self._changes[number, name] < _HARMLESS
        )
        state = (
            ((number, name), _digest(value))
            for number, thing in enumerate(things if self.reads_values else ())
            if isinstance(thing, nn.Module)
            for name, value in held_tensors(thing)
            if _is_read_state(value) and self._changes[number, name] < _HARMLESS
        )
        given = {name: opened(value) for name, value in arguments.items() if not is_timestep(name)}
        leaves, structure = tree_flatten(given)
        positions = _positions(leaves)
        times = (value for name, value in arguments.items() if is_timestep(name))
        when = tuple(tuple(time.shape) if isinstance(time, Tensor) else type(time) for time in times)
        read = [_digest(leaf) for name in sorted(self.reads & given.keys()) for leaf in tensors_in(given[name])]
        call = (is_grad_enabled(), str(structure), when, *(self._fact(leaf, positions) for leaf in leaves), *read)
        return CallKey(call, tuple(map(id, things)), frozenset((*attributes, *state)))

    def learn(self, before: CallKey, now: CallKey, *, same: bool) -> None:
        """Note what two traces in a row say of the attributes that alone differ: `same`, the grids did not."""
        if (before.call, before.modules) != (now.call, now.modules):
            return
        for place in {place for place, _ in before.attributes ^ now.attributes}:
            # A fact that has decided a grid once is always guarded.
            self._changes[place] += 1 if same else -(10**6)

    def _fact(self, leaf: Any, positions: list[Tensor]) -> Any:
        if isinstance(leaf, Tensor):
            values = (self.reads_values and _is_whole(leaf)) or _decides(leaf, positions)
            return tuple(leaf.shape), leaf.dtype, _digest(leaf) if values else b""
        plain = sorted((name, repr(value)) for name, value in getattr(leaf, "__dict__", {}).items() if _is_plain(value))
        return type(leaf), repr(leaf), tuple(plain)


def arguments_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by name; those beyond the names of `forward` by their place."""
    names = list(inspect.signature(type(model).forward).parameters)[1:]
    named = {names[place] if place < len(names) else str(place): value for place, value in enumerate(args)}
    return {**named, **kwargs}


def might_be_read(arguments: Mapping[str, Any]) -> list[str]:
    """The names of the arguments that are small floating-point tensors: neither the timestep nor latents."""

    def small(value: Any) -> bool:
        tensors = tensors_in(opened(value))
        return bool(tensors) and all(
            leaf.is_floating_point() and leaf.dim() < 5 and leaf.numel() <= MOST_ELEMENTS and not leaf.is_meta
            for leaf in tensors
        )

    return [
        name for name, value in arguments.items() if name not in _CHANGING and not is_timestep(name) and small(value)
    ]


def is_flags(value: Any) -> bool:
    """True if an argument's tensors contain only zeros and ones, like a mask; syncs with their device."""
    return all(bool(((leaf == 0) | (leaf == 1)).all()) for leaf in tensors_in(opened(value)))


def readable(arguments: Mapping[str, Any], also: Collection[str] = ()) -> Callable[[Tensor], bool]:
    """Which tensors Python code may read the values of while a call with these arguments is traced.

    also: the names of floating-point arguments that it may read.
    """
    asked = {id(leaf) for name in also for leaf in tensors_in(opened(arguments[name]))}
    leaves = [leaf for name, value in arguments.items() if not is_timestep(name) for leaf in tensors_in(opened(value))]
    given, positions = set(map(id, leaves)), _positions(leaves)
    never = {id(leaf) for name, value in arguments.items() if is_timestep(name) for leaf in tensors_in(opened(value))}

    def may_be_read(tensor: Tensor) -> bool:
        if id(tensor) in never:
            return False
        if id(tensor) in asked:
            return True
        if id(tensor) in given:
            return _is_whole(tensor) or _decides(tensor, positions)
        return _is_read_state(tensor)

    return may_be_read


def _positions(leaves: Iterable[Any]) -> list[Tensor]:
    """The positions of a video among a call's arguments."""
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and raster_seen(leaf) is not None]


def _decides(tensor: Tensor, positions: list[Tensor]) -> bool:
    seen = any(tensor is each for each in positions) or rise_seen(tensor) is not None or runs_seen(tensor) is not None
    return seen or ids_of(tensor, positions) is not None


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) and tensor.device.type != "meta"


def _is_read_state(value: Tensor) -> bool:
    """True if a tensor that a model holds is one that a key holds the values of: whole numbers, no weight."""
    return not isinstance(value, nn.Parameter) and value.numel() <= MOST_ELEMENTS and _is_whole(value)


def _digest(tensor: Tensor) -> bytes:
    """A hash of a tensor's values; waits for its device, once for a tensor that is not written."""
    version = None if tensor.is_inference() else version_of(tensor)
    known = _DIGESTS.get(tensor)
    if known is not None and version is not None and known[0] == version:
        return bytes(known[1])
    values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    found = hashlib.sha256(values.numpy().tobytes()).digest()
    _DIGESTS[tensor] = version, found
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (
        isinstance(value, (tuple, list)) and len(value) <= _FEW and all(map(_is_plain, value))
    )
