"""Values that Python code between graphs may read in a trace: those that follow from shapes, constants and inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import svg_compile
from svg_compile._compat.fake_values import READS_VALUE, LostWrite, ValueMode

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise"}
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@torch.compiler.disable
def read(tensor: Tensor) -> Any:
    return tensor.tolist()


class Branching(nn.Module):
    """Attends where its `choose` says so; `extra` is what the test passes."""

    def __init__(self, choose: Any) -> None:
        super().__init__()
        self.choose = choose
        self.patch, self.qkv = nn.Conv3d(4, 32, 1), nn.Linear(32, 96)
        self.register_buffer("flags", torch.tensor([0, 1]))
        self.eval()

    def forward(self, latents: Tensor, extra: Any = None) -> Tensor:
        x = self.patch(latents).flatten(2).transpose(1, 2)
        if self.choose(self, x, extra):
            q, k, v = (t.unflatten(2, (2, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x


def explain(choose: Any, extra: Any = None, **options: Any) -> Any:
    with torch.no_grad():
        return svg_compile.explain(Branching(choose), torch.randn(1, 4, 5, 7, 3), extra, options={**OPTIONS, **options})


def written_then_read(model: Any, x: Tensor, extra: Any) -> bool:
    flags = torch.zeros(3)
    flags[1:] = 2
    flags.mul_(2)
    return read(flags) == [0, 4, 4]


def of_a_shape(model: Any, x: Tensor, extra: Any) -> bool:
    return sum(read(torch.ones_like(x[0, :, 0]))) == 105 and read(x.new_zeros(2)) == [0, 0]


def counted_between_graphs(model: Any, x: Tensor, extra: Any) -> bool:
    read(x.new_zeros(1))
    lengths = torch.arange(3).cumsum(0)
    torch._dynamo.graph_break()
    return read(lengths * 2)[-1] == 6


def of_a_buffer(model: Any, x: Tensor, extra: Any) -> bool:
    return read(model.flags + 1) == [1, 2]


def of_an_input(model: Any, x: Tensor, extra: Any) -> bool:
    return read(extra.sum()) == 6


def of_a_mask(model: Any, x: Tensor, extra: Any) -> bool:
    return model.qkv(x[:, : extra.numel()])[:, extra].shape[1] == 2


def of_numbers_that_python_iterates(model: Any, x: Tensor, extra: Any) -> bool:
    sizes = torch.stack([torch.tensor([5, 7, 3])])
    sizes = torch.stack([torch.tensor([u[0] + 1, u[1], u[2]]) for u in sizes])
    return read(sizes) == [[6, 7, 3]]


def of_words_that_a_mask_picks(model: Any, x: Tensor, extra: Any) -> bool:
    return model.qkv(x[:, : extra.numel()]).masked_select(extra[:, None] != 0).view(1, -1, 96).shape[1] == 2


@pytest.mark.parametrize(
    ("choose", "extra"),
    [
        (written_then_read, None),
        (of_a_shape, None),
        (counted_between_graphs, None),
        (of_a_buffer, None),
        (of_numbers_that_python_iterates, None),
        (of_words_that_a_mask_picks, torch.tensor([1, 0, 1])),
        (of_an_input, torch.tensor([1, 2, 3])),
        (of_a_mask, torch.tensor([True, False, True])),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_known_is_computed_and_the_branch_that_runs_is_traced(choose: Any, extra: Any) -> None:
    report = explain(choose, extra)
    assert [site.tokens for site in report.sites] == [105]
    assert not any("trace ends" in note for note in report.notes)
    # The other way round the attention does not run, and is not in the table.
    assert not explain(lambda *given: not choose(*given), extra).sites


def of_a_result(model: Any, x: Tensor, extra: Any) -> bool:
    return read(x.mean()) > 0


def written_by_a_result(model: Any, x: Tensor, extra: Any) -> bool:
    flags = torch.zeros(2)
    flags[0] = x.mean()
    return read(flags)[1] == 0


def random(model: Any, x: Tensor, extra: Any) -> bool:
    return read(torch.rand(1))[0] < 2


def written_by_random_numbers(model: Any, x: Tensor, extra: Any) -> bool:
    flags = torch.zeros(2)
    view = flags[:1]
    view += torch.rand(1)
    flags.add_(1)
    return read(flags)[0] == 1


def written_at_random(model: Any, x: Tensor, extra: Any) -> bool:
    return read(torch.zeros(1).uniform_())[0] == 0


@torch.compiler.disable
def written_outside(model: Any, x: Tensor, extra: Any) -> bool:
    flags = torch.zeros(1)
    flags += x.mean()
    return flags.item() == 0


@pytest.mark.parametrize(
    "choose", [of_a_result, written_by_a_result, random, written_by_random_numbers, written_at_random, written_outside]
)
def test_anything_else_ends_the_trace_and_the_line_is_named(choose: Any) -> None:
    report = explain(choose)
    (note,) = (note for note in report.notes if "the trace ends here" in note)
    assert "aten." in note
    assert "test_known_values.py:" in note
    assert not report.sites
    assert report.graphs


def test_gradients_are_assumed_to_be_off_and_a_note_says_so() -> None:
    with torch.enable_grad():
        report = svg_compile.explain(Branching(of_a_shape), torch.randn(1, 4, 5, 7, 3), options=OPTIONS)
    assert any("gradients are on here" in note for note in report.notes)
    assert not any("gradients" in note for note in explain(of_a_shape).notes)
    assert report.sites == explain(of_a_shape).sites


def test_the_mode_itself() -> None:
    mode = ValueMode()
    weight = torch.ones(2, 2)
    known, borrowed = mode.known(torch.tensor([3, 4])), mode.borrowed(weight)
    unknown = mode.unknown(torch.empty(2, device="meta"), torch.float32, torch.device("cpu"))
    assert mode.value(known + torch.tensor([1, 1])).tolist() == [4, 5]
    assert (known.sum() * 2).item() == 14
    assert borrowed.sum().item() == 4
    # A write to a tensor of other owners makes its value unknown instead of changing it.
    borrowed.add_(1)
    assert mode.value(borrowed) is None
    assert torch.equal(weight, torch.ones(2, 2))
    known[0] = unknown.sum()
    assert mode.value(known) is None
    for use in (unknown.sum().item, (unknown > 0).nonzero, lambda: bool(unknown.any())):
        with pytest.raises(READS_VALUE):
            use()
    real = torch.zeros(2)
    with pytest.raises(LostWrite, match="copy_"):
        real.copy_(unknown)
