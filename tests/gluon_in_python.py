"""Runs the source of a warp-specialised Gluon kernel in Python: partitions as threads, on CPU tensors.

Gluon has no interpreter. This is the part that kernels/hopper/kernel.py needs: the kernel's own functions, with other
meanings for `gl`, `hopper`, `mbarrier` and the copy engine. It checks which elements are read and written, in which
order, under which barriers; it knows nothing of layouts, registers and fences.

Asynchronous work has no moment at which it happens, so there are two extremes. `late_products`: copies land at once,
and products read their operands when somebody waits for them, so that a slot given back too early has new contents by
then. Otherwise products read at once and copies land late, so that a tile used before it is ready is still NaN.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

PATIENCE = 20.0


class Scalar(int):
    """A whole number that was loaded from memory."""

    def to(self, _: Any) -> Scalar:
        return self

    def __floordiv__(self, other: int) -> Scalar:
        return Scalar(int(self) // other)

    def __mod__(self, other: int) -> Scalar:
        return Scalar(int(self) % other)


@dataclass
class Pointer:
    """Elements of a storage, at offsets that are one number or a tensor of them."""

    storage: Tensor
    offset: Any
    dtype: Any

    @staticmethod
    def of(tensor: Tensor) -> Pointer:
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        return Pointer(
            tensor.as_strided((size,), (1,), 0), tensor.storage_offset(), SimpleNamespace(element_ty=tensor.dtype)
        )

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.storage, self.offset + more, self.dtype)


@dataclass
class Memory:
    """Shared memory: a view of a tensor."""

    data: Tensor

    @property
    def shape(self) -> Sequence[int]:
        return self.data.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def index(self, index: int) -> Any:
        return Memory(self.data[index])

    def permute(self, order: Sequence[int]) -> Memory:
        return Memory(self.data.permute(*order))

    def reshape(self, shape: Sequence[int]) -> Memory:
        return Memory(self.data.view(*shape))

    def store(self, value: Tensor) -> None:
        self.data.copy_(value)

    def load(self, _: Any) -> Tensor:
        return self.data.clone()


@dataclass
class Barrier:
    """An mbarrier: a round is over when all have arrived and all expected bytes are there."""

    count: int = 0
    rounds: int = 0
    missing: int = 0
    bytes: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def change(self, arrivals: int, more_bytes: int) -> None:
        with self.changed:
            self.missing -= arrivals
            self.bytes += more_bytes
            assert self.missing >= 0, "more arrivals than the barrier counts"
            if self.missing == 0 and self.bytes == 0:
                self.rounds += 1
                self.missing = self.count
                self.changed.notify_all()

    def wait(self, parity: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.rounds & 1 != parity, PATIENCE), "deadlock"


@dataclass
class Barriers:
    items: list[Barrier]

    def index(self, index: int) -> Barrier:
        return self.items[index]


@dataclass
class Product:
    """A matrix product under way."""

    left: Any
    right: Memory
    start: Any
    value: Tensor | None = None

    def finish(self) -> None:
        left = self.left.data if isinstance(self.left, Memory) else self.left
        product = left.float() @ self.right.data.float()
        self.value = product if self.start is None else self.start + product


class Machine:
    """The meanings of the kernel's names, for one program after the other."""

    def __init__(self, late_products: bool) -> None:
        self.late_products = late_products
        self.program = 0
        self.queue = threading.local()
        self.gl = SimpleNamespace(
            int32=torch.int32, int64=torch.int64, float32=torch.float32,
            program_id=lambda _: self.program, cdiv=lambda a, b: (a + b - 1) // b, where=where,
            minimum=lambda a, b: where(a < b, a, b), maximum=lambda a, b: where(a > b, a, b),
            arange=lambda start, end, _: torch.arange(start, end, dtype=torch.int32),
            zeros=lambda shape, dtype, _: torch.zeros(shape, dtype=dtype),
            full=lambda shape, value, dtype, _: torch.full(shape, value, dtype=dtype),
            max=lambda value, axis: value.amax(axis), sum=lambda value, axis: value.sum(axis), exp2=torch.exp2,
            convert_layout=lambda value, _, assert_trivial: value, load=load, store=store,
            static_range=range, static_assert=lambda _: None,
            allocate_shared_memory=self.allocate, warp_specialize=self.warp_specialize,
            **dict.fromkeys(
                ("SliceLayout", "BlockedLayout", "DotOperandLayout", "NVMMADistributedLayout", "NVMMASharedLayout",
                 "SwizzledSharedLayout"), lambda *_, **__: None),
        )  # fmt: skip
        names = {
            "gl": self.gl,
            # Of functions that Triton kernels call too.
            "tl": self.gl,
            "hopper": SimpleNamespace(
                warpgroup_mma=self.product, warpgroup_mma_wait=self.finish, fence_async_shared=lambda: None
            ),
            "mbarrier": SimpleNamespace(
                MBarrierLayout=lambda: None, init=self.init, wait=self.wait,
                expect=lambda bar, size: bar.change(1, size), arrive=lambda bar: bar.change(1, 0),
            ),
            "copy_box": self.copy,
        }  # fmt: skip
        self.names = names
        self.made: dict[Any, Any] = {}

    def in_python(self, kernel: Any) -> Callable[..., Any]:
        """The kernel's function, and those that it calls, with this machine's names."""
        if kernel not in self.made:
            scope = dict(kernel.fn.__globals__)
            self.made[kernel] = FunctionType(kernel.fn.__code__, scope)
            scope |= {name: self.in_python(item) for name, item in scope.items() if isinstance(item, JITFunction)}
            scope |= self.names
        return self.made[kernel]

    def launch(self, kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
        function = self.in_python(kernel)
        for self.program in range(programs):
            function(*(Pointer.of(arg) if isinstance(arg, Tensor) else arg for arg in args), **constants)

    def allocate(self, dtype: torch.dtype, shape: Sequence[int], _: Any) -> Any:
        if dtype == torch.int64:
            return Barriers([Barrier() for _ in range(shape[0])])
        return Memory(torch.full(shape, float("nan") if dtype.is_floating_point else -(2**31), dtype=dtype))

    def init(self, barrier: Barrier, count: int) -> None:
        barrier.count = barrier.missing = count

    def wait(self, barrier: Barrier, parity: int, pred: bool = True) -> None:
        if pred:
            barrier.wait(parity)

    def copy(self, source: Any, place: Sequence[int], ready: Barrier, target: Memory, pred: bool) -> None:
        """Fill `target` with the box at `place`; zeros stand for what lies outside. Places inside are not negative."""
        if not pred:
            return
        whole = torch.as_strided(source.base, source.shape, source.strides, source.base.storage_offset())
        inside = tuple(slice(min(at, size), min(at + n, size)) for at, n, size in zip(place, target.shape, whole.shape))
        assert min(place) >= 0
        assert list(target.shape) == list(source.block_shape)

        def land() -> None:
            box = whole[inside]
            target.data.zero_()
            target.data[tuple(slice(0, size) for size in box.shape)] = box
            ready.change(0, -target.data.numel() * target.data.element_size())

        if self.late_products:
            land()
        else:
            threading.Timer(0.0005, land).start()

    def product(self, left: Any, right: Memory, start: Any, use_acc: bool = True, is_async: bool = False) -> Product:
        assert is_async
        product = Product(left, right, start if use_acc else None)
        if not self.late_products:
            product.finish()
        if not hasattr(self.queue, "under_way"):
            self.queue.under_way = []
        self.queue.under_way.append(product)
        return product

    def finish(self, pending: int, deps: Sequence[Any]) -> Any:
        """All but the last `pending` products are finished."""
        under_way = self.queue.under_way
        if self.late_products:
            # A partition that could release a slot too early has had time to do so.
            time.sleep(0.0005)
        while len(under_way) > pending:
            product = under_way.pop(0)
            if product.value is None:
                product.finish()
        values = tuple(dep.value if isinstance(dep, Product) else dep for dep in deps)
        assert all(value is not None for value in values), "a result is used before it is there"
        return values[0] if len(values) == 1 else values

    def warp_specialize(self, partitions: Sequence[Any], warps: Sequence[int], registers: Sequence[int]) -> None:
        failed: list[BaseException] = []

        def run(function: Any, args: Sequence[Any]) -> None:
            try:
                function(*args)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=run, args=partition) for partition in partitions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]


def where(condition: Any, yes: Any, no: Any) -> Any:
    if any(isinstance(item, Tensor) for item in (condition, yes, no)):
        return torch.where(*(torch.as_tensor(item) for item in (condition, yes, no)))
    return yes if condition else no


def load(pointer: Pointer, mask: Any = None, other: float = 0.0) -> Any:
    if not isinstance(pointer.offset, Tensor):
        return Scalar(pointer.storage[pointer.offset])
    rows = torch.full(pointer.offset.shape, other, dtype=pointer.storage.dtype)
    mask = mask.expand(rows.shape)
    rows[mask] = pointer.storage[pointer.offset[mask]]
    return rows


def store(pointer: Pointer, value: Tensor, mask: Tensor) -> None:
    mask = mask.expand(value.shape)
    pointer.storage[pointer.offset[mask]] = value[mask]
