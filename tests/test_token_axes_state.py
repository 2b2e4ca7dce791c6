"""Tables that a model keeps as it likes, operators of other libraries, and inputs that may hold the same tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svg_compile.config import SvgConfig
from svg_compile.decisions import Reason
from svg_compile.layout import VideoLayout
from token_toys import FRAMES, GRID, HEIGHT, WIDTH, B, C, N, attend, tokens, video
from traced import sites_of, verdict

LAYOUT = SvgConfig(min_tokens=1, dense_layers=0, layout=VideoLayout(FRAMES, HEIGHT, WIDTH))


# ---- state that is a table -------------------------------------------------------------------------------------------


def table(length: int) -> Tensor:
    return torch.linspace(0, 1, 3 * length).view(length, 3)


GLOBAL = table(12)


class Kept(nn.Module):
    """Rotary tables longer than any axis, kept in one way or another and cut to the grid in forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.plain = table(12)
        self.triple = (table(12), table(10), table(10))
        self.entries = {"frames": table(12)}
        self.holder = type("Holder", (), {})()
        self.holder.table = table(12)
        self.register_buffer("buffer", table(12))

    def of_frames(self) -> Tensor:
        places = {"plain": self.plain, "triple": self.triple[0], "dict": self.entries["frames"], "global": GLOBAL}
        return {**places, "object": self.holder.table, "buffer": self.buffer}[self.how]

    def forward(self, x: Tensor) -> Tensor:
        y = tokens(x)
        f, h, w = x.shape[2:]
        at = self.of_frames()[:f].view(f, 1, 1, 3).expand(f, h, w, 3).reshape(f * h * w, 3)
        return attend(y * at.sum(-1, keepdim=True))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("how", ["plain", "triple", "dict", "global", "object", "buffer"])
def test_state_is_a_table_wherever_it_is_kept(how: str, dynamic: bool) -> None:
    x = video()
    torch._dynamo.mark_static(x, 1)
    assert [verdict(site) for site in sites_of(Kept(how), x, dynamic=dynamic)] == [GRID]


class Turned(Kept):
    def forward(self, x: Tensor) -> Tensor:
        y = tokens(x)
        at = self.of_frames()[:FRAMES].view(FRAMES, 1, 1, 3).expand(FRAMES, HEIGHT, WIDTH, 3)
        return attend(y.flip(1) * at.reshape(N, 3).sum(-1, keepdim=True))


@pytest.mark.parametrize("how", ["plain", "triple", "dict", "global"])
def test_a_table_does_not_name_what_was_turned_around(how: str) -> None:
    (site,) = sites_of(Turned(how), video())
    assert verdict(site) == "UNKNOWN_GRID"
    assert site.detail.startswith("aten.flip at test_token_axes_state.py:")


class Holding(nn.Module):
    """Tokens that a module holds are no input's: nothing is claimed of them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = torch.randn(B, N, C)

    def forward(self, scale: Tensor) -> Tensor:
        return attend(self.tokens * scale)


def test_tokens_that_a_module_holds_have_no_grid() -> None:
    assert [verdict(site) for site in sites_of(Holding(), torch.ones(()))] == ["NOT_VIDEO"]


# ---- inputs that may hold the same tokens ----------------------------------------------------------------------------


@torch._dynamo.disable
def rotated(x: Tensor) -> Tensor:
    return x * 2


def outside(x: Tensor, text: Tensor) -> Tensor:
    q, k, v = (tokens(x).unflatten(2, (2, -1)) * n for n in (1, 2, 3))
    q, k = rotated(q), rotated(k)
    y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
    words = text.unflatten(2, (2, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(y, words, words)


def test_query_and_key_that_enter_apart_are_not_called_different() -> None:
    found = sites_of(outside, video(), torch.randn(B, 5, C))
    assert [verdict(site) for site in found] == ["UNKNOWN_GRID", "CROSS_ATTENTION"]
    assert "before a graph break" in found[0].detail
    found = sites_of(outside, video(), torch.randn(B, 5, C), config=LAYOUT)
    assert [verdict(site) for site in found] == [GRID, "CROSS_ATTENTION"]


def ready_made(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))


def test_operands_that_are_inputs_may_hold_the_same_tokens() -> None:
    operands = [torch.randn(B, N, 2, 4) for _ in range(3)]
    assert [verdict(site) for site in sites_of(ready_made, *operands)] == ["UNKNOWN_GRID"]
    assert [verdict(site) for site in sites_of(ready_made, *operands, config=LAYOUT)] == [GRID]


def by_ids(packed: Tensor, ids: Tensor, other: Tensor) -> Tensor:
    y, at = F.linear(packed, torch.ones(C, C)), ids.sum(-1, keepdim=True).cos()
    z = F.linear(other, torch.ones(C, C))
    return attend(at * y, at * y, y) + attend(y, z, z)


def test_ids_that_name_the_queries_are_not_other_tokens_but_other_tokens_are() -> None:
    operands = torch.randn(B, N, C), torch.randn(B, N, 3), torch.randn(B, N, C)
    assert [verdict(site) for site in sites_of(by_ids, *operands)] == ["UNKNOWN_GRID", "CROSS_ATTENTION"]
    found = sites_of(by_ids, *operands, config=LAYOUT)
    assert [verdict(site) for site in found] == [GRID, "CROSS_ATTENTION"]


def test_videos_whose_axes_are_proven_are_different_also_where_they_were_added() -> None:
    def forward(x: Tensor, y: Tensor) -> Tensor:
        z = tokens(x + y)
        return attend(z) + attend(tokens(x), tokens(y), tokens(y))

    found = sites_of(forward, video(), video(), config=LAYOUT)
    assert [verdict(site) for site in found] == [GRID, "CROSS_ATTENTION"]


@pytest.mark.parametrize("text", [5, 40])
def test_keys_of_text_and_video_and_a_query_of_the_video_alone(text: int) -> None:
    """Sparse, as the queries are a part of the keys; with more text than is worth it, it stays dense."""

    def forward(x: Tensor, text: Tensor) -> Tensor:
        keys = torch.cat([text, tokens(x)], 1)
        return attend(tokens(x), keys, keys)

    (site,) = sites_of(forward, video(), torch.randn(B, text, C))
    if text == 5:
        assert (verdict(site), site.unasked) == (f"5+{GRID}", (5, 0))
    else:
        assert site.reason is Reason.CROSS_ATTENTION
        assert site.detail.startswith(f"the queries are {N} of the keys' {N + text} tokens, too few")


# ---- why it is opaque ------------------------------------------------------------------------------------------------


def rolled(x: Tensor) -> Tensor:
    return x.roll(1, 1) + 1


def sorted_(x: Tensor) -> Tensor:
    return x.sort(1)[0] * 2


def cumulated_and_projected(x: Tensor) -> Tensor:
    return F.linear(F.layer_norm(x.cumsum(1), (C,)), torch.ones(C, C)) + x


def written_backwards(x: Tensor) -> Tensor:
    out = torch.empty(x.shape)
    torch.add(x.flip(1), 0, out=out)
    return out + x


@pytest.mark.parametrize(
    ("move", "operator"),
    [
        (rolled, "aten.roll"),
        (sorted_, "aten.sort"),
        (cumulated_and_projected, "aten.cumsum"),
        (written_backwards, "aten."),
    ],
)
def test_the_first_operator_that_took_the_name_is_told_with_its_line(
    move: Callable[[Tensor], Tensor], operator: str
) -> None:
    (site,) = sites_of(lambda x: attend(move(tokens(x))), video())
    line = move.__code__.co_firstlineno + (2 if move is written_backwards else 1)
    assert site.reason is Reason.UNKNOWN_GRID
    assert site.detail.startswith(operator)
    assert site.detail.endswith(f"test_token_axes_state.py:{line}")
    assert "attach" not in site.reason.remedy


def test_a_layout_shorter_than_the_sequence_is_told_what_is_missing() -> None:
    def forward(x: Tensor, text: Tensor) -> Tensor:
        return attend(torch.cat([tokens(x), text], 1).roll(1, 1))

    (site,) = sites_of(forward, video(), torch.randn(B, 5, C), config=LAYOUT)
    assert verdict(site) == "UNKNOWN_GRID"
    assert "(4, 2, 6, 5, 'first') or (4, 2, 6, 5, 'last')" in site.detail


def test_three_dimensions_are_told_so() -> None:
    y = torch.randn(B, N, C)
    sites = sites_of(lambda x: F.scaled_dot_product_attention(x, x, x), y, config=LAYOUT)
    assert [site.reason for site in sites] == [Reason.RANK]
