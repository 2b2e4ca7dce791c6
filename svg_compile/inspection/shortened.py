"""A trace of a few of the blocks that run alike, which says what all of them do.

    shorten    of each run (`repeats`) the first blocks stay, and the others return their arguments
    told       where each of the kept blocks has the grids of the one before it, and gets tensors of the same axes,
               the others have them, too: what a block does follows from what it gets
    expanded   the attentions of the blocks that handed on, as copies of those of the last kept one

The axes are read at a mark on a block's arguments. Two tensors have the same axes where these are the same
atoms, or fresh ones of which nothing depends on which they are: tables, channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import nn

from svg_compile.decisions import Site
from svg_compile.inspection.repeats import Place, Run
from svg_compile.passes.axes.seen import Seen, same_seen

# How many blocks of a run are traced, in addition to those that the options keep dense: two to compare, and the
# first, whose arguments may differ from all others'.
KEPT = 3


@dataclass(frozen=True)
class Shortened:
    """A run of which the first `kept` blocks are traced."""

    run: Run
    number: int
    kept: int

    @property
    def left_out(self) -> tuple[str, ...]:
        return self.run.paths[self.kept :]

    @property
    def flops(self) -> int:
        """Of the blocks that are not traced."""
        return self.run.flops * len(self.left_out)

    def mark(self, block: int, place: Place) -> str:
        """The text of the mark on one argument of a block."""
        return f"given: run {self.number}, block {block}, place {place}"


def shorten(clone: nn.Module, runs: Sequence[Run], kept: int) -> tuple[Shortened, ...]:
    """Let the blocks of a clone after the first ones of each run return their arguments."""
    found = []
    for number, run in enumerate(runs):
        if len(run.paths) <= kept + 1:
            continue
        short = Shortened(run, number, kept)
        found.append(short)
        last, first_out = (clone.get_submodule(run.paths[place]) for place in (kept - 1, kept))
        last.register_forward_pre_hook(_marking(short, kept - 1), with_kwargs=True)
        first_out.register_forward_pre_hook(_marking(short, kept), with_kwargs=True)
        for path in short.left_out:
            block = clone.get_submodule(path)
            block.forward = MethodType(_handing_on(run), block)
    return tuple(found)


def _marking(short: Shortened, block: int) -> Callable[..., Any]:
    """A hook that marks those of a block's arguments that the block before has made."""
    texts = {place: short.mark(block, place) for _, place in short.run.chain}

    def mark(module: nn.Module, args: Any, kwargs: Any) -> Any:
        given = list(args)
        named = dict(kwargs)
        for place, text in texts.items():
            if isinstance(place, int):
                given[place] = torch.ops.svg.mark(given[place], text, [])
            else:
                named[place] = torch.ops.svg.mark(named[place], text, [])
        return tuple(given), named

    return mark


def _handing_on(run: Run) -> Callable[..., Any]:
    """A forward that returns the block's arguments in the place of its results."""
    places, kind, count = dict(run.chain), run.kind, run.results

    def handed_on(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        results: list[Any] = [None] * count
        for number, place in places.items():
            # Results of two blocks are two tensors: who writes one does not write the other.
            results[number] = (args[place] if isinstance(place, int) else kwargs[place]).clone()
        if kind is torch.Tensor:
            return results[0]
        return tuple(results) if kind is tuple else results

    return handed_on


def told(shortened: Sequence[Shortened], sites: Sequence[Site], seen: Mapping[str, Sequence[Seen]]) -> bool:
    """True if the kept blocks of each run determine the attentions of the blocks left out."""
    return all(_tells(short, sites, seen) for short in shortened)


def _tells(short: Shortened, sites: Sequence[Site], seen: Mapping[str, Sequence[Seen]]) -> bool:
    for _, place in short.run.chain:
        earlier, later = (seen.get(short.mark(block, place), ()) for block in (short.kept - 1, short.kept))
        if len(earlier) != len(later) or not earlier:
            return False
        if not all(map(same_seen, earlier, later)):
            return False
    before, last = (_of_block(sites, path) for path in short.run.paths[short.kept - 2 : short.kept])
    strangers = any(_of_block(sites, path) for path in short.left_out)
    return before == last and not strangers


def _of_block(sites: Sequence[Site], path: str) -> list[Site]:
    """The attentions of a block, as if the block were the whole model."""
    mine = [site for site in sites if site.layer == path or site.layer.startswith(f"{path}.")]
    return [replace(site, layer=site.layer.removeprefix(path)) for site in mine]


def expanded(shortened: Sequence[Shortened], sites: Sequence[Site]) -> tuple[Site, ...]:
    """The attentions of all blocks, in the order in which they run."""
    found = list(sites)
    for short in shortened:
        path = short.run.paths[short.kept - 1]
        model = _of_block(found, path)
        places = [
            number for number, site in enumerate(found) if site.layer == path or site.layer.startswith(f"{path}.")
        ]
        copies = [replace(site, layer=other + site.layer) for other in short.left_out for site in model]
        if places:
            found[places[-1] + 1 : places[-1] + 1] = copies
    return tuple(found)


def breaks_in_a_block(
    clone: nn.Module, shortened: Sequence[Shortened], breaks: Sequence[tuple[str, list[Any]]]
) -> bool:
    """True if a graph break is, or may be, inside a block: then blocks are separate graphs.

    It may be if the break has no location, or if the source of the blocks' forward is not available.
    """
    if not breaks:
        return False
    codes = []
    for short in shortened:
        function: Any = inspect.unwrap(type(clone.get_submodule(short.run.paths[0])).forward)
        try:
            lines, first = inspect.getsourcelines(function)
        except (OSError, TypeError):
            return True
        codes.append((inspect.getsourcefile(function), range(first, first + len(lines))))
    named = {text.partition("\n")[0].strip() for text, frames in breaks if frames}
    for text, frames in breaks:
        if not frames and text.partition("\n")[0].strip() not in named:
            return True
        if any(frame.filename == file and frame.lineno in lines for frame in frames for file, lines in codes):
            return True
    return False
