"""The bare clone that is traced in a model's place: what it takes over, what it leaves off, and what it refuses."""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svg_compile.errors import WrappedForward
from svg_compile.inspection.bare_clone import bare_clone

OPTIONS: dict[str, Any] = {"min_tokens": 0, "dense_layers": 0, "block": 8, "on_error": "raise"}
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def same(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor


class Processor:
    """As diffusers' attention processors are: an ordinary object with a parallel configuration."""

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner
        self.seen: list[int] = []
        self._parallel_config = "two processes"


SINGLETON = Processor(nn.Identity())


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.first
        self.empty = nn.ModuleList()
        self.register_buffer("table", torch.arange(3))
        self.processor = Processor(self)
        self.shared = SINGLETON
        self.cache: dict[str, Any] = {"layers": [self.first], "pair": (self.second, 3)}
        self.bound = self.first.forward
        self.partial = functools.partial(self.second.forward)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_structure_ties_and_references_are_those_of_the_model() -> None:
    model = Model()
    twin = bare_clone(model, same)
    assert type(twin) is Model
    assert twin is not model
    assert twin.first is twin.again is twin.cache["layers"][0]
    assert twin.first is not model.first
    assert twin.second.weight is twin.first.weight is model.first.weight
    assert isinstance(twin.empty, nn.ModuleList)
    assert twin.empty is not model.empty
    assert twin.cache["pair"] == (twin.second, 3)
    assert twin.processor.owner is twin
    assert twin.bound.__self__ is twin.first
    assert twin.partial.func.__self__ is twin.second
    # What a file holds one of is compared by identity.
    assert twin.shared is SINGLETON


def test_what_is_written_to_the_clone_is_not_written_to_the_model() -> None:
    model = Model()
    twin = bare_clone(model, lambda tensor, dtype: tensor.detach().clone())
    twin.cache["new"] = 1
    twin.cache["layers"].append(2)
    twin.processor.seen.append(3)
    twin.table.add_(1)
    twin.extra = 4
    assert list(model.cache) == ["layers", "pair"]
    assert model.cache["layers"] == [model.first]
    assert model.processor.seen == []
    assert model.table.tolist() == [0, 1, 2]
    assert not hasattr(model, "extra")


def test_parallel_configurations_and_compiled_calls_are_left_off() -> None:
    model = Model()
    model.first.compile(backend="eager")
    model.second = torch.compile(model.second, backend="eager")
    model.forward = torch.compile(model.forward, backend="eager")
    twin = bare_clone(model, same)
    assert twin.processor._parallel_config is None
    assert model.processor._parallel_config == "two processes"
    assert twin.first._compiled_call_impl is None
    assert type(twin.second) is nn.Linear
    assert "forward" not in vars(twin)


def test_hooks_of_a_users_own_stay_and_are_copied() -> None:
    class Doubles:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, module: nn.Module, args: Any) -> Any:
            self.calls += 1
            return (2 * args[0],)

    model, hook, x = Model(), Doubles(), torch.ones(1, 4)
    model.register_forward_pre_hook(hook)
    twin = bare_clone(model, same)
    assert torch.equal(twin(x), model(x))
    assert hook.calls == 1


def unknown(forward: Any, *args: Any) -> Any:
    return forward(*args)


@pytest.mark.parametrize("where", ["the model", "first"])
def test_a_replaced_forward_is_refused_by_name(where: str) -> None:
    model = Model()
    module = model if where == "the model" else model.first
    module.forward = functools.partial(unknown, module.forward)
    with pytest.raises(WrappedForward, match=rf"forward of {where} \(\w+\) was replaced by .*test_bare_clone\.unknown"):
        bare_clone(model, same)
    # Its own forward, put back by whoever took it away, is none.
    module.forward = MethodType(type(module).forward, module)
    assert "forward" not in vars(bare_clone(model, same))


class Chooses(nn.Module):
    """Chooses its forward when it is made, as code that knows several does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0
        self.forward = self.scaled  # type: ignore[method-assign]

    def scaled(self, x: Tensor) -> Tensor:
        return self.scale * x


def keeps_count(self: Any, x: Tensor) -> Tensor:
    """As step caches patch a forward: what it does depends on the calls before."""
    self.calls = getattr(self, "calls", 0) + 1
    return self.scaled(x) if self.calls % 2 else x


def test_a_forward_that_is_a_method_of_the_module_is_bound_to_the_clone() -> None:
    model, x = Chooses(), torch.ones(1, 4)
    twin = bare_clone(model, same)
    twin.scale = 3.0
    assert torch.equal(twin(x), 3 * x)
    assert torch.equal(model(x), 2 * x)
    assert twin.forward.__self__ is twin


def test_a_forward_bound_from_elsewhere_is_refused() -> None:
    model = Chooses()
    before = model.forward

    def around(self: Any, x: Tensor) -> Tensor:
        return before(x)

    for function in (around, keeps_count):
        model.forward = MethodType(function, model)  # type: ignore[method-assign]
        with pytest.raises(WrappedForward, match="was replaced by"):
            bare_clone(model, same)


def test_a_hook_of_diffusers_is_left_off_and_one_that_only_looks_like_it_is_refused() -> None:
    hooks = pytest.importorskip("diffusers.hooks")

    class Shuffles(hooks.ModelHook):
        pass

    model = Model()
    registry = hooks.HookRegistry.check_if_exists_or_initialize(model.first)
    registry.register_hook(hooks.ModelHook(), "harmless")
    twin = bare_clone(model, same)
    assert "forward" not in vars(twin.first)
    assert not hasattr(twin.first, "_diffusers_hook")
    registry.register_hook(Shuffles(), "shuffles")
    with pytest.raises(WrappedForward, match=r"the hook .*test_bare_clone\..*Shuffles around first"):
        bare_clone(model, same)


def test_weights_that_a_hook_casts_have_the_dtype_that_they_are_cast_to() -> None:
    casting = pytest.importorskip("diffusers.hooks").apply_layerwise_casting
    model = Model()
    casting(model, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    asked: dict[tuple[int, ...], Any] = {}

    def note(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        asked[tuple(tensor.shape)] = dtype
        return tensor

    bare_clone(model, note)
    assert model.first.weight.dtype is torch.float8_e4m3fn
    assert asked == {(4, 4): torch.bfloat16, (4,): torch.bfloat16, (3,): None}
