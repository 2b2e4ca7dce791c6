"""The bare clone of a model whose weights torch.distributed spreads over processes, in a group of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from svg_compile._compat.spread import class_of, is_gathered, is_spread
from svg_compile.errors import WrappedForward
from svg_compile.inspection.bare_clone import bare_clone
from svg_compile.regional.wrappers import hides_grid

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Model(nn.Module):
    """It counts how often it is made: made anew in its released size, a clone would fill the memory."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def same(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor


def test_the_clone_of_a_sharded_model_is_of_the_models_class_and_holds_whole_weights() -> None:
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(Model())
    before = Model.made
    clone = bare_clone(model, same)
    assert Model.made == before
    assert type(clone) is class_of(model) is Model
    assert is_gathered(model)
    assert hides_grid(model)
    assert not is_gathered(clone)
    assert not hides_grid(clone)
    assert not clone._forward_pre_hooks
    assert is_spread(model.first.weight)
    for name, weight in clone.named_parameters():
        assert type(weight) is nn.Parameter
        assert weight.device.type == "meta"
        assert weight.shape == model.get_parameter(name).shape


def test_the_clone_of_a_tensor_parallel_model_holds_the_parts_of_this_process() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model = Model()
    mesh = init_device_mesh("cpu", (1,))
    model.first.weight = nn.Parameter(distribute_tensor(model.first.weight, mesh, [Shard(0)]))
    clone = bare_clone(model, same)
    assert not is_spread(clone.first.weight)
    assert clone.first.weight.shape == model.first.weight.to_local().shape
    assert clone.second.weight is model.second.weight


def test_weights_that_are_gathered_and_used_in_parts_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "parts"))
    model = Model()
    model.first.weight = nn.Parameter(distribute_tensor(model.first.weight, mesh["parts"], [Shard(0)]))
    fully_shard(model, mesh=mesh["data"])
    with pytest.raises(WrappedForward, match="by fully_shard and by tensor parallelism at once, in first"):
        bare_clone(model, same)
