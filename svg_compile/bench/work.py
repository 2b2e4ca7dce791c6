"""How much work an attention is: pairs that the mask lets through, pairs of the tiles that hold them, bytes."""

from __future__ import annotations

from collections.abc import Sequence

from svg_compile.layout import HeadKind, VideoLayout
from svg_compile.mask import band_block, band_rank
from svg_compile.zoo import Shape


def flops(shape: Shape, pairs: float) -> float:
    """4 * B * D for each (query, key) pair of all heads: two products, as FLOPs of attention are counted everywhere."""
    return 4 * shape.batch * shape.head_dim * pairs


def mask_pairs(shape: Shape, kinds: Sequence[HeadKind], half_widths: Sequence[int]) -> float:
    """(query, key) pairs that the mask lets through, over the heads of one sample."""
    total = shape.layout.tokens**2
    return sum(total * shape.layout.density(width, kind) for kind, width in zip(kinds, half_widths, strict=True))


def tile_pairs(
    shape: Shape, kinds: Sequence[HeadKind], half_widths: Sequence[int], rows: int = 128, columns: int = 128
) -> int:
    """Pairs of all `rows` x `columns` tiles that a kernel has to process, over the heads of one sample."""
    cache: dict[tuple[HeadKind, int], int] = {}
    for head in set(zip(kinds, half_widths, strict=True)):
        cache[head] = _tile_pairs(shape.layout, *head, rows, columns)
    return sum(cache[head] for head in zip(kinds, half_widths, strict=True))


def _tile_pairs(layout: VideoLayout, kind: HeadKind, half_width: int, rows: int, columns: int) -> int:
    """Query tiles are stretches of text, of frame 0 and of the body in the head's order; keys are counted in tiles."""

    def tiles(keys: int) -> int:
        return rows * columns * -(-keys // columns)

    if kind is HeadKind.DENSE:
        return -(-layout.tokens // rows) * tiles(layout.tokens)
    total = -(-layout.text_len // rows) * tiles(layout.tokens)
    open_keys = layout.text_len + layout.area
    for length, in_body in ((layout.area, False), (layout.body, True)):
        for begin in range(0, length, rows):
            ends = begin, min(begin + rows, length) - 1
            ranks = ends if in_body else [band_rank(0, place, layout.frames, layout.area, int(kind)) for place in ends]
            first, last = (band_block(rank, layout.area, layout.block) for rank in ranks)
            low = min(max((first - half_width) * layout.block, 0), layout.body)
            high = min(max((last + half_width + 1) * layout.block, low), layout.body)
            total += tiles(open_keys + high - low)
    return total


def least_bytes(shape: Shape, itemsize: int) -> int:
    """q, k and v read once and the result written once, of all heads."""
    return 4 * shape.batch * shape.heads * shape.layout.tokens * shape.head_dim * itemsize
