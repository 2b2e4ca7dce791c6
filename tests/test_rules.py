"""The claims of each operator's rule about its result, checked against numbers by `rule_check`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rule_check import claims
from svg_compile.passes.axes.axis import Axis
from svg_compile.passes.axes.rules.call import Call
from svg_compile.passes.axes.rules.registry import RULES, Answer, Named, rule, takes_all

aten = torch.ops.aten
ROOT = Path(__file__).resolve().parent.parent
LATENTS = "B=2 c=8 F=3 H=4 W=6"

TURNED = ("H W", "?6 H", "?4 ?6", "W ?4")

# Operator, operands, the claimed axes of its results.
CASES: list[tuple[Callable[..., Any], tuple[str, ...], str]] = [
    (lambda x: x.permute(0, 2, 3, 4, 1), (LATENTS,), "B F H W c"),
    (lambda x: x.flatten(2), (LATENTS,), "B c F*H*W"),
    (lambda x: x.unflatten(3, (2, 2)), (LATENTS,), "B c F H0 H1 W"),
    (lambda x: x.flatten(2).reshape(2, 8, 3, 24), (LATENTS,), "B c F H*W"),
    (lambda x: x.reshape(2, 8, 4, 3, 6), (LATENTS,), "B c ?4 ?3 ?6"),
    (lambda x: x[:, :, 1], (LATENTS,), "B c H W"),
    (lambda x: x[:, :, 1:], (LATENTS,), "B c F[1:3] H W"),
    (lambda x: x[:, :, :, ::2], (LATENTS,), "B c F ?2 W"),
    (lambda x: x.unflatten(3, (2, 2))[:, :, :, :, 1], (LATENTS,), "B c F ?2 W"),
    (lambda x: x.split(2, 2), (LATENTS,), "B c F[0:2] H W; B c 1 H W"),
    (lambda x: x.unbind(1)[:2], (LATENTS,), "B F H W; B F H W"),
    (lambda x: torch.cat([x[:, :, :1], x[:, :, 1:]], 2), (LATENTS,), "B c F H W"),
    (lambda x: torch.cat([x[:, :, 1:], x[:, :, :1]], 2), (LATENTS,), "B c [F[1:3] | 1] H W"),
    (lambda x, y: torch.cat([x, y], 1), ("B=2 T=5 c=8", "B=2 N=7 c=8"), "B [T | N] c"),
    (lambda x, y: torch.stack([x, y], 1), ("B=2 N=7 c=8", "B=2 N=7 c=8"), "B ~2 N c"),
    (lambda x: x.repeat(1, 1, 2, 1, 1), (LATENTS,), "B c [F | F] H W"),
    (lambda x: x.repeat_interleave(2, 3), (LATENTS,), "B c F H*2 W"),
    (lambda x: x.roll(1, 2), (LATENTS,), "B c ?3 H W"),
    (lambda x: x.flip(3), (LATENTS,), "B c F ?4 W"),
    (lambda x: x.cumsum(2), (LATENTS,), "B c ?3 H W"),
    (lambda x: x.index_select(2, torch.tensor([2, 0])), (LATENTS,), "B c ?2 H W"),
    (lambda x: x.index_select(2, torch.tensor([2])), (LATENTS,), "B c 1 H W"),
    (lambda x: x.index_select(2, torch.arange(3)), (LATENTS,), "B c F H W"),
    (lambda x: x.index_select(2, torch.arange(1, 3)), (LATENTS,), "B c F[1:3] H W"),
    (lambda x: x[:, :, :, torch.arange(4)], (LATENTS,), "B c F H W"),
    (lambda x: torch.zeros(2, 9, 8).index_copy(1, torch.arange(7) + 2, x), ("B=2 N=7 c=8",), "B [2 | N] c"),
    (lambda x: torch.zeros(2, 9, 8).index_add(1, torch.arange(7) + 2, x), ("B=2 N=7 c=8",), "B [2 | N] c"),
    (lambda x: torch.zeros(2, 7, 8).index_copy(1, torch.arange(7).roll(1), x), ("B=2 N=7 c=8",), "B [?6 | 1] c"),
    (lambda x: F.pad(x, (0, 1)), (LATENTS,), "B c F H W'"),
    (lambda x: F.pad(x, (1, 0)), (LATENTS,), "B c F H ?7"),
    (lambda x: x.sum(1), (LATENTS,), "B F H W"),
    (lambda x: x.mean(2, keepdim=True), (LATENTS,), "B c 1 H W"),
    (lambda x: x @ torch.ones(8, 5), ("B=2 N=6 c=8",), "B N ~5"),
    (lambda x, y: x @ y, ("N=6 c=8", "c=8 5"), "N ~5"),
    (lambda x, w: F.linear(x, w), ("B=2 N=6 c=8", "5 8"), "B N ~5"),
    (lambda x, w: F.conv3d(x, w, stride=(1, 2, 2)), (LATENTS, "5 8 1 2 2"), "B ~5 F H' W'"),
    (lambda x: F.avg_pool2d(x, 2), ("B=2 c=8 H=4 W=6",), "B c H' W'"),
    (lambda x, y: x + y, (LATENTS, "B=2 c=8 1 4 6"), "B c F H W"),
    (lambda x, y: x * y, (LATENTS, "3 4 6"), "B c F H W"),
    (lambda table: F.embedding(torch.tensor([3, 1, 2]), table), ("5 8",), "3 8"),
    (lambda x: F.pixel_unshuffle(x, 2), ("B=2 F=3 c=8 H=4 W=6",), "B F c*H1*W1 H0 W0"),
    (lambda x: F.pixel_shuffle(x, 2), ("B=2 F=3 c=8 H=4 W=6",), "B F c0 H*c1 W*c2"),
    (lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), ("B=2 F=3 c=8 H=4 W=6",), "B F c H0*H1 W0*W1"),
    (lambda x: x.unfold(3, 2, 2), (LATENTS,), "B c F H0 W H1"),
    (lambda x: x.unfold(2, 2, 2), (LATENTS,), "B c 1 H W ?2"),
    (lambda x: x.unfold(4, 3, 1), (LATENTS,), "B c F H ?4 ?3"),
    *((lambda x, k=k: x.rot90(k, (3, 4)), (LATENTS,), f"B c F {axes}") for k, axes in enumerate(TURNED)),
    (lambda x: x[torch.tensor([2, 0, 1])], ("N=7 c=8",), "?3 c"),
]


@pytest.mark.parametrize(("function", "operands", "claimed"), CASES)
def test_what_is_claimed_is_so(function: Callable[..., Any], operands: tuple[str, ...], claimed: str) -> None:
    assert claims(function, *operands) == claimed


def test_the_examples_of_the_page_are_code() -> None:
    page = (ROOT / "docs" / "adding-a-rule.md").read_text()
    blocks = [textwrap.dedent(block).strip() for block in re.findall(r"^ *```python\n(.*?)^ *```$", page, re.M | re.S)]
    code = "".join(path.read_text() for path in (*(ROOT / "passes").rglob("*.py"), *(ROOT / "tests").rglob("*.py")))
    missing = [block for block in blocks if block not in code]
    assert len(blocks) == 4
    assert missing == []


# ---- rules that are wrong, and rules that are short -----------------------------------------------------------------


@torch.library.custom_op("svg_tests::shown", mutates_args=())
def shown(x: torch.Tensor, how: str) -> torch.Tensor:
    """[B, H, W] in one way or another."""
    ways = {
        "turned": lambda: x.flip(1),
        "transposed": lambda: x.transpose(1, 2),
        "neighbour": lambda: x + x.roll(1, 2),
        "first": lambda: x[:, 0],
        "every second": lambda: x.unflatten(2, (-1, 2))[..., 0],
    }
    return ways[how]().contiguous().clone()


@shown.register_fake
def _(x: torch.Tensor, how: str) -> torch.Tensor:
    b, h, w = x.shape
    shapes = {"transposed": (b, w, h), "first": (b, w), "every second": (b, h, w // 2)}
    return x.new_empty(shapes.get(how, (b, h, w)))


@pytest.fixture
def registered() -> Iterator[Any]:
    operator = torch.ops.svg_tests.shown
    yield operator
    RULES.pop(operator, None)


@pytest.mark.parametrize(
    ("how", "axes", "told"),
    [
        ("turned", (0, 1, 2), "dimension 1 is called H, but place 0 of it comes from position 3 of H"),
        ("neighbour", (0, 1, 2), "dimension 2 is called W, but place 0 of it comes from position 5 of W"),
        ("transposed", (0, 1, 2), "gave axes of"),
        ("first", (0,), "gave axes of"),
    ],
)
def test_a_rule_that_is_wrong_is_found(registered: Any, how: str, axes: tuple[int, ...], told: str) -> None:
    takes_all(registered)(lambda call: [call.axes[dim] for dim in axes])
    with pytest.raises(AssertionError, match=told):
        claims(lambda x: shown(x, how), "B=2 H=4 W=6")


def test_a_selection_that_is_not_noted_is_found_and_need_not_be_said(registered: Any) -> None:
    def of_the_first(call: Call) -> list[Axis]:
        return [call.axes[0], call.axes[2]]

    takes_all(registered)(of_the_first)
    with pytest.raises(AssertionError, match="one position of H, and it is not noted"):
        claims(lambda x: shown(x, "first"), "B=2 H=4 W=6")
    rule(registered)(of_the_first)
    assert claims(lambda x: shown(x, "first"), "B=2 H=4 W=6") == "B W"


def test_parts_of_an_axis_of_which_another_part_is_gone_are_opaque(registered: Any) -> None:
    @rule(registered)
    def of_every_second(call: Call) -> Answer:
        (part, _), size = call.axes[2], call.shape[2]
        assert part.size == size
        return [*call.axes[:2], (part,)]

    def second(x: torch.Tensor) -> torch.Tensor:
        return shown(x.unflatten(2, (-1, 2)).flatten(2), "every second")

    assert claims(second, "B=2 H=4 W=6") == "B H ?3"


def test_a_rule_may_say_what_was_selected(registered: Any) -> None:
    rule(registered)(lambda call: Named([call.axes[0], call.axes[2]], [call.axes[1]]))
    assert claims(lambda x: shown(x, "first"), "B=2 H=4 W=6") == "B W"
