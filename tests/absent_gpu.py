"""Emulates an H200: Inductor generates its code for the GPU, and the code runs on tensors without data.

Fake tensors claim the device, a stand-in answers Inductor's queries, and kernels are recorded instead of launched.
All else is as on a GPU: Dynamo, the backend, the passes, Inductor's lowering, scheduling and code, its guards on sizes
and strides, what is allocated and freed, and whether the whole may become a CUDA graph.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.utils._triton
import triton
from torch import Tensor
from torch._dynamo import device_interface
from torch._inductor import async_compile, compile_fx, graph
from torch._inductor import config as inductor_config
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton.backends.compiler import GPUTarget

from noted_kernels import Kernel, Machine, load
from svg_compile import passes
from svg_compile.kernels.triton import configs as triton_configs
from svg_compile.runtime import sparse_variant

# CUDA's properties of an H200, as far as Inductor queries them.
H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=150_000_000_000,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block_optin=232448,
    gcnArchName="",
)
# Benchmarks of padded products, and constants that are folded by running operators, need the device. Buffers keep
# their own memory, so that writes to each are known.
OPTIONS: dict[str, Any] = {
    "shape_padding": False,
    "joint_graph_constant_folding": False,
    "fx_graph_cache": False,
    "compile_threads": 1,
    "allow_buffer_reuse": False,
    "inplace_buffers": False,
}


class Interface(device_interface.CudaInterface):
    """The device, as Dynamo and Inductor query it."""

    class Worker(device_interface.CudaInterface.Worker):
        current_device = staticmethod(lambda: 0)
        get_device_properties = staticmethod(lambda device=None: H200)

    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    is_bf16_supported = staticmethod(lambda including_emulation=False: True)
    is_triton_capable = staticmethod(lambda device=None: True)
    raise_if_triton_unavailable = staticmethod(lambda device=None: None)
    get_compute_capability = staticmethod(lambda device=None: 90)
    get_device_properties = staticmethod(lambda device=None: H200)
    get_raw_stream = staticmethod(lambda index: 0)
    synchronize = staticmethod(lambda device=None: None)


class Driver:
    """Triton's driver, as far as PyTorch needs it to analyse a kernel."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """SDPA as CUDA chooses it: FlashAttention, with a mask the memory-efficient one. Without CUDA it would be maths."""
    if attn_mask is None:
        call = torch.ops.aten._scaled_dot_product_flash_attention.default
        return call(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask.dtype is torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, float("-inf")).to(query.dtype)
    bias = attn_mask.expand(*query.shape[:3], key.shape[2])
    call = torch.ops.aten._scaled_dot_product_efficient_attention.default
    return call(query, key, value, bias, False, dropout_p, is_causal, scale=scale)[0]


@contextmanager
def _fused_attention() -> Iterator[None]:
    operator, key = torch.ops.aten.scaled_dot_product_attention.default, torch._C.DispatchKey.CompositeImplicitAutograd
    with mock.patch.dict(operator.py_kernels, {key: fused_attention}):
        operator._dispatch_cache.clear()
        try:
            yield
        finally:
            operator._dispatch_cache.clear()


@contextmanager
def device_guard() -> Iterator[None]:
    """PyTorch built without CUDA cannot index a tensor that claims the device: it lacks a guard that sets the device.

    The guard of tensors without data does nothing, and takes its place.
    """
    cuda, meta, kinds = 1, 14, 21
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * kinds).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[cuda]
    if before is None:
        guards[cuda] = guards[meta]
    try:
        yield
    finally:
        guards[cuda] = before


@contextmanager
def absent_gpu(**options: Any) -> Iterator[Machine]:
    """A context in which Inductor sees the GPU, all its generated code is recorded, and tensors are fake."""
    machine = Machine(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True))

    def compiled(lowering: Any, code: Any) -> SimpleNamespace:
        return load(machine, code.value, {**lowering.constants})

    def kernel(self: Any, name: str, source: str, **more: Any) -> Kernel:
        return Kernel(machine, name, source)

    def cudagraphify(model: Callable[..., Any], **more: Any) -> Callable[..., Any]:
        machine.cuda_graphs += 1
        return model

    real_expose_plans = passes.expose_plans

    def expose_plans(*arguments: Any) -> None:
        # It makes examples of the graph's new inputs on the device.
        with machine.mode:
            real_expose_plans(*arguments)

    device_interface.get_registered_device_interfaces()
    with ExitStack() as stack:
        patch = lambda *what: stack.enter_context(mock.patch.object(*what))  # noqa: E731
        stack.enter_context(device_guard())
        stack.enter_context(_fused_attention())
        stack.enter_context(mock.patch.dict(device_interface.device_interfaces, {"cuda": Interface}))
        stack.enter_context(inductor_config.patch({**OPTIONS, **options}))
        stack.enter_context(torch._functorch.config.patch(enable_autograd_cache=False))
        patch(triton.runtime.driver, "_active", Driver())
        patch(triton_configs, "architecture", lambda device: "sm_90")
        patch(torch.cuda, "get_device_properties", lambda device=None: H200)
        patch(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        patch(torch.cuda, "current_device", lambda: 0)
        patch(torch.cuda, "_DeviceGuard", lambda index: nullcontext())
        patch(torch.cuda, "set_device", lambda index: None)
        patch(passes, "expose_plans", expose_plans)
        patch(graph.GraphLowering, "_compile_to_module_lines", compiled)
        patch(async_compile.AsyncCompile, "triton", kernel)
        # Numbers that dynamic=True makes inputs may be computed on the CPU, where fake tensors have no memory.
        patch(async_compile.AsyncCompile, "cpp_pybinding", lambda *given, **more: lambda *arguments: None)
        patch(async_compile.AsyncCompile, "wait", lambda self, scope: None)
        patch(compile_fx, "cudagraphify", cudagraphify)
        forget_the_device()
        try:
            yield machine
        finally:
            forget_the_device()


def forget_the_device() -> None:
    """Clear caches of answers about the device: those from before, and afterwards those about the emulated one."""
    torch._dynamo.reset()
    sparse_variant._when.cache_clear()
    DeviceProperties.create.cache_clear()
    for function in vars(torch.utils._triton).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
