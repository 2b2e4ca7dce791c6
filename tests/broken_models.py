"""Models whose graphs break before their attention, and the inputs of one step of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models

GRID, TEXT = (5, 7, 3), 5
Inputs = dict[str, Any]
Build = Callable[[], tuple[nn.Module, Inputs]]


@torch.compiler.disable
def rotated(x: Tensor, table: Tensor) -> Tensor:
    return x * table[:, None]


@torch.compiler.disable
def turned(x: Tensor, table: Tensor) -> Tensor:
    """As `rotated`, of tokens that are rolled by a row."""
    return (x * table[:, None]).roll(3, 1)


def by_sizes(x: Tensor, table: Tensor, sizes: Tensor) -> Tensor:
    """Rotary code that reads the grid of each sample, and puts the samples together again."""
    out = []
    for i, (f, h, w) in enumerate(sizes.tolist()):
        seq_len = f * h * w
        y = torch.view_as_complex(x[i, :seq_len].to(torch.float64).reshape(seq_len, x.size(2), -1, 2))
        axes = [table[:f].view(f, 1, 1, -1).expand(f, h, w, -1), table[:h].view(1, h, 1, -1).expand(f, h, w, -1)]
        freqs = torch.cat([axes[0][..., :4], axes[1][..., :4]], dim=-1).reshape(seq_len, 1, -1)
        y = torch.view_as_real(y * torch.polar(torch.ones_like(freqs), freqs)).flatten(2)
        out.append(torch.cat([y, x[i, seq_len:]]))
    return torch.stack(out).float()


class Attention(nn.Module):
    def __init__(self, rotary: Callable[..., Tensor]) -> None:
        super().__init__()
        self.rotary, self.qkv, self.out = rotary, nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (2, -1)) for t in self.qkv(2 * x).chunk(3, -1))
        q, k = self.rotary(q, *tables), self.rotary(k, *tables)
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, rotary: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(rotary), nn.Linear(32, 32)

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        x = x + self.attn(x, *tables)
        return x + self.mlp(x)


class RotaryOutside(nn.Module):
    """Rotary code that breaks the graph within each attention."""

    def __init__(self, rotary: Callable[..., Tensor] = rotated) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.head = nn.Conv3d(4, 32, 1), nn.Linear(32, 4)
        self.by_sizes = rotary is by_sizes
        self.blocks = nn.ModuleList(Block(rotary) for _ in range(2))
        self.eval()

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x = self.patch(hidden_states)
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + timestep.float().reshape(-1, 1, 1).cos()
        tables: tuple[Tensor, ...] = (torch.linspace(0, 1, x.shape[1])[:, None].expand(-1, 16).cos(),)
        if self.by_sizes:
            tables = torch.linspace(0, 1, 1024).reshape(128, 8), torch.tensor([list(grid)] * len(x))
        for block in self.blocks:
            x = block(x, *tables)
        return self.head(x).transpose(1, 2).unflatten(2, grid)


class PositionCache:
    """Rotary code, no module, that keeps the positions of each grid and reads how many there are."""

    def __init__(self) -> None:
        self.known: dict[str, Tensor] = {}

    def __call__(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        name = "-".join(map(str, grid))
        if name not in self.known:
            self.known[name] = torch.cartesian_prod(*map(torch.arange, grid))
        places = self.known[name]
        table = torch.linspace(0, 1, int(places.max()) + 1)[:, None].expand(-1, 16).cos()
        return x * sum(F.embedding(places[:, i], table) for i in range(3))[:, None]


class Cached(RotaryOutside):
    """Its blocks share a cache that their first call fills."""

    def __init__(self) -> None:
        super().__init__(PositionCache())

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x = self.patch(hidden_states)
        grid = tuple(x.shape[2:])
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, grid)
        return self.head(x).transpose(1, 2).unflatten(2, grid)


class Masked(RotaryOutside):
    """A mask that Python code reads between the patches and the blocks."""

    def __init__(self) -> None:
        super().__init__(lambda x, table: x * table[:, None])

    def forward(self, hidden_states: Tensor, timestep: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.patch(hidden_states)
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + timestep.float().reshape(-1, 1, 1).cos()
        assert mask is not None
        if bool(mask.all()):
            x = x * 2
        table = torch.linspace(0, 1, x.shape[1])[:, None].expand(-1, 16).cos()
        for block in self.blocks:
            x = block(x, table)
        return self.head(x).transpose(1, 2).unflatten(2, grid)


class Flagged(Masked):
    """Two masks and an image that are floating-point, each read by Python code."""

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, mask: Tensor | None = None, mask_2: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        assert mask is not None
        assert mask_2 is not None
        assert image is not None
        text = torch.stack([torch.cat([row[seen], row[~seen]]) for row, seen in zip(mask, mask.bool())])
        more = torch.stack([torch.cat([row[seen], row[~seen]]) for row, seen in zip(mask_2, mask_2.bool())])
        if torch.all(image == 0):
            more = more * 0.0
        return super().forward(hidden_states + text.mean() + more.mean(), timestep, mask.bool())


class Disabled(Attention):
    """Its attention is in no graph."""

    @torch.compiler.disable
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (2, -1)) for t in self.qkv(2 * x).chunk(3, -1))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


def between() -> tuple[RotaryOutside, Inputs]:
    """Its attention is between its graphs."""
    model = RotaryOutside()
    for block in model.blocks:
        attention = Disabled(rotated)
        attention.load_state_dict(block.attn.state_dict())
        block.attn = attention.eval()
    return model, toy()


def toy(**more: Any) -> Inputs:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return {"hidden_states": torch.randn(1, 4, *GRID), "timestep": torch.tensor([500.0]), **more}


def rolled() -> tuple[RotaryOutside, Inputs]:
    """Its tokens are rolled between its graphs."""
    return RotaryOutside(turned), toy()


def flags(image: Tensor) -> Inputs:
    mask = (torch.arange(TEXT) < 3).float()[None]
    return toy(mask=mask, mask_2=1 - mask, image=image)


def hunyuan15() -> tuple[nn.Module, Inputs]:
    case = models.case("hunyuan_video_1_5")
    return case.build(), case.inputs(1, case.grid)


def layout_of_hunyuan15() -> tuple[Any, ...]:
    case = models.case("hunyuan_video_1_5")
    return (*case.grid, case.text_len, "last")


# How each is built, and its layout.
MODELS: dict[str, tuple[Build, tuple[Any, ...]]] = {
    "rotary code that is not traced": (lambda: (RotaryOutside(), toy()), GRID),
    "rotary code that reads the grid": (lambda: (RotaryOutside(by_sizes), toy()), GRID),
    "positions that rotary code keeps": (lambda: (Cached(), toy()), GRID),
    "a mask that is read": (lambda: (Masked(), toy(mask=torch.ones(1, TEXT, dtype=torch.int64))), GRID),
    "masks that are floating-point": (lambda: (Flagged(), flags(torch.zeros(1, 4, 8))), GRID),
    "masks and an image that are floating-point": (lambda: (Flagged(), flags(torch.randn(1, 4, 8))), GRID),
    "hunyuan_video_1_5": (hunyuan15, layout_of_hunyuan15()),
}
