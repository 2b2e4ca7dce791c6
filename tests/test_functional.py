"""The plain functions: refused arguments with their errors, and arguments at the limit of the valid range."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from svg_compile import LayoutError, VideoLayout, profile_heads, sparse_attention
from svg_compile.kernels import ops

LAYOUT = VideoLayout(5, 4, 3, block=8)
ROWS = torch.randn(1, 2, 60, 16, generator=torch.Generator().manual_seed(0))
PLAN = profile_heads(ROWS, ROWS, ROWS, LAYOUT)
ENGINES = ("cpu", "reference")

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def attend(rows: Any = ROWS, plan: Any = PLAN, layout: Any = LAYOUT, **more: Any) -> Tensor:
    return sparse_attention(rows, rows, rows, plan, layout, **more)


def profile(rows: Any = ROWS, layout: Any = LAYOUT, **more: Any) -> Tensor:
    return profile_heads(rows, rows, rows, layout, **more)


def plan_of(*heads: tuple[int, int]) -> Tensor:
    return torch.tensor([heads], dtype=torch.int32)


class Subclass(torch.Tensor):
    """Nothing of its own."""


@pytest.mark.parametrize("call", [attend, profile])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rows": ROWS.numpy()}, "query must be a torch.Tensor, got ndarray"),
        ({"rows": None}, "query must be a torch.Tensor, got NoneType"),
        ({"rows": ROWS[0]}, r"query must be \[B, H, 60, D\]"),
        ({"rows": ROWS[:, :, :59]}, r"got \[1, 2, 59, 16\].*in tokens, not in pixels"),
        ({"rows": ROWS[..., :0]}, "no channels"),
        ({"rows": ROWS.long()}, "float32, bfloat16 or float16: query is torch.int64"),
        ({"rows": ROWS.double()}, "query is torch.float64"),
        ({"rows": ROWS + 0j}, "query is torch.complex64"),
        ({"rows": ROWS.to_sparse()}, "plain, dense tensor, got a torch.sparse_coo tensor"),
        ({"layout": (5, 4, 3)}, r"VideoLayout, got \(5, 4, 3\)"),
        ({"layout": None}, "VideoLayout, got None"),
        ({"scale": math.nan}, "scale must be a finite number"),
        ({"scale": math.inf}, "scale must be a finite number"),
        ({"scale": "0.5"}, "scale must be a finite number"),
        ({"scale": True}, "scale must be a finite number"),
        ({"scale": torch.tensor(0.5)}, "scale must be a finite number"),
        ({"key_mask": torch.ones(1, 60)}, r"key_mask must be bool of shape \[1, 60\].*float32"),
        ({"key_mask": torch.ones(60, dtype=torch.bool)}, r"key_mask must be bool of shape \[1, 60\].*got .* \[60\]"),
        ({"key_mask": numpy.ones((1, 60), dtype=bool)}, "key_mask must be a torch.Tensor, got ndarray"),
        ({"key_mask": torch.ones(1, 60, dtype=torch.bool, device="meta")}, "key_mask is on meta, query on cpu"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(call: Callable[..., Tensor], more: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        call(**more)


@pytest.mark.parametrize("call", [attend, profile])
def test_gradients_and_nested_tensors_are_refused(call: Callable[..., Tensor]) -> None:
    with torch.enable_grad(), pytest.raises(LayoutError, match=r"query needs gradients.*torch\.no_grad"):
        call(ROWS.clone().requires_grad_())
    nested = torch.nested.nested_tensor([torch.randn(2, 60, 16)], layout=torch.jagged)
    with pytest.raises(LayoutError, match="got a nested tensor"):
        call(nested)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"density": [0.3]}, r"density must lie in \(0, 1\], got \[0.3\]"),
        ({"density": math.nan}, "got nan"),
        ({"density": 2}, "got 2"),
        ({"sampled_rows": 0}, "sampled_rows must be an integer of at least 1"),
        ({"sampled_rows": 1.5}, "sampled_rows must be an integer of at least 1"),
    ],
)
def test_wrong_options_of_a_profile_are_named(more: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        profile(**more)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PLAN.tolist(), "plan must be a torch.Tensor, got list"),
        (PLAN.long(), r"plan must be int32 of shape \[1, 2, 2\], got torch.int64"),
        (PLAN[:, :1], r"got torch.int32 \[1, 1, 2\]"),
        (PLAN.to("meta"), "plan is on meta, query on cpu"),
    ],
)
def test_plans_of_another_form_are_named(plan: Any, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        attend(plan=plan)


def test_operands_that_differ_are_named() -> None:
    with pytest.raises(LayoutError, match=r"query is torch\.float32, key is torch\.float16"):
        sparse_attention(ROWS, ROWS.half(), ROWS, PLAN, LAYOUT)
    with pytest.raises(LayoutError, match="query is on cpu, value on meta"):
        profile_heads(ROWS, ROWS, ROWS.to("meta"), LAYOUT)
    with pytest.raises(LayoutError, match=r"one shape, got \[1, 2, 60, 16\], \[1, 1, 60, 16\]"):
        profile_heads(ROWS, ROWS[:, :1], ROWS[:, :1], LAYOUT)


ILLEGAL = [
    (plan_of((0, 1), (7, 0)), r"plan\[0, 1\] is \[7, 0\]:"),
    (plan_of((-1, 0), (3, 0)), r"plan\[0, 0\] is \[-1, 0\], and 1 more like it"),
    (plan_of((1, -3), (0, 0)), r"plan\[0, 0\] is \[1, -3\]"),
    (plan_of((2, -1), (0, 0)), r"plan\[0, 0\] is \[2, -1\]"),
]


@pytest.mark.parametrize(("plan", "message"), ILLEGAL)
def test_what_is_no_plan_is_an_error_that_says_which_head(plan: Tensor, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        attend(plan=plan)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_of_the_cpu_checks_plans(engine: str) -> None:
    grid = [5, 4, 3, 0, 0, 8]
    for plan, message in ILLEGAL:
        with pytest.raises(LayoutError, match=message):
            torch.ops.svg.attention(ROWS, ROWS, ROWS, plan, None, grid, None, engine, ops.ABI)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_plans_are_checked_in_compiled_code_too(backend: str) -> None:
    compiled = torch.compile(attend, backend=backend, fullgraph=True)
    for plan, message in ILLEGAL[:2]:
        with pytest.raises(LayoutError, match=message):
            compiled(ROWS, plan)
    assert torch.allclose(compiled(ROWS, PLAN), attend())


def test_widths_beyond_everything_are_dense() -> None:
    dense = nn.functional.scaled_dot_product_attention(ROWS, ROWS, ROWS)
    for kind in (0, 1):
        for width in (LAYOUT.full_half_width, 2**31 - 1):
            torch.testing.assert_close(attend(plan=plan_of((kind, width), (2, 0))), dense)


@pytest.mark.parametrize("shape", [(0, 2, 60, 16), (1, 0, 60, 16), (0, 0, 60, 16)])
@pytest.mark.parametrize("masked", [False, True])
def test_no_samples_and_no_heads_give_nothing(shape: tuple[int, ...], masked: bool) -> None:
    rows = torch.empty(shape)
    key_mask = torch.ones(shape[0], 60, dtype=torch.bool) if masked else None
    plan = profile(rows, key_mask=key_mask)
    assert (plan.shape, plan.dtype) == ((*shape[:2], 2), torch.int32)
    assert attend(rows, plan, key_mask=key_mask).shape == shape
    for engine in ENGINES:
        more = ([0.3], 8, True, None, engine, ops.ABI, None, None, None)
        plan, errors, _ = torch.ops.svg.profile(rows, rows, rows, key_mask, [5, 4, 3, 0, 0, 8], *more)
        assert plan.shape == errors.shape == (*shape[:2], 2)


def test_a_batch_that_empties_finds_its_graph() -> None:
    compiled = torch.compile(lambda rows: attend(rows, profile(rows)), backend="eager", dynamic=True, fullgraph=True)
    for batch in (3, 0, 2):
        rows = ROWS.expand(batch, -1, -1, -1)
        torch.testing.assert_close(compiled(rows), attend(rows, profile(rows)))


def test_where_no_key_may_be_seen_the_result_is_zero() -> None:
    hidden = torch.zeros(1, 60, dtype=torch.bool)
    plan = profile(key_mask=hidden)
    assert plan.shape == (1, 2, 2)
    for kinds in (plan, plan_of((2, 0), (1, 1))):
        assert not attend(plan=kinds, key_mask=hidden).any()


def test_any_number_is_a_scale_and_any_count_a_number_of_rows() -> None:
    uniform = ROWS.mean(2, keepdim=True).expand_as(ROWS)
    torch.testing.assert_close(attend(plan=plan_of((2, 0), (2, 0)), scale=0), uniform)
    torch.testing.assert_close(attend(scale=numpy.float64(0.25)), attend(scale=0.25))
    assert torch.equal(profile(sampled_rows=2**70), profile(sampled_rows=60))
    assert torch.equal(profile(density=1)[..., 1], torch.full((1, 2), LAYOUT.full_half_width, dtype=torch.int32))


def test_tensors_without_data_give_shapes() -> None:
    rows, plan = ROWS.to("meta"), PLAN.to("meta")
    found = profile(rows)
    assert (found.device.type, found.shape, found.dtype) == ("meta", (1, 2, 2), torch.int32)
    out, real = attend(rows, plan), attend()
    assert (out.device.type, out.shape, out.stride(), out.dtype) == ("meta", real.shape, real.stride(), real.dtype)
    mode = FakeTensorMode()
    rows, plan = mode.from_tensor(ROWS), mode.from_tensor(PLAN)
    assert profile(rows).shape == (1, 2, 2)
    assert (attend(rows, plan).shape, attend(rows, plan).stride()) == (real.shape, real.stride())


def test_parameters_subclasses_and_inference_tensors_are_tensors() -> None:
    expected = attend()
    with torch.no_grad():
        out = attend(nn.Parameter(ROWS))
    assert torch.equal(out, expected)
    assert not out.requires_grad
    rows = ROWS.as_subclass(Subclass)
    assert torch.equal(profile(rows).as_subclass(Tensor), PLAN)
    assert torch.equal(attend(rows).as_subclass(Tensor), expected)
    with torch.inference_mode():
        assert torch.equal(attend(ROWS.clone(), profile(ROWS.clone())), expected)
