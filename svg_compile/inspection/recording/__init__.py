"""`with svg_compile.record(model) as recording:` collects which kind each head was, step by step and layer by layer.

While it records, what the profiles said is copied on the device, by two small kernels a forward; nothing waits for the
device, and no graph changes. The copies come to the host when the block ends. Outside of a block nothing is done.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

from svg_compile._compat.modules import uncompiled
from svg_compile._compat.subclasses import is_quantised
from svg_compile.config import SvgConfig
from svg_compile.errors import SvgError
from svg_compile.inspection.recording.entry import Entry
from svg_compile.inspection.recording.naming import layer_names, numbered, parameter_name
from svg_compile.inspection.recording.recorded import Recording
from svg_compile.layout import VideoLayout
from svg_compile.runtime.dispatcher import Decision, Forward, watch
from svg_compile.runtime.sources import denoisers

# A grid of which no size is known.
_UNKNOWN = (None,) * 6


@contextmanager
def record(*models: Any, layout: VideoLayout | Sequence[Any] | None = None) -> Iterator[Recording]:
    """Collect the plans of compiled models in the block; the recording is filled when the block ends.

        with svg_compile.record(pipe.transformer) as recording:
            pipe(prompt)
        print(recording.summary)

    models: modules, compiled whole, by blocks or not yet, or diffusers pipelines, of which all denoisers are taken.
    layout: the token grid of their attention, for densities, a VideoLayout or a tuple as options['layout'] takes;
    needed only for graphs that were compiled for changing sizes, as others know it. Where it contradicts a graph, one
    warning says so, and densities are an error. Results are those of a run that is not recorded.
    """
    recorder = _Recorder(_named(models), _given(layout))
    recording = Recording(missing="the recording is filled at the end of its `with` block: read it after that.")
    try:
        with watch(recorder.see):
            yield recording
    finally:
        recording.fill(recorder.entries(), conflict=recorder.conflict)
        if recorder.conflict:
            warnings.warn(recorder.conflict, stacklevel=3)


@dataclass(frozen=True)
class _Copy:
    """Small tensors of one forward in one piece, on their device."""

    flat: Tensor
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> _Copy | None:
        if not tensors:
            return None
        device = tensors[0].device
        # One launch for all layers, and none to wait for.
        near = [tensor.detach().to(device, non_blocking=device.type != "cpu") for tensor in tensors]
        return cls(torch.cat([tensor.flatten() for tensor in near]), tuple(tensor.shape for tensor in tensors))

    def on_host(self) -> list[Tensor]:
        with torch.inference_mode(False):
            parts = self.flat.to("cpu", copy=True).split([shape.numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes)]


@dataclass(frozen=True)
class _Seen:
    """A forward as it went by."""

    model: str
    layers: tuple[str, ...]
    decision: Decision
    plans: _Copy | None
    errors: _Copy | None
    grids: tuple[tuple[int | None, ...], ...]


class _Recorder:
    """Watches forwards and keeps those of some models."""

    def __init__(self, models: dict[str, nn.Module], given: dict[str, int]) -> None:
        self.models = models
        # Sizes of the layout by name, as far as the user gave them.
        self.given = given
        self.seen: list[_Seen] = []
        self.conflict = ""
        # Parameter -> (model, the parameter's path in it); parameters may be replaced in the block.
        self.owners: WeakIdKeyDictionary = WeakTensorKeyDictionary()
        self.names: dict[tuple[str, str, tuple[str, ...]], tuple[str, ...]] = {}

    def see(self, forward: Forward) -> None:
        owner = None if forward.parameter is None else self._owner(forward.parameter)
        if owner is None:
            return
        key = (*owner, forward.layers)
        if key not in self.names:
            self.names[key] = numbered(layer_names(self.models[owner[0]], owner[1], forward.layers))
        copies = _Copy.of(forward.plans), _Copy.of(forward.errors)
        self.seen.append(
            _Seen(
                owner[0], self.names[key], forward.decision, *copies, forward.grids or (_UNKNOWN,) * len(forward.layers)
            )
        )

    def entries(self) -> tuple[Entry, ...]:
        """The recorded forwards as entries, on the host."""
        runs: dict[str, dict[object, int]] = {}
        calls: Counter[object] = Counter()
        entries = []
        for seen in self.seen:
            position = seen.decision.position
            where: tuple[int, int | None, int | None] = (0, None, None)
            if position is not None:
                known = runs.setdefault(seen.model, {})
                run = known.setdefault((seen.decision.source, position.run), len(known))
                where = (run, position.step, position.total)
            plans = [None] * len(seen.layers) if seen.plans is None else seen.plans.on_host()
            errors = [None] * len(seen.layers) if seen.errors is None else seen.errors.on_host()
            for layer, plan, error, grid in zip(seen.layers, plans, errors, seen.grids, strict=True):
                turn = (seen.model, layer, where[0], where[1])
                kinds, widths = (None, None) if plan is None else plan.unbind(-1)
                layout, repaired = self._layout_of(layer, grid), None
                if error is not None and error.shape[-1] == 3:
                    error, repaired = error[..., :2], error[..., 2]
                found = Entry(seen.model, *where, calls[turn], layer, kinds, widths, error, layout, repaired)
                entries.append(found)
                calls[turn] += 1
        return tuple(entries)

    def _layout_of(self, layer: str, grid: tuple[int | None, ...]) -> VideoLayout | None:
        """The layout of an attention: its graph's, with these sizes where the graph's are symbolic."""
        names = [field.name for field in dataclasses.fields(VideoLayout)]
        known = {name: size for name, size in zip(names, grid, strict=True) if size is not None}
        if "text_first" in known:
            known["text_first"] = bool(known["text_first"])
        other = {name: size for name, size in self.given.items() if known.get(name, size) != size}
        if other:
            graph = ", ".join(f"{name}={known[name]}" for name in other)
            given = ", ".join(f"{name}={size}" for name, size in other.items())
            self.conflict = f"record: layout has {given}, the compiled graph of {layer} has {graph}: leave layout out."
            return None
        sizes: dict[str, Any] = {**self.given, **known}
        return VideoLayout(**sizes) if len(sizes) == len(names) else None

    def _owner(self, parameter: Tensor) -> tuple[str, str] | None:
        owner: tuple[str, str] | None = self.owners.get(parameter)
        if owner is None:
            found = ((name, parameter_name(model, parameter)) for name, model in self.models.items())
            owner = next(((name, path) for name, path in found if path is not None), None)
            if owner is not None and not is_quantised(parameter):
                self.owners[parameter] = owner
        return owner


def _given(layout: VideoLayout | Sequence[Any] | None) -> dict[str, int]:
    """The sizes that a layout gives: all of a VideoLayout, of a tuple what stands in it."""
    if layout is None or isinstance(layout, VideoLayout):
        return {} if layout is None else dataclasses.asdict(layout)
    checked = SvgConfig.from_options({"layout": layout}).layout
    names = ("frames", "height", "width", "text_len", "text_first")[: len(layout)]
    return {name: getattr(checked, name) for name in names}


def _named(models: Sequence[Any]) -> dict[str, nn.Module]:
    """The models by name: a pipeline's are called as its components are, others as their classes."""
    found: list[tuple[str, nn.Module]] = []
    for model in map(uncompiled, models):
        if isinstance(model, nn.Module):
            found.append((type(model).__name__, model))
            continue
        parts = {id(module) for module in denoisers(model)} if hasattr(model, "__dict__") else set()
        components = getattr(model, "components", None)
        named = components if isinstance(components, dict) else getattr(model, "__dict__", {})
        inside = [(name, uncompiled(each)) for name, each in named.items() if id(uncompiled(each)) in parts]
        if not inside:
            raise SvgError(
                f"record: expected a module, or a pipeline that holds denoisers, got {type(model).__name__}."
            )
        found += [(name, module) for name, module in inside if isinstance(module, nn.Module)]
    if not found:
        raise SvgError("record: expected at least one model.")
    named_models: dict[str, nn.Module] = {}
    for name, module in found:
        if any(module is other for other in named_models.values()):
            continue
        same = sum(other.partition("#")[0] == name for other in named_models)
        named_models[f"{name}#{same + 1}" if same else name] = module
    return named_models
