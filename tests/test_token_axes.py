"""Toy models that move tokens: the grid that the analysis proves for each, or its refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from token_toys import GRID, MODELS, B, C, N, attend, tokens, video
from traced import axes_of, sites_of, verdict

Move = Callable[[Tensor], Tensor]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", MODELS)
def test_verdict(name: str, dynamic: bool) -> None:
    function, inputs, expected = MODELS[name]
    for tensor in inputs:
        # Channel counts are constants of a model.
        torch._dynamo.mark_static(tensor, 1 if tensor.dim() == 5 else 2)
    assert [verdict(site) for site in sites_of(function, *inputs, dynamic=dynamic)] == expected


# ---- models with state, child graphs, control flow ------------------------------------------------------------------


class _Written(nn.Module):
    """Writes a buffer of its own in forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("state", torch.zeros(B, N, C))

    def forward(self, x: Tensor) -> Tensor:
        y = tokens(x)
        if self.how == "flip":
            self.state.copy_(y.flip(1))
        elif self.how == "part":
            self.state[:, : N // 2] = y[:, N // 2 :]
        else:
            self.state.copy_(y)
        return attend(self.state if self.how == "alone" else self.state + y)


@pytest.mark.parametrize(
    ("how", "expected"), [("flip", "UNKNOWN_GRID"), ("part", "UNKNOWN_GRID"), ("straight", GRID), ("alone", GRID)]
)
def test_a_buffer_written_in_forward(how: str, expected: str) -> None:
    assert [verdict(site) for site in sites_of(_Written(how), video())] == [expected]


def test_multihead_attention_modules_are_left_alone() -> None:
    block = nn.MultiheadAttention(C, 2, batch_first=True).eval()
    sites = sites_of(lambda x: block(tokens(x), tokens(x), tokens(x), need_weights=False)[0], video())
    assert all(verdict(site) in (GRID, "UNKNOWN_GRID") for site in sites)


@torch.compiler.nested_compile_region
def _region(x: Tensor) -> Tensor:
    return attend(x * 2)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_shared_child_graph_of_one_grid(dynamic: bool) -> None:
    def forward(x: Tensor) -> Tensor:
        y = tokens(x)
        return _region(_region(y))

    x = video()
    torch._dynamo.mark_static(x, 1)
    found = {verdict(site) for site in sites_of(forward, x, dynamic=dynamic)}
    assert found == {GRID}


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_shared_child_graph_of_two_grids_is_refused(dynamic: bool) -> None:
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return _region(tokens(x)) + _region(tokens(y))

    inputs = video(4, 2, 6), video(2, 4, 6)
    for tensor in inputs:
        torch._dynamo.mark_static(tensor, 1)
    assert [verdict(site) for site in sites_of(forward, *inputs, dynamic=dynamic)] == ["SEVERAL_GRIDS"]


@pytest.mark.parametrize("kind", ["checkpoint", "cond"])
def test_other_higher_order_operators_are_refused(kind: str) -> None:
    def forward(x: Tensor) -> Tensor:
        y = tokens(x)
        if kind == "checkpoint":
            y = torch.utils.checkpoint.checkpoint(attend, y, use_reentrant=False)
        else:
            y = torch.cond(x.sum() > 0, attend, lambda t: (t * 2).contiguous(), (y.contiguous(),))
        return attend(y)

    found = [verdict(site) for site in sites_of(forward, video(), grad=False)]
    assert found[-1] in (GRID, "UNKNOWN_GRID")
    assert all(entry in ("HIGHER_ORDER", GRID, "UNKNOWN_GRID") for entry in found)
    if kind == "cond":
        assert found == ["HIGHER_ORDER", "UNKNOWN_GRID"]


@torch.library.custom_op("svg_tests::turn_around", mutates_args={"y"})
def turn_around(y: Tensor) -> None:
    y.copy_(y.flip(1))


def _by_an_operator(y: Tensor) -> Tensor:
    torch.ops.svg_tests.turn_around(y)
    return y * 1


def _by_a_dunder(y: Tensor) -> Tensor:
    y.__isub__(y - y.flip(1))
    return y * 1


@pytest.mark.parametrize("body", [_by_an_operator, _by_a_dunder])
def test_a_checkpoint_that_writes_its_operand_leaves_nothing_known_of_it(body: Move) -> None:
    def forward(x: Tensor) -> Tensor:
        y = tokens(x).contiguous() * 1
        torch.utils.checkpoint.checkpoint(body, y, use_reentrant=False)
        return attend(y)

    assert [verdict(site) for site in sites_of(forward, video())] == ["UNKNOWN_GRID"]


def test_a_checkpoints_result_may_be_a_view_of_its_operand() -> None:
    def forward(x: Tensor) -> Tensor:
        y = tokens(x).contiguous() * 1
        view = torch.utils.checkpoint.checkpoint(lambda t: t[:, :], y, use_reentrant=False)
        view.copy_(y.flip(1))
        return attend(y)

    assert [verdict(site) for site in sites_of(forward, video())] == ["UNKNOWN_GRID"]


@pytest.mark.parametrize("kind", ["checkpoint", "cond"])
def test_a_shared_child_graph_that_is_also_called_where_nobody_looks_is_refused(kind: str) -> None:
    def forward(x: Tensor) -> Tensor:
        y = tokens(x).contiguous()
        if kind == "checkpoint":
            turned = torch.utils.checkpoint.checkpoint(lambda t: _region(t), y.flip(1), use_reentrant=False)
        else:
            turned = torch.cond(x.sum() > 0, lambda t: _region(t), lambda t: t * 1, (y.flip(1),))
        return _region(y) + turned

    assert [verdict(site) for site in sites_of(forward, video())] == ["HIGHER_ORDER"]


def _permuted(x: Tensor) -> Tensor:
    return x.permute(0, 1, 4, 3, 2).contiguous()


def _windowed(x: Tensor) -> Tensor:
    return x.unflatten(4, (3, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3, 4).contiguous()


@pytest.mark.parametrize(("move", "expected"), [(_permuted, "UNKNOWN_GRID"), (_windowed, "UNKNOWN_GRID"), (None, GRID)])
def test_what_came_about_before_a_graph_break_has_no_grid(move: Move | None, expected: str) -> None:
    def forward(x: Tensor) -> Tensor:
        y = x if move is None else move(x)
        torch._dynamo.graph_break()
        return attend(tokens(y) if y.shape[1] == C else y.flatten(1, 3))

    (site,) = sites_of(forward, video())
    assert verdict(site) == expected
    assert ("before a graph break" in site.detail) == (move is not None)


class _Pair(NamedTuple):
    video: Tensor
    words: Tensor


def _in_a_tuple(x: Tensor, batch: dict[str, Tensor]) -> Tensor:
    pair = _Pair(x.flip(2), x)
    torch._dynamo.graph_break()
    return pair.video


def _on_a_tensor(x: Tensor, batch: dict[str, Tensor]) -> Tensor:
    y = x * 2
    y.video = x.flip(2)  # type: ignore[attr-defined]
    torch._dynamo.graph_break()
    return y.video  # type: ignore[attr-defined, no-any-return]


def _in_the_callers_dict(x: Tensor, batch: dict[str, Tensor]) -> Tensor:
    batch["video"] = x.flip(2)
    torch._dynamo.graph_break()
    return batch["video"]


@torch._dynamo.disable
def _flipped(x: Tensor) -> Tensor:
    return x.flip(2)


def _by_plain_python(x: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return _flipped(x)


@pytest.mark.parametrize("make", [_in_a_tuple, _on_a_tensor, _in_the_callers_dict, _by_plain_python])
def test_wherever_it_was_put_before_a_graph_break(make: Callable[..., Tensor]) -> None:
    def forward(x: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return attend(tokens(make(x, batch)))

    assert [verdict(site) for site in sites_of(forward, video(), {})] == ["UNKNOWN_GRID"]


def _attended(x: Tensor) -> Tensor:
    return attend(tokens(x))


@torch._dynamo.disable(recursive=False)
def _in_plain_python(x: Tensor, *, flip: bool) -> Tensor:
    return _attended(x.flip(2) if flip else x)


@pytest.mark.parametrize(("flip", "expected"), [(True, "UNKNOWN_GRID"), (False, GRID)])
def test_a_function_that_plain_python_calls_is_given_what_the_callable_was(flip: bool, expected: str) -> None:
    (site,) = sites_of(lambda x: _in_plain_python(x, flip=flip), video())
    assert verdict(site) == expected


def test_what_a_callable_sees_from_outside_is_given() -> None:
    x = video()

    def forward(scale: Tensor) -> Tensor:
        return attend(tokens(x * scale))

    assert [verdict(site) for site in sites_of(forward, torch.ones(()))] == [GRID]


# ---- what the analysis leaves behind --------------------------------------------------------------------------------


def test_a_tensor_that_changes_its_own_shape_leaves_the_examples_alone() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x * 1
        y.unsqueeze_(0)
        return attend(tokens(y[0]))

    assert [verdict(site) for site in sites_of(forward, video())] in ([GRID], ["UNKNOWN_GRID"])


def test_a_failing_run_restores_gradients_and_autocast() -> None:
    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attend(F.linear(tokens(x), torch.ones(C, C)))

    before = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
    axes_of(forward, video())
    assert (torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()) == before
