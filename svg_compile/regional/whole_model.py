"""Models compiled block by block: tell each block what only the whole model shows.

A block's graph (`compile_repeated_blocks`, `torch.compile` on single blocks) holds neither the token grid, nor the
timestep, nor the layer's number. The model around it runs as plain Python, so a hook on it, `Regions`, sees each call:

    once for each kind of call (`call_facts`), the whole model is traced (`explain`), which proves the grid of every
    attention;
    each attention's module gets a hook that marks its input with that grid (`svg_compile.passes.grid_marker`);
    the dispatcher of a block asks here for its layer's number and the call's timestep.

Under torch.compile of the whole model there are no regions, and the hook does nothing.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from svg_compile._compat.dynamo import forget_compiled, guard_absent_hooks
from svg_compile.passes.grid_marker import OF_BLOCK, mark_text
from svg_compile.regional.call_guards import CallFacts, CallKey, arguments_of

log = logging.getLogger(__name__)
# Grids and dense layers are decided by the block's own options; here everything provable counts.
_ANY = {"min_tokens": 0, "dense_layers": 0, "on_error": "raise"}
_MOST_CALLS = 32


class Mark:
    """The hook of one attention's module. It marks inside of the model's forward alone, and only what Dynamo traces."""

    def __init__(self) -> None:
        self.text: str | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        text = self.text
        if text is None or not torch.compiler.is_compiling():
            return None
        for place, value in enumerate(args):
            if isinstance(value, Tensor):
                return (*args[:place], torch.ops.svg.mark(value, text), *args[place + 1 :]), kwargs
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                return args, {**kwargs, name: torch.ops.svg.mark(value, text)}
        return None


class Regions:
    """The compiled blocks of one model, served while anybody holds this.

    Marks that nobody holds say nothing, but stay: taking them away and back would compile the blocks anew each time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.holders: set[int] = set()
        self._marks: dict[str, Mark] = {}
        self._handles: list[Any] = []
        # By what decides the grids of a call: the text of each marked module; None where a warning said why not.
        self._known: dict[CallKey, Mapping[str, str] | None] = {}
        self._facts = CallFacts()
        self._last: CallKey | None = None
        self._tracing = False
        self._timestep: Any = None
        before, after = torch.compiler.disable(self._before), torch.compiler.disable(self._after)
        self._handles.append(model.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(model.register_forward_hook(after, always_call=True))

    @property
    def marked(self) -> bool:
        """Whether the forward under way has sparse attention in its blocks."""
        return any(mark.text is not None for mark in self._marks.values())

    @property
    def refused(self) -> bool:
        """Whether a warning has said why the blocks of the forward under way are told nothing."""
        return self._last is not None and self._known.get(self._last, {}) is None

    def remove(self) -> bool:
        """Take the hooks off a model that has no marks; returns whether they are off."""
        for handle in () if self._marks else self._handles:
            handle.remove()
        return not self._marks

    def timestep(self) -> float | None:
        """The timestep that the model's forward under way was given, read once; None where it has none."""
        if isinstance(self._timestep, Tensor):
            self._timestep = float(self._timestep.amax().item())
        return self._timestep if isinstance(self._timestep, (int, float)) else None

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._tracing or not self.holders or torch.compiler.is_compiling():
            return
        blocks = dict(compiled_blocks(model))
        if not blocks:
            return
        _UNDER_WAY.add(self)
        arguments = arguments_of(model, args, kwargs)
        self._timestep = arguments.get("timestep")
        key = self._facts.key(model, arguments)
        if self._last is not None and self._last.modules != key.modules:
            # The ids of modules that are gone may be taken again, and places shift: nothing that was learned holds.
            self._known, self._facts, self._last = {}, CallFacts(), None
            key = self._facts.key(model, arguments)
        if key not in self._known:
            before = None if self._last is None else self._known.get(self._last)
            texts = self._trace(model, blocks, args, kwargs)
            # Where nothing was marked no attribute could show what it does.
            if self._last is not None and before:
                self._facts.learn(self._last, key, same=before == texts)
            # The trace may have taught that there is more to look at, or less.
            key = self._facts.key(model, arguments)
            if len(self._known) >= _MOST_CALLS:
                self._known.clear()
            self._known[key] = texts
        self._last = key
        texts = self._known[key] or {}
        for path in texts:
            if path not in self._marks:
                self._mark(model, path, blocks)
        for path, mark in self._marks.items():
            mark.text = texts.get(path)

    def _after(self, *_: Any) -> None:
        if not self._tracing:
            self.end_forward()

    def end_forward(self) -> None:
        """Tell the blocks nothing more."""
        _UNDER_WAY.discard(self)
        self._timestep = None
        for mark in self._marks.values():
            mark.text = None

    def _trace(
        self, model: nn.Module, blocks: Mapping[str, nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Mapping[str, str] | None:
        """The text of the mark of each module with a sparse attention, for calls of these shapes; None where the model
        cannot be traced, which a warning says.
        """
        from svg_compile.inspection.tracing import explain

        # What torch.compile wraps around a block has a forward of its own, too.
        modules = [(path, module) for path, module in model.named_modules() if "_orig_mod" not in module._modules]
        hooked = [path or "the model" for path, module in modules if "forward" in vars(module)]
        if hooked:
            # A step cache or an offload: tracing would run its Python code, and move its state by a step.
            warnings.warn(
                f"svg: the forward of {hooked[0]} in {type(model).__name__} is wrapped (a step cache, casting or "
                "offloading hook), so the model cannot be traced for its compiled blocks and their attention stays "
                "dense. Take the hook off, or see docs/schedule.md for what goes with compiling the whole model.",
                stacklevel=2,
            )
            return None
        self._tracing = True
        try:
            report = explain(model, *args, options=_ANY, **kwargs)
        except Exception as error:
            log.debug("tracing the whole model failed", exc_info=True)
            why = f"{type(error).__name__}: {error}".partition("\n")[0]
            warnings.warn(
                f"svg: the whole of {type(model).__name__} could not be traced ({why}), so the grid of its compiled "
                "blocks is not known and their attention stays dense. Compile the whole model instead.",
                stacklevel=2,
            )
            return None
        finally:
            self._tracing = False
        self._facts.reads_values |= bool(report.breaks)
        sparse = [site.layer for site in report.sites if site.rewritten]
        for path, block in blocks.items():
            mine = [number for number, layer in enumerate(sparse) if _is_in(layer, path)]
            for parameter in block.parameters() if mine else ():
                _REGIONS[parameter] = (weakref.ref(self), mine[0])
        inside = {layer for layer in sparse if any(_is_in(layer, path) for path in blocks)}
        log.info("%d attentions of %s are marked for its blocks", len(inside), type(model).__name__)
        texts = {layer: mark_text([site for site in report.sites if site.layer == layer]) for layer in inside}
        for path in inside & set(blocks):
            # A block's own hooks run outside of its graph: the modules in it carry what it is told.
            of_block = OF_BLOCK + texts.pop(path)
            names = (f"{path}.{name}" for name, _ in blocks[path].named_children())
            carriers = [name for name in names if name not in inside]
            texts |= dict.fromkeys(carriers, of_block)
            if not carriers:
                warnings.warn(
                    f"svg: the block {path} calls attention itself and holds no module without attention that could "
                    "be told its grid, so its attention stays dense. Compile the whole model instead.",
                    stacklevel=2,
                )
        return texts

    def _mark(self, model: nn.Module, path: str, blocks: Mapping[str, nn.Module]) -> None:
        mark = self._marks[path] = Mark()
        self._handles.append(model.get_submodule(path).register_forward_pre_hook(mark, with_kwargs=True))
        # Other models of its class may be compiled without marks from now on; it must not run what they run.
        guard_absent_hooks()
        # A block that ran before it was marked was compiled without, and nothing in its guards would notice.
        for at, block in blocks.items():
            if _is_in(path, at):
                forget_compiled(block)


# Of each parameter of a compiled block: the regions it belongs to, and the number of the block's first sparse layer.
_REGIONS: Any = WeakTensorKeyDictionary()
_UNDER_WAY: weakref.WeakSet[Regions] = weakref.WeakSet()
_OF_MODEL: weakref.WeakKeyDictionary[nn.Module, Regions] = weakref.WeakKeyDictionary()


def watch_regions(model: nn.Module, holder: object) -> None:
    """Serve a model's compiled blocks for as long as `holder` does not let go of them."""
    if model not in _OF_MODEL:
        _OF_MODEL[model] = Regions(model)
    _OF_MODEL[model].holders.add(id(holder))


def leave_regions(model: nn.Module, holder: object) -> None:
    """Undo `watch_regions`."""
    regions = _OF_MODEL.get(model)
    if regions is not None:
        regions.holders.discard(id(holder))
        # Where a forward was broken off (Ctrl-C runs no hooks), it is over now.
        regions.end_forward()
        if not regions.holders and regions.remove():
            del _OF_MODEL[model]


def region_of(parameter: Tensor | None) -> tuple[Regions | None, int | None]:
    """(regions, number of the layer) of the block that a parameter belongs to; (None, None) for a whole model's."""
    found = None if parameter is None else _REGIONS.get(parameter)
    return (None, None) if found is None else (found[0](), found[1])


def refused_under_way() -> bool:
    """Whether a model runs of which a warning has said why its blocks are told nothing."""
    return any(regions.refused for regions in _UNDER_WAY)


def attached_under_way() -> bool:
    """Whether a model runs whose compiled blocks are served: the whole of it was looked at already."""
    return bool(_UNDER_WAY)


def marks_under_way() -> bool:
    """Whether a model runs of which at least one attention is marked."""
    return any(regions.marked for regions in _UNDER_WAY)


def compiled_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of the outermost compiled modules inside a model."""
    for name, child in model.named_children():
        plain = getattr(child, "_orig_mod", child)
        if plain is not child or child._compiled_call_impl is not None:
            yield name, plain
        else:
            for path, block in compiled_blocks(child):
                yield f"{name}.{path}", block


def _is_in(layer: str, block: str) -> bool:
    """Whether a layer is a block itself, or a module inside of it."""
    return layer == block or layer.startswith(f"{block}.")
