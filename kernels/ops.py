"""The two ops that the rewrite puts into a graph, `svg::profile` and `svg::attention`, and what runs them.

    svg::profile(q, k, v, key_mask, grid, densities, sampled_rows, adaptive, scale, engine, abi,
                 when, previous, share, group, rank, ranks) -> plan, errors, missing
    svg::attention(q, k, v, plan, key_mask, grid, scale, engine, abi) -> out

grid is [frames, height, width, text_len, text_first, block], as `VideoLayout.grid` gives it; sizes may be symbolic.
q, k, v are [B, H, N, D] in any strides; out is [B, H, N, D] over [B, N, H, D] storage, as the models keep it; plan is
int32 [B, H, 2] = (kind, half-width in blocks); key_mask is bool [B, N], True for visible keys; errors are float32
[B, H, 2], the profiled errors of (spatial, temporal) at the uniform half-widths of the density. Without `adaptive` all
heads have these half-widths; with it the heads of a sample share its pairs by need (kernels/widths.py). missing is
float32 [B, H, 2, rungs], the mean square of the mass that each half-width of the ladder leaves out; without `adaptive`
it has no rungs.

Values that change from step to step are tensors. `when`, int32 [2] on the tensors' device, is (index of the current
density, 1 to profile or 0 to keep `previous`); None means (0, 1). `previous` is a plan, int32 [B, H, 2]. Without
`adaptive` only its kinds are read, as half-widths follow from the current density; with it the whole plan is kept, and
a change of the density needs a new profile. Without `previous` every call profiles. Where a plan is kept, errors are
NaN, and missing has no value of this step. `share`, float32 [B], with `adaptive` only, is the mean density of each
sample's heads as a multiple of the current density; None means 1. The writer of `when` must pass a valid index: a GPU
does not check its range.

Where the heads of a layer are spread over processes, `group` is the name of their process group, `rank` this process's
and `ranks` their number: with `adaptive` the heads of all of them share the pairs, and all processes of the group must
call the op (kernels/spread.py). None means that q, k and v hold all heads that share.

Everything that changes a result is an argument, because Inductor's caches hash the graph; `abi` is a hash of the ops'
source files and identifies the implementation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from svg_compile import layout as layout_module
from svg_compile._compat.gpu import triton_op
from svg_compile.errors import LayoutError
from svg_compile.kernels.plan import ProfiledRows, check_plan, kept_plan
from svg_compile.kernels.spread import spread_of
from svg_compile.kernels.storage import empty_output
from svg_compile.kernels.widths import LADDER
from svg_compile.layout import VideoLayout


def source_files() -> list[Path]:
    """Every file that decides what the ops compute: all kernels, the mask and the layout."""
    package = Path(layout_module.__file__).parent
    return sorted([*Path(__file__).parent.rglob("*.py"), package / "mask.py", package / "layout.py"])


def _checksum(files: Sequence[Path]) -> int:
    """A 63-bit hash of the files' contents: an edit or an upgrade makes old entries of Inductor's caches miss."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 1


ABI = _checksum(source_files())
# The ops accept any strides, so Inductor may pass operands in the layout that they have; with the default tag it would
# copy them once for each op.
ANY_STRIDES = (torch.Tag.flexible_layout,)


def engine_for(query: Tensor, engine: str) -> str:
    """The engine that runs on the tensor's device: "cpu", "triton" or "reference"."""
    on_cpu = query.device.type == "cpu"
    if engine == "auto":
        return "cpu" if on_cpu else "triton"
    if engine == "cpu" and not on_cpu:
        raise LayoutError(f'engine "cpu" runs on CPU tensors, got one on {query.device}: use engine "auto".')
    if engine == "triton" and on_cpu:
        raise LayoutError('engine "triton" runs on CUDA and ROCm tensors, got one on the CPU: use engine "auto".')
    return engine


@torch.library.custom_op("svg::attention_host", mutates_args=(), tags=ANY_STRIDES)
def _attention_host(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor,
    key_mask: Optional[Tensor],
    grid: Sequence[int],
    scale: Optional[float],
    engine: str,
    abi: int,
) -> Tensor:
    """`svg::attention` by ATen calls: the CPU engine, or the oracle. Opaque to Inductor."""
    layout = VideoLayout.of(grid)
    # Checked here, not in the public function: here the data can be read in a compiled graph, too.
    if plan.device.type == "cpu":
        check_plan(plan)
    if engine == "reference":
        from svg_compile.kernels import reference

        exact = reference.sparse_attention(query, key, value, plan, layout, key_mask=key_mask, scale=scale)
        return empty_output(query, value).copy_(exact)
    from svg_compile.kernels.cpu.attention import sparse_attention

    return sparse_attention(query, key, value, plan, layout, key_mask=key_mask, scale=scale)


@_attention_host.register_fake
def _(query, key, value, plan, key_mask, *constants):  # type: ignore[no-untyped-def]
    return empty_output(query, value)


@torch.library.custom_op("svg::profile_host", mutates_args=(), tags=ANY_STRIDES)
def _profile_host(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Optional[Tensor],
    grid: Sequence[int],
    densities: Sequence[float],
    sampled_rows: int,
    adaptive: bool,
    scale: Optional[float],
    engine: str,
    abi: int,
    when: Optional[Tensor],
    previous: Optional[Tensor],
    share: Optional[Tensor],
    group: Optional[str] = None,
    rank: int = 0,
    ranks: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """`svg::profile` by ATen calls: the CPU engine, or the oracle. Opaque to Inductor."""
    layout = VideoLayout.of(grid)
    index, anew = (0, 1) if when is None else when.tolist()
    if not 0 <= index < len(densities):
        raise LayoutError(f"`when` asks for density {index} of {len(densities)}.")
    density = densities[index]
    if 0 in query.shape[:2]:
        # No samples or no heads.
        return _empty_plan(query, adaptive)
    if previous is not None and not anew:
        _, errors, missing = _empty_plan(query, adaptive)
        nothing = errors.fill_(float("nan")), missing.fill_(float("nan"))
        return kept_plan(previous, layout, density, adaptive), *nothing
    options: dict[str, Any] = dict(density=density, sampled_rows=sampled_rows, adaptive=adaptive, share=share)
    options |= dict(key_mask=key_mask, scale=scale, spread=spread_of(group, rank, ranks))
    found = profile_rows_for(engine)(query, key, value, layout, **options)
    return found.plan, found.errors.float(), found.missing.float()


def profile_rows_for(engine: str) -> Callable[..., ProfiledRows]:
    """The profile by ATen calls: the oracle's or the CPU engine's."""
    if engine == "reference":
        from svg_compile.kernels import reference

        return reference.profile_rows
    from svg_compile.kernels.cpu import profile

    return profile.profile_rows


@_profile_host.register_fake
def _(query, key, value, key_mask, grid, densities, sampled_rows, adaptive, *constants):  # type: ignore[no-untyped-def]
    return _empty_plan(query, adaptive)


def _empty_plan(query: Tensor, adaptive: bool) -> tuple[Tensor, Tensor, Tensor]:
    """An uninitialised plan, its errors and its missing mass."""
    shape = (query.shape[0], query.shape[1], 2)
    errors = query.new_empty(shape, dtype=torch.float32)
    missing = errors.new_empty(*shape, len(LADDER) if adaptive else 0)
    return query.new_empty(shape, dtype=torch.int32), errors, missing


@triton_op("svg::attention")
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor,
    key_mask: Optional[Tensor],
    grid: Sequence[int],
    scale: Optional[float],
    engine: str,
    abi: int,
) -> Tensor:
    """Sparse attention by a plan: q, k, v [B, H, N, D], plan int32 [B, H, 2], key_mask bool [B, N] -> [B, H, N, D]."""
    if engine_for(query, engine) != "triton":
        return torch.ops.svg.attention_host(query, key, value, plan, key_mask, grid, scale, engine, abi)
    from svg_compile.kernels.triton.attention import sparse_attention

    return sparse_attention(query, key, value, plan, key_mask, grid, scale)


@triton_op("svg::profile")
def profile(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Optional[Tensor],
    grid: Sequence[int],
    densities: Sequence[float],
    sampled_rows: int,
    adaptive: bool,
    scale: Optional[float],
    engine: str,
    abi: int,
    when: Optional[Tensor],
    previous: Optional[Tensor],
    share: Optional[Tensor],
    group: Optional[str] = None,
    rank: int = 0,
    ranks: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Profile the heads, or keep their kinds: q, k, v [B, H, N, D], key_mask bool [B, N], when int32 [2], previous
    int32 [B, H, 2], share float32 [B] -> plan int32 [B, H, 2] = (kind, half-width), errors float32 [B, H, 2] =
    (spatial, temporal), missing float32 [B, H, 2, rungs].
    """
    check_stages(query, densities, adaptive, when, previous, share)
    options = (densities, sampled_rows, adaptive, scale)
    if engine_for(query, engine) != "triton":
        stages = (engine, abi, when, previous, share, group, rank, ranks)
        return torch.ops.svg.profile_host(query, key, value, key_mask, grid, *options, *stages)
    from svg_compile.kernels.triton.profile import profile_heads

    spread = spread_of(group, rank, ranks)
    return profile_heads(query, key, value, key_mask, grid, *options, when, previous, share, spread)


def check_stages(
    query: Tensor,
    densities: Sequence[float],
    adaptive: bool,
    when: Optional[Tensor],
    previous: Optional[Tensor],
    share: Optional[Tensor],
) -> None:
    """LayoutError if `densities`, `when`, `previous` or `share` do not fit the query; their values are not read."""
    if not densities:
        raise LayoutError("svg::profile needs at least one density.")
    if share is not None and not adaptive:
        raise LayoutError(
            "svg::profile takes a share with adaptive half-widths alone; uniform ones follow from density."
        )
    expected: dict[str, tuple[Optional[Tensor], tuple[int, ...], torch.dtype]] = {
        "when": (when, (2,), torch.int32),
        "previous": (previous, (query.shape[0], query.shape[1], 2), torch.int32),
        "share": (share, (query.shape[0],), torch.float32),
    }
    for name, (tensor, shape, dtype) in expected.items():
        if tensor is None:
            continue
        if tensor.dtype is not dtype or tuple(tensor.shape) != shape or tensor.device != query.device:
            wanted = f"{str(dtype).removeprefix('torch.')} {list(shape)} on {query.device}"
            raise LayoutError(f"{name} must be {wanted}, got {tensor.dtype} {list(tensor.shape)} on {tensor.device}.")
