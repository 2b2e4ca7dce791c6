"""Models whose blocks differ, or in which something happens between them: no two in the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deep_models import Block, Deep, rolled

LAYER = [0]


MANY = [0] * 1000


SEEN: list[object] = []


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
