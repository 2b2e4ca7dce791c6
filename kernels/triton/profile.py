"""`svg::profile` on CUDA and ROCm: which kind of sparse attention suits each head, from one pass over its K and V.

On the sampled query rows (kernels/sampling.py) the dense output o and the spatial and temporal outputs o_s, o_t come
from three online softmaxes over one read of K and V. The keys are split into SPLITS ranges to fill the GPU; a second
kernel merges the ranges and decides, in float32:

    error_kind = mean over rows and channels of (o_kind - o)^2;   the smaller wins, a tie is spatial
    an error that is not finite never wins; where neither is finite the head stays dense

With half-widths by need the kernels of `need` follow. If a repair is fitted, the first kernel then runs again, to
compute the sampled rows under the plan.

q, k, v [B, H, N, D] of one dtype (bfloat16, float16, float32), head dims 16 to 256, any strides; key_mask bool [B, N]
or None; plan int32 [B, H, 2] = (kind, half-width in blocks). No host sync, no random numbers, no host-to-device copy.
`when` and `previous` (kernels/ops.py) are read on the device: where the kinds of `previous` are kept, the first kernel
returns at once and the second copies them. Without these arguments the kernels are compiled without that branch. Each
of the three outputs has its own maximum: with a shared one, a band far below the dense maximum would underflow to 0.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Optional

import torch
import triton
from torch import Tensor

from svg_compile._compat.gpu import in_one_buffer
from svg_compile.kernels.sampling import sampled_video_token
from svg_compile.kernels.spread import Spread, of_all_processes, of_this_process
from svg_compile.kernels.triton.configs import key_splits, profile_tiles
from svg_compile.kernels.triton.decide import profile_plan_fwd_kernel
from svg_compile.kernels.triton.half_width import half_widths, ladders
from svg_compile.kernels.triton.launch import (
    autotunes,
    cdiv,
    checked_head_dims,
    exponent_unit,
    launch,
    launcher,
    split_channels,
)
from svg_compile.kernels.triton.need import missing_fwd_kernel, missing_rows_fwd_kernel, plan_by_need_fwd_kernel
from svg_compile.kernels.triton.profile_kernel import profile_rows_fwd_kernel
from svg_compile.kernels.widths import FILLS, LADDER, LEAST_PRICE, MOST_PRICE, SLACK, STEPS, UNIFORM

_RUNGS = 2 * len(LADDER)
_MERGE_ROWS = 16


class Parts(NamedTuple):
    """The result of a profile: plan int32 [B, H, 2], errors float32 [B, H, 2], missing float32 [B, H, 2, rungs] (no
    rungs with uniform half-widths), and the partial outputs of the sampled rows.

    partial and sums: as `profile_rows_fwd_kernel` writes them, for `rows` rows in `row_tiles` tiles of `block_m`; the
    sparse output of each head's kind has the plan's half-width with `plan_rows`, else the uniform one.
    """

    plan: Tensor
    errors: Tensor
    missing: Tensor
    partial: Tensor
    sums: Tensor
    rows: int
    row_tiles: int
    block_m: int
    splits: int


def profile_heads(*operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The plan, the errors and the missing mass of `profile_parts`."""
    parts = profile_parts(*operands)
    return parts.plan, parts.errors, parts.missing


def profile_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Optional[Tensor],
    grid: Sequence[int],
    densities: Sequence[float],
    sampled_rows: int,
    adaptive: bool,
    scale: Optional[float],
    when: Optional[Tensor] = None,
    previous: Optional[Tensor] = None,
    share: Optional[Tensor] = None,
    spread: Optional[Spread] = None,
    plan_rows: bool = False,
) -> Parts:
    """Profile q, k, v [B, H, N, D].

    when int32 [2], previous int32 [B, H, 2], share float32 [B], in any strides; see the module. spread: the processes
    whose heads share the pairs. plan_rows: compute the sampled rows' outputs at the plan's half-widths, too. Sizes may
    be SymInts.
    """
    frames, height, width, text_len, text_first, block = grid
    batch, heads = query.shape[0], query.shape[1]
    head_dim, value_dim = checked_head_dims(query, key, value, frames)
    tiles = profile_tiles(query.device, query.dtype, max(head_dim, value_dim), autotunes(query))
    block_m, splits = tiles[0].block_m, key_splits(query.device)
    area, video = height * width, frames * height * width
    count = torch.sym_min(sampled_rows, video)
    row_tiles = cdiv(count, block_m)
    sampled = sampled_video_token(torch.arange(count, device=query.device), count, video)
    # One buffer, as it is also passed in place of absent optional tensors.
    widths = in_one_buffer(half_widths(grid, densities, query.device))
    parts = batch * heads * row_tiles * splits
    partial = query.new_empty(parts, 3, block_m, value_dim, dtype=torch.float32)
    sums = query.new_empty(parts, 3, 2, block_m, dtype=torch.float32)
    plan = query.new_empty(batch, heads, 2, dtype=torch.int32)
    errors = query.new_empty(batch, heads, 2, dtype=torch.float32)
    # `previous` is read only together with `when`.
    stages = {"HAS_WHEN": when is not None, "HAS_PREVIOUS": when is not None and previous is not None}
    stage = widths if when is None else when
    before = widths if previous is None else previous.reshape(batch * heads, 2)
    sign, unit = exponent_unit(head_dim**-0.5 if scale is None else scale)
    mask = widths if key_mask is None else key_mask
    mask_strides = (0, 0) if key_mask is None else key_mask.stride()
    sizes = (heads, frames, area, text_len, count, row_tiles, unit)
    channels = split_channels(head_dim, value_dim)
    constants = {
        "SIGN": sign, "TEXT_FIRST": bool(text_first), "BAND": block, "HAS_KEY_MASK": key_mask is not None, **stages,
        "HEAD_DIM": head_dim, "SPLITS": splits,
    }  # fmt: skip

    def profile_rows(plan: Tensor | None = None) -> None:
        launch(
            profile_rows_fwd_kernel, lambda meta: (parts,), tiles,
            query, key, value, sampled, widths, widths if plan is None else plan, stage, mask, partial, sums,
            *query.stride(), *key.stride(), *value.stride(), *mask_strides, stage.stride(0), *sizes,
            **constants, BY_PLAN=plan is not None, VALUE_DIM=value_dim, **channels,
        )  # fmt: skip

    profile_rows()
    launcher(profile_plan_fwd_kernel)[(batch * heads,)](
        partial, sums, widths, stage, before, plan, errors,
        stage.stride(0), before.stride(0), count, row_tiles, **stages,
        SPLITS=splits, VALUE_DIM=value_dim, WIDTH=triton.next_power_of_2(value_dim),
        BLOCK_M=block_m, ROWS=_MERGE_ROWS,
    )  # fmt: skip
    if not adaptive:
        none = errors.new_empty(batch, heads, 2, 0)
        return Parts(plan, errors, none, partial, sums, count, row_tiles, block_m, splits)

    rungs, cost = ladders(grid, densities, query.device)
    missing = query.new_empty(parts, _RUNGS, block_m, dtype=torch.float32)
    # A tile's keys are in one block; tl.dot takes at least 16.
    tile = replace(tiles[0], block_n=max(16, min(tiles[0].block_n, block)))
    launch(
        missing_rows_fwd_kernel, lambda meta: (2 * parts,), (tile,),
        query, key, sampled, rungs, stage, mask, sums, missing,
        *query.stride(), *key.stride(), *mask_strides, stage.stride(0), *sizes,
        **constants, LOW=channels["LOW"], HIGH=channels["HIGH"], RUNGS=_RUNGS,
    )  # fmt: skip
    mean = query.new_empty(batch, heads, 2, _RUNGS // 2, dtype=torch.float32)
    launcher(missing_fwd_kernel)[(batch * heads,)](
        missing, mean, stage, stage.stride(0), count, row_tiles,
        HAS_PREVIOUS=stages["HAS_PREVIOUS"], RUNGS=_RUNGS, SPLITS=splits, BLOCK_M=block_m,
    )  # fmt: skip
    every = errors, mean, plan
    if spread is not None:
        # Kept plans are those of this process's heads: they replace the decision below.
        every, stages = _of_all_processes(*every, spread), {**stages, "HAS_PREVIOUS": False}
    by_need = torch.empty_like(every[2])
    launcher(plan_by_need_fwd_kernel)[(batch,)](
        *every, rungs, cost, stage, before, errors if share is None else share, by_need,
        stage.stride(0), before.stride(0), 0 if share is None else share.stride(0), by_need.shape[1], **stages,
        HAS_SHARE=share is not None, HEADS=triton.next_power_of_2(int(by_need.shape[1])), RUNGS=_RUNGS, UNIFORM=UNIFORM,
        LEAST_PRICE=LEAST_PRICE, MOST_PRICE=MOST_PRICE, STEPS=STEPS, FILLS=FILLS, SLACK=SLACK,
    )  # fmt: skip
    if spread is not None:
        by_need = of_this_process(by_need, spread).contiguous()
        if when is not None and previous is not None:
            by_need = torch.where(when[1] != 0, by_need, previous)
    if plan_rows:
        profile_rows(by_need)
    return Parts(by_need, errors, mean, partial, sums, count, row_tiles, block_m, splits)


def _of_all_processes(errors: Tensor, missing: Tensor, plan: Tensor, spread: Spread) -> tuple[Tensor, Tensor, Tensor]:
    """Errors, missing mass and plan of all processes' heads, gathered at once: float32 holds half-widths exactly."""
    packed = torch.cat((errors[..., None], plan[..., None].float(), missing), dim=-1)
    every = of_all_processes(packed, spread)
    errors, plan, missing = every[..., 0], every[..., 1], every[..., 2:]
    return errors.contiguous(), missing.contiguous(), plan.to(torch.int32).contiguous()
