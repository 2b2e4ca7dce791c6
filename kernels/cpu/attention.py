"""Sparse attention on CPUs, from ATen's flash attention on contiguous runs of keys.

A head's queries and keys are gathered once into the order of its kind, keys as [text | frame 0 | body]. In this order a
query attends the prefix (text and frame 0) and one run of the body, so a head takes a handful of flash calls, whose
results are merged by log-sum-exp:

    prefix   all video queries on the prefix
    common   chunks of query tiles on the keys that every tile of a chunk attends, overlapping views as batch
    ring     each tile on the rest of its run: the keys left and right of the common run. Their total length is the same
             for all tiles of a chunk, and in [left keys | right keys] they are one run that slides with the tile, so
             this is a batch of overlapping views again
    clipped  tiles whose run extends beyond an end of the body, one by one

Flash packs its keys at each call and is fastest with many rows per batch entry, hence chunks. Hidden keys (`key_mask`)
are left out of the gather, so no call needs a mask, with one exception: a tile of several blocks (block below
`MIN_TILE`) masks the keys that only some of its blocks attend.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svg_compile.kernels.cpu.band import Band
from svg_compile.kernels.cpu.flash import flash, merge
from svg_compile.kernels.cpu.order import token_order
from svg_compile.kernels.storage import empty_output
from svg_compile.layout import HeadKind, VideoLayout

# Maximum bytes of one gathered tensor, unless a single head has more; the heads are processed in groups of this size.
# Small enough that the allocator keeps the memory between calls: freeing it and touching fresh pages took up to an
# eighth of the time.
SCRATCH_BYTES = 1 << 21


@torch.no_grad()
def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor,
    layout: VideoLayout,
    *,
    key_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Sparse attention by the plan: q, k, v [B, H, N, D] in any strides, plan int32 [B, H, 2] -> [B, H, N, D].

    key_mask bool [B, N], True for visible keys. Every head may have its own kind and half-width. Hidden keys are never
    read; rows without a visible key give 0.
    """
    output = empty_output(query, value)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    if key_mask is not None and bool(key_mask.all()):
        key_mask = None
    row_bytes = max(query.shape[3], value.shape[3]) * query.element_size()
    turn = max(1, SCRATCH_BYTES // (layout.tokens * row_bytes))
    for batch in range(query.shape[0]):
        visible = torch.ones(layout.tokens, dtype=torch.bool, device="cpu") if key_mask is None else key_mask[batch]
        for (kind, half_width), heads in _heads_by_plan(plan[batch], layout).items():
            for first in range(0, len(heads), turn):
                some = heads[first : first + turn]
                group = _Heads(query[batch], key[batch], value[batch], output[batch], some, scale)
                if kind is HeadKind.DENSE:
                    group.attend_densely(visible)
                else:
                    group.attend_band(layout, kind, half_width, visible)
    return output


def _heads_by_plan(plan: Tensor, layout: VideoLayout) -> dict[tuple[HeadKind, int], list[int]]:
    """The heads of each (kind, half-width) in a plan [H, 2]; bands that cover the body count as dense."""
    groups: dict[tuple[HeadKind, int], list[int]] = {}
    for head, (kind, half_width) in enumerate(plan.tolist()):
        dense = kind == HeadKind.DENSE or half_width >= layout.full_half_width
        entry = (HeadKind.DENSE, 0) if dense else (HeadKind(kind), half_width)
        groups.setdefault(entry, []).append(head)
    return groups


@dataclass(frozen=True)
class _Heads:
    """Heads of one batch element that share a mask: query, key, value, output [H, N, D], of which `heads` (G of H)."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    heads: list[int]
    scale: float

    def attend_densely(self, visible: Tensor) -> None:
        """Every query on the keys where `visible` [N] is True."""
        shown = visible.nonzero().flatten()
        rows = torch.arange(self.query.shape[1], device="cpu")
        keys, values = self._gather(self.key, shown), self._gather(self.value, shown)
        out, _ = flash(self._gather(self.query, rows), keys, values, self.scale)
        self._scatter(out, rows, rows)

    def attend_band(self, layout: VideoLayout, kind: HeadKind, half_width: int, visible: Tensor) -> None:
        """Text queries on everything, video queries on the prefix and their band."""
        order = token_order(layout, kind)
        text = torch.arange(layout.text_start, layout.text_start + layout.text_len, device="cpu")
        sink = torch.arange(layout.video_start, layout.video_start + layout.area, device="cpu")
        prefix = torch.cat((text, sink))
        prefix = prefix[visible[prefix]]
        in_body = visible[order.body]
        shown = torch.cat((prefix, order.body[in_body]))
        keys, values = self._gather(self.key, shown), self._gather(self.value, shown)
        if layout.text_len:
            out, _ = flash(self._gather(self.query, text), keys, values, self.scale)
            self._scatter(out, text, torch.arange(layout.text_len, device="cpu"))

        rows = order.rows.flatten()
        queries = self._gather(self.query, rows)
        count = len(prefix)
        band = Band(order, half_width * layout.block, layout.block, in_body, self.scale)
        out, lse = band.attend(queries.unflatten(1, order.rows.shape), keys[:, count:], values[:, count:])
        if count:
            near = (out.flatten(1, 2), lse.flatten(1, 2))
            out, _ = merge(flash(queries, keys[:, :count], values[:, :count], self.scale), near, out=near[0])
        video = torch.arange(layout.video_start, layout.video_start + layout.video, device="cpu")
        self._scatter(out.view(queries.shape), video, order.slot)

    def _gather(self, source: Tensor, positions: Tensor) -> Tensor:
        """Rows `positions` of the heads of `source` [H, N, D], contiguous [G, L, D]; padded with zeros to the widest D.

        Flash requires the same head dim for all three operands.
        """
        width = max(self.query.shape[2], self.value.shape[2])
        make = source.new_empty if source.shape[2] == width else source.new_zeros
        gathered = make(len(self.heads), len(positions), width)
        for index, head in enumerate(self.heads):
            torch.index_select(source[head], 0, positions, out=gathered[index, :, : source.shape[2]])
        return gathered

    def _scatter(self, source: Tensor, positions: Tensor, slots: Tensor) -> None:
        """Write rows `slots` [L] of `source` [G, *, D] to the contiguous range `positions` [L] of the output."""
        if len(positions):
            span = slice(int(positions[0]), int(positions[-1]) + 1)
            for index, head in enumerate(self.heads):
                target = self.output[head, span]
                torch.index_select(source[index, :, : target.shape[1]], 0, slots, out=target)
