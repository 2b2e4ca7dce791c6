"""The band of the CPU engine: query tiles on their runs of body keys, gathered in rank order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from svg_compile.kernels.cpu.flash import Part, flash, merge
from svg_compile.kernels.cpu.order import TokenOrder

# Maximum query rows of a chunk. Flash uses its largest tiles from 768 rows on, and packs the keys once per chunk.
CHUNK_ROWS = 512


@dataclass(frozen=True)
class Band:
    """Queries attend the body's ranks [x - reach, x + block + reach), x being the start of their block.

    visible: bool [M], by rank; the keys passed to `attend` are the visible ones only.
    """

    order: TokenOrder
    reach: int
    block: int
    visible: Tensor
    scale: float

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Part:
        """query [G, T, R, D] by `TokenOrder.rows`, key and value contiguous [G, visible body, D] -> [G, T, R, D].

        Rows without a key give 0 and -inf.
        """
        out = torch.empty_like(query)
        lse = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        first, last = self._interior()
        for tiles in (*self._edge(0, first), *self._edge(last, query.shape[1])):
            self._clipped(tiles, query, key, value, out, lse)
        chunk = self._chunk_tiles()
        while first < last:
            count = (last - first) // chunk * chunk
            if count:
                span = slice(first, first + count)
                start = (self.order.first_tile + first) * self.order.tile
                self._chunks(start, chunk, query[:, span], key, value, out[:, span], lse[:, span])
            first, chunk = first + count, chunk // 2
        return out, lse

    def _interior(self) -> tuple[int, int]:
        """The tiles [first, last) whose runs lie inside the body and can share calls.

        Empty where keys are hidden, as runs then differ in length, or where the rows of one tile have no common key.
        """
        tiles, tile = self.order.rows.shape[0], self.order.tile
        if 2 * (self.block + self.reach) < tile or not bool(self.visible.all()):
            return tiles, tiles
        first = (self.reach + tile - 1) // tile - self.order.first_tile
        last = (len(self.visible) - self.reach) // tile - self.order.first_tile
        return (first, last) if first < last else (tiles, tiles)

    def _chunk_tiles(self) -> int:
        """Tiles per chunk, a power of two; the keys common to a chunk are at least about half of a tile's run."""
        chunk = 1
        while 2 * chunk * self.order.tile <= min(CHUNK_ROWS, self.reach + self.block):
            chunk *= 2
        return chunk

    def _chunks(
        self, start: int, chunk: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
    ) -> None:
        """Whole chunks of interior tiles from rank `start` on; writes out [G, n, R, D] and lse [G, n, R]."""
        tile, reach, block = self.order.tile, self.reach, self.block
        span, chunks = chunk * tile, query.shape[1] // chunk
        shape = (chunks, chunk)
        # Ranks x + [begin, end) are common to the chunk that starts at x.
        begin, end = span - block - reach, block + reach
        common = flash(
            query.unflatten(1, shape).flatten(2, 3),
            _windows(key, start + begin, end - begin, span, chunks),
            _windows(value, start + begin, end - begin, span, chunks),
            self.scale,
        )
        rows = query.shape[2]
        part: Part = (common[0].unflatten(2, (chunk, rows)), common[1].unflatten(2, (chunk, rows)))
        step = span - tile
        if step:
            ring = []
            for source in (key, value):
                left = _windows(source, start + begin - step, step, span, chunks)
                right = _windows(source, start + end, step, span, chunks)
                ring.append(torch.cat((left, right), dim=2))
            for head in range(query.shape[0]):
                keys, values = (_windows(source[head], 0, step, tile, chunk) for source in ring)
                near = flash(query[head].unflatten(0, shape), keys, values, self.scale)
                merged = merge((part[0][head], part[1][head]), near, out=out[head].unflatten(0, shape))
                lse[head].unflatten(0, shape).copy_(merged[1])
        else:
            out.copy_(part[0].flatten(1, 2))
            lse.copy_(part[1].flatten(1, 2))
        if block < tile:
            self._steps(start, query, key, value, out, lse)

    def _steps(self, start: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor) -> None:
        """The keys that only some blocks of a tile attend, masked, merged into out and lse."""
        tile, reach, block = self.order.tile, self.reach, self.block
        tiles, step = query.shape[1], tile - block
        left, right = -reach, block + reach
        keys, values = (
            torch.cat([_windows(source, start + side, step, tile, tiles) for side in (left, right)], dim=2)
            for source in (key, value)
        )
        offset = torch.cat((torch.arange(step, device="cpu") + left, torch.arange(step, device="cpu") + right))
        key_block = (start + torch.arange(tiles, device="cpu")[:, None] * tile + offset) // block
        first = start // tile - self.order.first_tile
        near = flash(query, keys, values, self.scale, self._near(slice(first, first + tiles), key_block)[None])
        merged = merge((out, lse), near)
        out.copy_(merged[0])
        lse.copy_(merged[1])

    def _edge(self, first: int, last: int) -> list[range]:
        """Tiles [first, last), singly or in pairs: flash is faster on two tiles, unless some rows are padding."""
        full = self.order.rows.shape[1]
        short = [4 * count < 3 * full for count in self.order.counts]
        parts: list[range] = []
        while first < last:
            two = first + 1 < last and self.block >= self.order.tile and not short[first] and not short[first + 1]
            parts.append(range(first, first + 1 + two))
            first += 1 + two
        return parts

    def _clipped(self, tiles: range, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor) -> None:
        """One or two tiles on their runs of visible keys; writes their out and lse, except padded rows at the end."""
        runs = [self._run(tile) for tile in tiles]
        shared = range(max(run.start for run in runs), min(run.stop for run in runs))
        if len(tiles) == 2 and not shared:
            for tile in tiles:
                self._clipped(range(tile, tile + 1), query, key, value, out, lse)
            return
        rows = query.shape[2] * (len(tiles) - 1) + self.order.counts[tiles[-1]]
        span = slice(tiles.start, tiles.stop)
        targets = out[:, span].flatten(1, 2)[:, :rows], lse[:, span].flatten(1, 2)[:, :rows]
        queries = query[:, span].flatten(1, 2)[:, :rows]
        mask = self._shown(tiles.start)[None, :, :rows] if self.block < self.order.tile else None
        run = slice(shared.start, shared.stop)
        part = flash(queries, key[:, run], value[:, run], self.scale, mask)
        for target, source in zip(targets, part, strict=True):
            target.copy_(source)
        for number, run_of_tile in enumerate(runs):
            place = slice(number * query.shape[2], (number + 1) * query.shape[2])
            near = targets[0][:, place], targets[1][:, place]
            for rest in (range(run_of_tile.start, shared.start), range(shared.stop, run_of_tile.stop)):
                if rest:
                    keys = slice(rest.start, rest.stop)
                    other = flash(queries[:, place], key[:, keys], value[:, keys], self.scale)
                    near[1].copy_(merge(near, other, out=near[0])[1])

    def _run(self, tile: int) -> range:
        """The keys that a tile attends, as a range of indices into the visible keys."""
        begin, end = self._ranks(tile)
        kept = int(self.visible[:begin].sum())
        return range(kept, kept + int(self.visible[begin:end].sum()))

    def _ranks(self, tile: int) -> tuple[int, int]:
        body = len(self.visible)
        start = (self.order.first_tile + tile) * self.order.tile
        return min(max(start - self.reach, 0), body), min(max(start + self.order.tile + self.reach, 0), body)

    def _shown(self, tile: int) -> Tensor:
        """The mask, bool [1, R, K], between a tile's rows and the visible keys of its run."""
        begin, end = self._ranks(tile)
        shown = self.visible[begin:end].nonzero().flatten() + begin
        return self._near(slice(tile, tile + 1), shown // self.block)

    def _near(self, tiles: slice, key_block: Tensor) -> Tensor:
        """The band's mask, bool [tiles, R, K], between the rows of some tiles and keys in blocks [K] or [tiles, K]."""
        distance = self.order.row_block[tiles][:, :, None] - key_block.unsqueeze(-2)
        return distance.abs() * self.block <= self.reach


def _windows(source: Tensor, start: int, length: int, step: int, count: int) -> Tensor:
    """`count` windows of `length` rows, `step` rows apart, of source [G, K, D]: a view [G, count, length, D]."""
    batch_stride, row_stride, _ = source.stride()
    return source.as_strided(
        (source.shape[0], count, length, source.shape[2]),
        (batch_stride, step * row_stride, row_stride, 1),
        source.storage_offset() + start * row_stride,
    )
