"""Inductor's GPU code for a rewritten model, on a machine without a GPU: all of it runs on tensors without data.

The code around the kernels copies, fills and computes nothing twice, and the kernels receive the actual strides of
their tensors. `absent_gpu` emulates the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import models
import svg_compile
from absent_gpu import absent_gpu
from noted_kernels import Launch, Machine
from svg_compile import VideoLayout
from svg_compile.kernels import ops

OPTIONS: dict[str, Any] = {
    "min_tokens": 0,
    "dense_layers": 0,
    "dense_steps": 0,
    "block": 16,
    "density": 0.3,
    "on_error": "raise",
}
# The strides that a kernel is given, by the tensor that they are of; every other tensor must be contiguous.
STRIDES = {
    "sparse_attention_fwd_kernel": {
        **{name: [f"stride_{name[0]}{axis}" for axis in "bhnd"] for name in ("query", "key", "value", "out")},
        "plan": ["stride_ph", "stride_pi"],
        "key_mask": ["stride_mb", "stride_mn"],
    },
    "profile_rows_fwd_kernel": {
        **{name: [f"stride_{name[0]}{axis}" for axis in "bhnd"] for name in ("query", "key", "value")},
        "key_mask": ["stride_mb", "stride_mn"],
    },
    "missing_rows_fwd_kernel": {
        **{name: [f"stride_{name[0]}{axis}" for axis in "bhnd"] for name in ("query", "key")},
        "key_mask": ["stride_mb", "stride_mn"],
    },
    "hidden_range_fwd_kernel": {"key_mask": ["stride_batch", "stride_token"]},
    "repair_fwd_kernel": {"out": [f"stride_{axis}" for axis in "bhnd"]},
    "exact_rows_fwd_kernel": {"out": [f"stride_o{axis}" for axis in "bhnd"]},
}
OPERANDS = ("query", "key", "value")


class FusedProjections(torch.nn.Module):
    """Self-attention over video tokens whose q, k and v are slices of one projection, as they come out of it."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda rows: rows) -> None:
        super().__init__()
        self.between = between
        self.norm = torch.nn.LayerNorm(64)
        self.to_qkv, self.to_out = torch.nn.Linear(64, 3 * 64), torch.nn.Linear(64, 64)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, C, F, H, W] -> [B, F, H, W, C]."""
        batch, channels, frames, height, width = latents.shape
        rows = latents.flatten(2).transpose(1, 2)
        fused = self.between(self.to_qkv(self.norm(rows))).unflatten(-1, (3, 2, 32))
        query, key, value = (part.transpose(1, 2) for part in fused.unbind(2))
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        out = self.to_out(out.transpose(1, 2).flatten(2))
        return (out + rows).reshape(batch, frames, height, width, channels)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def assert_strides(launch: Launch) -> None:
    """The strides equal those of the tensors, except along axes of one element, where they do not matter."""
    given = STRIDES.get(launch.name, {})
    for name, value in launch.arguments.items():
        if not isinstance(value, Tensor):
            continue
        if name == "key_mask" and value.dtype is not torch.bool:
            # Another tensor stands in for the mask that there is not.
            continue
        if name not in given:
            assert value.is_contiguous(), (launch.name, name, value.stride())
            continue
        numbers = [launch.arguments[stride] for stride in given[name]]
        assert len(numbers) == value.dim(), (launch.name, name)
        for size, real, number in zip(value.shape, value.stride(), numbers, strict=True):
            assert size == 1 or real == number, (launch.name, name, value.stride(), numbers)


def copies_between(launches: list[Launch]) -> list[tuple[Tensor, Tensor]]:
    """(from, to) of every plain copy in Inductor's own kernels."""
    return [
        (launch.arguments[source], launch.arguments[target])
        for launch in launches
        if not launch.ours
        for source, target in launch.copies
    ]


# What reads the operands for a profile with half-widths by need: the rows' outputs, those of the plan, and what each
# rung misses.
PROFILE = {"profile_rows_fwd_kernel", "missing_rows_fwd_kernel"}


def assert_nothing_round_the_kernels(
    machine: Machine, attentions: int, *, joined: bool = False, numbers: bool = False
) -> None:
    """joined: True if the model concatenates operands or results with other tensors, which copies them."""
    ends = [at for at, launch in enumerate(machine.launches) if launch.name == "sparse_attention_fwd_kernel"]
    attends = [machine.launches[end] for end in ends]
    assert len(attends) == attentions
    # The kernels of each attention's profile stand before it, behind those of the attention before.
    profiles = [
        [launch for launch in machine.launches[start:end] if launch.name in PROFILE]
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    assert all({launch.name for launch in profile} == PROFILE for profile in profiles)
    for launch in machine.launches:
        if launch.ours:
            assert_strides(launch)
    seen: set[int] = set()
    for profile, attend in zip(profiles, attends, strict=True):
        size = attend.arguments["query"].numel()
        for name in (*OPERANDS, *(["key_mask"] if attend.arguments["key_mask"].dtype is torch.bool else [])):
            for read in profile:
                given = read.arguments.get(name)
                assert given is None or storage(given) == storage(attend.arguments[name]), f"{name} is stored twice"
        out = storage(attend.arguments["out"])
        assert out not in seen
        seen.add(out)
        # Nothing fills it, or writes to it before attention.
        writers = [launch for launch in machine.launches if out in written(launch)]
        assert writers[0] is attend
        assert all(launch.ours for launch in writers)
        moved = [(a, b) for a, b in copies_between(machine.launches) if a.numel() >= size or b.numel() >= size]
        around = {storage(attend.arguments[name]) for name in (*OPERANDS, "out")}
        touched = [(a.shape, b.shape) for a, b in moved if {storage(a), storage(b)} & around]
        assert joined or not touched, touched
        # Nothing like it is stored to two buffers, of which the second reader could have had the first.
        for launch in machine.launches:
            for names in launch.stored.values():
                rows = [launch.arguments[name] for name in set(names)]
                alike = [t for t in rows if t.numel() >= size and t.dtype is attend.arguments["query"].dtype]
                assert len(alike) < 2, launch.name
    for code in machine.code:
        assert "aten.clone.default(" not in code
        # With dynamic=True a model's numbers are inputs, which a CUDA graph wants on the device.
        assert numbers or ".copy_(" not in code


def written(launch: Launch) -> set[int]:
    """Storages to which a kernel may write."""
    if launch.ours:
        names = {"out", "order", "hidden", "plan", "errors", "partial", "sums", "rows", "inverse"}
        names -= {"plan", "order", "hidden"} if launch.name == "sparse_attention_fwd_kernel" else set()
    else:
        names = {name for name in launch.arguments if name.startswith(("out_ptr", "in_out_ptr"))}
    return {storage(launch.arguments[name]) for name in names if isinstance(launch.arguments.get(name), Tensor)}


def compiled(machine: Machine, model: torch.nn.Module, inputs: dict[str, Any], **more: Any) -> Callable[[], Any]:
    """Compile a model for the absent GPU, at its first call."""
    options = {**OPTIONS, **more.pop("options", {})}
    runs = torch.compile(machine.move(model), backend="svg", fullgraph=True, options=options, **more)
    given = {name: machine.tensor(value) for name, value in inputs.items()}

    def run() -> Any:
        with torch.no_grad(), machine.mode:
            return runs(**given)

    return run


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("repair", [True, False])
def test_slices_of_a_projection_are_made_dense_once(mode: str | None, repair: bool) -> None:
    with absent_gpu() as machine:
        latents = torch.empty(2, 64, 5, 6, 7)
        options = {"repair": repair} if mode is None else {"repair": repair, "mode": mode}
        out = compiled(machine, FusedProjections(), {"latents": latents}, options=options)()
        assert out.shape == (2, 5, 6, 7, 64)
        assert len(machine.code) == 1
        assert_nothing_round_the_kernels(machine, 1, joined=True)
        attend = next(launch for launch in machine.launches if launch.name == "sparse_attention_fwd_kernel")
        into = {storage(attend.arguments[name]) for name in OPERANDS}
        assert len([1 for _, target in copies_between(machine.launches) if storage(target) in into]) == 3
        assert all(attend.arguments[name].transpose(1, 2).is_contiguous() for name in OPERANDS)
        assert machine.cuda_graphs == (mode is not None)


def test_slices_that_are_still_to_be_computed_are_computed_as_they_are_read() -> None:
    with absent_gpu() as machine:
        compiled(machine, FusedProjections(lambda rows: rows * 2.0), {"latents": torch.empty(2, 64, 5, 6, 7)})()
        assert_nothing_round_the_kernels(machine, 1)
        attend = next(launch for launch in machine.launches if launch.name == "sparse_attention_fwd_kernel")
        query = attend.arguments["query"]
        assert query.untyped_storage().nbytes() == query.numel() * query.element_size()


def test_repaired_attention_stores_its_operands_once() -> None:
    layout = VideoLayout(5, 6, 7, block=16)

    def attend(rows: Tensor) -> Tensor:
        query, key, value = (rows.sin().unflatten(-1, (3, 2, 32)) * 2.0).transpose(1, 3).unbind(2)
        return svg_compile.repaired_attention(query, key, value, layout)

    with absent_gpu() as machine:
        rows = machine.tensor(torch.empty(2, 210, 192))
        with torch.no_grad(), machine.mode:
            torch.compile(attend, fullgraph=True)(rows)
        assert_nothing_round_the_kernels(machine, 1)


def test_plans_that_are_kept_stay_on_the_device() -> None:
    with absent_gpu() as machine:
        options = {"profile_every": 3, "mode": "reduce-overhead"}
        latents = torch.empty(1, 64, 5, 6, 7)
        compiled(machine, FusedProjections(lambda rows: rows.sin()), {"latents": latents}, options=options)()
        assert_nothing_round_the_kernels(machine, 1)
        assert machine.cuda_graphs == 1
        profile = next(launch for launch in machine.launches if launch.name == "profile_rows_fwd_kernel")
        assert profile.arguments["when"].device.type == "cuda"


@pytest.mark.slow
def test_sizes_of_another_call_are_those_that_the_kernels_get() -> None:
    with absent_gpu() as machine:
        model = FusedProjections(lambda rows: rows.sin())
        runs = torch.compile(machine.move(model), backend="svg", dynamic=True, fullgraph=True, options=OPTIONS)
        for sizes in ((5, 6, 7), (4, 9, 8)):
            machine.launches.clear()
            with torch.no_grad(), machine.mode:
                runs(machine.tensor(torch.empty(2, 64, *sizes)))
            assert len(machine.code) == 1
            assert_nothing_round_the_kernels(machine, 1)
            attend = next(launch for launch in machine.launches if launch.name == "sparse_attention_fwd_kernel")
            frames, height, width = sizes
            assert (attend.arguments["frames"], attend.arguments["area"]) == (frames, height * width)
            assert attend.arguments["query"].shape[2] == frames * height * width


@pytest.mark.parametrize("dynamic", [False, True])
def test_operands_with_gaps_and_padded_rows_are_read_as_they_lie(dynamic: bool) -> None:
    """The ops by themselves, as a program may call them: without the rewrite, which settles what they read."""

    def attend(rows: Tensor, weight: Tensor) -> Tensor:
        grid = [5, 6, 7, 0, 0, 16]
        # Strides that Inductor would like to pad, a product that it may lay out as it likes, and a slice of wider rows.
        wide = (rows * 2.0).unflatten(-1, (3, 2, 40))
        query = (rows @ weight).unflatten(-1, (2, 40)).transpose(1, 2)
        key, value = wide[:, :, 1].transpose(1, 2), wide[:, :, 2].transpose(1, 2)[..., :32]
        options = ([0.4], 32, True, None, "auto", ops.ABI, None, None, None)
        plan, *_ = torch.ops.svg.profile(query, key, value, None, grid, *options)
        return torch.ops.svg.attention(query.sin(), key, value, plan, None, grid, None, "auto", ops.ABI)

    with absent_gpu() as machine:
        rows, weight = (machine.tensor(torch.empty(*sizes)) for sizes in ((3, 210, 240), (240, 80)))
        with torch.no_grad(), machine.mode:
            out = torch.compile(attend, dynamic=dynamic, fullgraph=True)(rows, weight)
        assert out.shape == (3, 2, 210, 32)
        ours = [launch for launch in machine.launches if launch.ours]
        assert {launch.name for launch in ours} > {"sparse_attention_fwd_kernel", "profile_rows_fwd_kernel"}
        for launch in ours:
            assert_strides(launch)
        attend_launch = next(launch for launch in ours if launch.name == "sparse_attention_fwd_kernel")
        assert not attend_launch.arguments["value"].transpose(1, 2).is_contiguous()


# HunyuanVideo joins text and video, and its single-stream block joins attention's result with the MLP's.
MODELS = {"wan": False, "hunyuan_video": True, "cogvideox_5b": True, "ltx_video": False}


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, mode: str | None, dynamic: bool | None) -> None:
    case = models.case(name)
    with absent_gpu() as machine:
        options = {} if mode is None else {"mode": mode}
        out = compiled(machine, case.build(), case.inputs(2, case.grid), dynamic=dynamic, options=options)()
        assert models.output(out).device.type == "cuda"
        assert len(machine.code) == 1
        assert_nothing_round_the_kernels(machine, case.video_sites, joined=MODELS[name], numbers=bool(dynamic))
        # Several where numbers on the CPU stand between.
        assert (machine.cuda_graphs > 0) == (mode is not None)
