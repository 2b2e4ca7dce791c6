"""A trace of a few of the blocks that run alike says what a trace of all of them says, or all of them are traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svg_compile.inspection import tracing
from svg_compile.inspection.shortened import KEPT
from toy import latents

OPTIONS = {"min_tokens": 0, "block": 8, "dense_layers": 0}
DEPTH = 12
LAYER = [0]
MANY = [0] * 1000
SEEN: list[object] = []


def rolled(x: Tensor) -> Tensor:
    return x.roll(5, 1)


class Block(nn.Module):
    """Attention over [B, N, C], after `before` of it."""

    def __init__(self, before: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.before = before

    def attended(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + self.attended(x if self.before is None else self.before(x), mask)


class Deep(nn.Module):
    """latents [B, 4, F, H, W] -> [B, F*H*W, 32], through blocks in a list."""

    def __init__(self, make: Callable[[int], nn.Module] = lambda number: Block(), depth: int = DEPTH) -> None:
        super().__init__()
        self.patch = nn.Conv3d(4, 32, 1)
        self.blocks = nn.ModuleList(make(number) for number in range(depth))
        self.eval()

    def tokens(self, latents: Tensor) -> Tensor:
        return self.patch(latents).flatten(2).transpose(1, 2)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.tokens(latents)
        for number, block in enumerate(self.blocks):
            x = self.step(number, block, x)
        return x

    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        out: Tensor = block(x)
        return out


class Two(nn.Module):
    """A block of two streams, the second of which attends to itself, too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Block(), Block()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.two(y)


class TwoStreams(Deep):
    def __init__(self) -> None:
        super().__init__(lambda number: Two())

    def forward(self, latents: Tensor) -> Any:
        x = y = self.tokens(latents)
        for block in self.blocks:
            x, y = block(x=x, y=y)
        return x


class LeftOut(Deep):
    """Runs all blocks but one."""

    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        return x if number == 8 else super().step(number, block, x)


class Kept(Deep):
    """Keeps the results of some blocks."""

    def forward(self, latents: Tensor) -> Any:
        x, kept = self.tokens(latents), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in (1, 5, 9):
                kept.append(x)
        return F.scaled_dot_product_attention(*(each.unflatten(-1, (2, 16)).transpose(1, 2) for each in kept))


class WrittenAfter(Deep):
    """Keeps a result of a block whose axes are lost, and writes tokens of known ones into that of a later block."""

    def forward(self, latents: Tensor) -> Any:
        tokens = self.tokens(latents)
        x, kept = rolled(tokens), tokens
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 6:
                kept = x
        x.copy_(tokens)
        return self.blocks[0].attended(kept)


ALIKE = {"plain": Deep, "two streams": TwoStreams, "one left out": LeftOut, "results kept": Kept}


class Rolls(nn.Module):
    """Every block but the first few looks like those before it; what it passes on comes round."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        first, *others = streams
        return (*others, rolled(self.block(first)))


class DelayLine(Deep):
    def __init__(self) -> None:
        super().__init__(lambda number: Rolls())

    def forward(self, latents: Tensor) -> Tensor:
        streams: Any = (self.tokens(latents),) * 6
        streams = tuple(stream + 1 for stream in streams)
        for block in self.blocks:
            streams = block(*streams)
        return streams[0]


class RollsBetween(Deep):
    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        return super().step(number, block, rolled(x) if number == 8 else x)


class WritesBetween(Deep):
    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        x = super().step(number, block, x)
        if number == 8:
            x.copy_(rolled(x))
        return x


class WritesDataBetween(Deep):
    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        x = super().step(number, block, x)
        if number == 8:
            x[:, :7].copy_(x[:, 3:10].clone())
        return x


class Masks(Deep):
    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        count = x.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool).tril() if number % 2 else None
        out: Tensor = block(x, mask)
        return out


class ReadsGlobal(Block):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(rolled(x) if LAYER[0] == 8 else x)


class SetsGlobal(Deep):
    def __init__(self) -> None:
        super().__init__(lambda number: ReadsGlobal())

    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        LAYER[0] = number
        return super().step(number, block, x)


class ReadsLongGlobal(Block):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(rolled(x) if MANY[500] == 8 else x)


class SetsLongGlobal(Deep):
    def __init__(self) -> None:
        super().__init__(lambda number: ReadsLongGlobal())

    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        MANY[500] = number
        return super().step(number, block, x)


class CountsInGlobal(Block):
    """The eighth block that runs differs; what the list holds is no plain value."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        SEEN.append(CountsInGlobal)
        return super().forward(rolled(x) if len(SEEN) == 9 else x)


class Counted(Deep):
    def __init__(self) -> None:
        super().__init__(lambda number: CountsInGlobal())

    def forward(self, latents: Tensor) -> Tensor:
        SEEN[:] = [Counted]
        return super().forward(latents)


class Shared:
    """What all blocks of a model hold."""

    def __init__(self) -> None:
        self.count = 0
        self.told: dict[str, int] = {}


class Counts(Block):
    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.shared.count += 1
        return super().forward(rolled(x) if self.shared.count == 8 else x)


class Told(Counts):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return Block.forward(self, rolled(x) if self.shared.told.get("layer") == 8 else x)


class Tells(Deep):
    def __init__(self) -> None:
        self_shared = Shared()
        super().__init__(lambda number: Told(self_shared))
        self.shared = self_shared

    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        self.shared.told["layer"] = number
        return super().step(number, block, x)


class SetsAttribute(Deep):
    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        block.before = rolled if number == 8 else None
        return super().step(number, block, x)


class RunsTwice(Deep):
    def forward(self, latents: Tensor) -> Tensor:
        x = super().forward(latents)
        return super().step(9, self.blocks[9], rolled(x))


class CallsInside(Deep):
    """Calls a method of a block that is none of its forward."""

    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        if number == 8:
            block.attended(rolled(x))
        return super().step(number, block, x)


class Autocast(Deep):
    def step(self, number: int, block: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=number == 8):
            return super().step(number, block, x).float()


def counting() -> Deep:
    shared = Shared()
    return Deep(lambda number: Counts(shared))


def closing(number: int) -> Block:
    return Block(lambda x: x.roll(1, 1) if number == 8 else x)


def tabled(number: int) -> Block:
    block = Block()
    block.register_buffer("shift", torch.tensor(number))
    return block


SLOW = (
    "a class",
    "a buffer",
    "autocast",
    "partly written between",
    "called otherwise",
    "one runs twice",
    "every second",
)
# The blocks differ, or what happens between them does: and no two models here in the same way.
UNLIKE: dict[str, Callable[[], nn.Module]] = {
    "a closure with a number": lambda: Deep(closing),
    "an attribute": lambda: Deep(lambda number: Block(rolled if number == 8 else None)),
    "every second": lambda: Deep(lambda number: Block(rolled if number % 2 else None)),
    "a class": lambda: Deep(lambda number: Block() if number % 2 else type("Other", (Block,), {})()),
    "a buffer": lambda: Deep(tabled),
    "streams that come round": DelayLine,
    "rolled between": RollsBetween,
    "written between": WritesBetween,
    "partly written between": WritesDataBetween,
    "masks": Masks,
    "a global": SetsGlobal,
    "a long global": SetsLongGlobal,
    "the length of a global": Counted,
    "a counter that they share": counting,
    "a dictionary that they share": Tells,
    "set before each call": SetsAttribute,
    "one runs twice": RunsTwice,
    "called otherwise": CallsInside,
    "autocast": Autocast,
}


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks were left out of each trace that was believed."""
    found: list[int] = []
    expanded = tracing.expanded

    def noting(short: Any, sites: Any) -> Any:
        found.append(sum(len(each.left_out) for each in short))
        return expanded(short, sites)

    monkeypatch.setattr(tracing, "expanded", noting)
    return found


def both(model: nn.Module, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """(the trace as `explain` has it, that of every block)."""
    with torch.no_grad():
        given = (latents(1, 3, 4, 5),), {}, options or OPTIONS
        return tracing.trace(model, *given), tracing.trace(model, *given, every_block=True)


@pytest.mark.parametrize(("name", "dense_layers"), [*((name, 0) for name in ALIKE), ("plain", 2)])
def test_a_few_blocks_say_what_all_of_them_do(name: str, dense_layers: int, shortened: list[int]) -> None:
    short, full = both(ALIKE[name](), {**OPTIONS, "dense_layers": dense_layers})
    assert short == full
    assert full.report.rewritten == len(full.report.sites) - dense_layers
    # What stays: the first block, which is given what no other block gives, and the first ones of the run.
    assert shortened[0] >= DEPTH - 2 - KEPT - dense_layers
    assert shortened[2:] == [0, 0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in UNLIKE]
)
def test_blocks_that_differ_in_some_way_are_traced(name: str, shortened: list[int]) -> None:
    short, full = both(UNLIKE[name]())
    assert short == full
    assert len(full.report.sites) >= DEPTH
    refused = {site.reason for site in full.report.sites}
    # In most of them something is wrong with a few attentions alone, which a trace of the others would not show.
    assert len(refused) > 1 or name in ("a class", "a buffer", "autocast", "a closure with a number")
    # Blocks that are alike before the one that is not may be left out.
    assert shortened[0] <= 8 - KEPT


def test_results_of_two_blocks_are_two_tensors(shortened: list[int]) -> None:
    short, full = both(WrittenAfter())
    assert short == full
    assert full.report.rewritten == 0
    assert shortened[0] >= DEPTH - 2 - KEPT


def test_where_the_blocks_have_no_source_a_break_has_every_block_traced(shortened: list[int]) -> None:
    """As of a class that was made by `exec`: where Dynamo broke off cannot be told from its lines."""
    names: dict[str, Any] = {"Block": Block, "torch": torch}
    code = "class Made(Block):\n    def forward(self, x, mask=None):\n        return super(Made, self).forward(x)\n"
    exec(code, names)

    class Breaks(Deep):
        def tokens(self, latents: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return super().tokens(latents)

    short, full = both(Breaks(lambda number: names["Made"]()))
    assert short == full
    assert len(full.report.sites) == DEPTH
    assert set(shortened) == {0}


def test_few_blocks_are_traced_without_a_look(shortened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "repeated_runs", lambda *_: pytest.fail("looked"))
    short, full = both(Deep(depth=KEPT + 2))
    assert short == full
