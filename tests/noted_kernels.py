"""Kernels that are recorded instead of launched, with the memory that they received."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.utils._triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass(frozen=True)
class Launch:
    """A kernel's launch: its name, its source, and its arguments by the names of its parameters."""

    name: str
    source: str
    arguments: dict[str, Any]

    @property
    def ours(self) -> bool:
        return self.name.endswith("_fwd_kernel")

    @property
    def copies(self) -> list[tuple[str, str]]:
        """(from, to): the pointers between which the kernel moves values as they are, but for their dtype."""
        body = self.source.split("def ", 1)[-1]
        loads = dict(re.findall(r"(tmp\d+) = tl\.load\((\w+) ", body))
        stores = re.findall(r"tl\.store\((\w+) .*?, (tmp\d+)(?:, \w+)*\)", body)
        return [(loads[value], target) for target, value in stores if value in loads]

    @property
    def stored(self) -> dict[str, list[str]]:
        """Each value that is stored, and the pointers to which it is."""
        found: dict[str, list[str]] = {}
        for target, value in re.findall(
            r"tl\.store\((\w+) .*?, (tmp\d+)(?:, \w+)*\)", self.source.split("def ", 1)[-1]
        ):
            found.setdefault(value, []).append(target)
        return found


@dataclass
class Machine:
    """The code compiled for the absent GPU, and its runs."""

    mode: FakeTensorMode
    code: list[str] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    cuda_graphs: int = 0
    peak_bytes: int = 0
    _memory: list[tuple[StorageWeakRef, int]] = field(default_factory=list)

    def tensor(self, like: Any) -> Any:
        """A tensor without data on the device, of the shape and strides of one; float32 becomes bfloat16."""
        if isinstance(like, (tuple, list)):
            return type(like)(self.tensor(part) for part in like)
        if not isinstance(like, Tensor):
            return like
        dtype = torch.bfloat16 if like.dtype is torch.float32 else like.dtype
        with self.mode:
            return torch.empty_strided(like.shape, like.stride(), dtype=dtype, device="cuda")

    def move(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model with weights and buffers that are on the device, without data; in place."""
        for module in model.modules():
            for name, weight in list(module._parameters.items()):
                if weight is not None:
                    module._parameters[name] = torch.nn.Parameter(self.tensor(weight), requires_grad=False)
            for name, buffer in list(module._buffers.items()):
                module._buffers[name] = self.tensor(buffer)
        return model

    def allocate(self, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.empty_strided(size, stride, dtype=dtype, device="cuda")
        self.hold(made)
        return made

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor that the code has made, and drop those that are gone."""
        self._memory = [(storage, size) for storage, size in self._memory if not storage.expired()]
        storage = tensor.untyped_storage()
        self._memory.append((StorageWeakRef(storage), storage.nbytes()))
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._memory))


class Kernel:
    """In the place of a compiled kernel."""

    def __init__(self, machine: Machine, name: str, source: str) -> None:
        self.machine, self.name, self.source = machine, name, source
        functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
        # Inductor calls its own so; the source of others holds the functions that they call, too.
        (function,) = (node for node in functions if node.name in (name, "triton_"))
        constants = {p.arg for p in function.args.args if p.annotation and "constexpr" in ast.unparse(p.annotation)}
        self.parameters = [parameter.arg for parameter in function.args.args if parameter.arg not in constants]

    def run(self, *arguments: Any, stream: int) -> None:
        # What follows the parameters is the grid.
        found = dict(zip(self.parameters, arguments, strict=False))
        self.machine.launches.append(Launch(self.name, self.source, found))


def load(machine: Machine, code: str, constants: dict[str, Any]) -> SimpleNamespace:
    """The generated module, with kernels that are noted and memory that is none."""
    machine.code.append(code)
    names: dict[str, Any] = {"__name__": "generated"}
    exec(
        compile(code.replace("from torch._C import _cuda_getCurrentRawStream as get_raw_stream", ""), "g", "exec"),
        names,
    )

    def reinterpret(tensor: Tensor, size: Any, stride: Any, offset: int = 0) -> Tensor:
        return torch.as_strided(tensor, size, stride, tensor.storage_offset() + offset)

    names.update(
        constants,
        empty_strided_cuda=machine.allocate,
        # Numbers that dynamic=True makes inputs of a graph wait there to be copied.
        empty_strided_cpu_pinned=lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype),
        reinterpret_tensor=reinterpret,
        get_raw_stream=lambda index: 0,
        copy_if_misaligned=lambda tensor: tensor,
    )

    def call(inputs: list[Any]) -> Any:
        with machine.mode:
            return names["call"](inputs)

    return SimpleNamespace(
        call=call, __file__=__file__, recursively_apply_fns=names["recursively_apply_fns"], runner=names["runner"]
    )
