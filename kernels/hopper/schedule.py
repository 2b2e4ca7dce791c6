"""Which tiles of keys a tile of queries reads on Hopper, and in which order: the kernel's integer arithmetic.

A tile of keys is 128 keys that the copy engine fetches as one box, of one of two shapes,

    flat    128 consecutive tokens: open keys (text, frame 0), and ranks of a spatial head's band
    box     BOX_FRAMES frames x 128 / BOX_FRAMES places, from a temporal head's band

The order of the keys does not change a softmax, so a temporal head's band, ranks [low, high), is not read rank by rank
but as a rectangle: all F - 1 frames of the places low // (F - 1) and up. BOX_FRAMES divides F - 1, so a box never
crosses the last frame; beyond the places of a frame the copy engine fills in zeros, which the mask hides. With 33
frames a box is 32 x 4 and covers the 128 consecutive ranks of a block exactly.

The tiles are numbered: first those that need the mask, then those that every query of the tile attends in full.

    masked  [X's ragged end] [Y's ragged end] [band groups that are not full]
    full    [whole tiles of X] [whole tiles of Y] [full band groups]

where X and Y are the runs of open keys (as in kernels/triton/attention.py) and a band group is one tile of a spatial
head, or the (F - 1) / BOX_FRAMES boxes over the same places of a temporal head. The copying and the computing warps
iterate over the same numbers and synchronise by "ready" and "done" only.

The functions use integers only, and divide no negative ones: the tests run the same source in Python.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from svg_compile.kernels.triton.runs import band_ranks, open_keys, query_ranks
from svg_compile.kernels.triton.tiles import band_block, band_rank


def box_frames(frames: int, keys: int) -> int:
    """Frames of a box of `keys` keys (a power of two): the largest power of two that divides F - 1, at most `keys`."""
    span = max(frames - 1, 1)
    return min(span & -span, keys)


@gluon.jit
def query_tile(program, batch_heads, area, body, text_len, BLOCK_M: gl.constexpr):
    """(is_text, turn, tile): text tiles first, as they attend every key; then head by head, tiles in a row."""
    text_tiles = gl.cdiv(text_len, BLOCK_M)
    video_tiles = gl.cdiv(area, BLOCK_M) + gl.cdiv(body, BLOCK_M)
    is_text = program < text_tiles * batch_heads
    program = program - gl.where(is_text, 0, text_tiles * batch_heads)
    tiles = gl.where(is_text, text_tiles, video_tiles)
    return is_text, program // tiles, program % tiles


@gluon.jit
def band_groups(low, high, full_low, full_high, temporal, frames, BOX_FRAMES: gl.constexpr, BLOCK_N: gl.constexpr):
    """(first, boxes, groups, full_first, full_end) of the band.

    Group g covers `first` + g * step and up, in ranks (spatial, step BLOCK_N) or places (temporal, step BLOCK_N /
    BOX_FRAMES), with `boxes` tiles; groups full_first <= g < full_end lie inside [full_low, full_high).
    """
    span = gl.where(temporal, gl.maximum(frames - 1, 1), 1)
    step = gl.where(temporal, BLOCK_N // BOX_FRAMES, BLOCK_N)
    boxes = gl.where(temporal, span // BOX_FRAMES, 1)
    first = low // span
    groups = gl.where(high > low, gl.cdiv(gl.cdiv(high, span) - first, step), 0)
    full_first = gl.minimum(gl.cdiv(gl.cdiv(full_low, span) - first, step), groups)
    full_end = gl.maximum((full_high // span - first) // step, full_first)
    return first, boxes, groups, full_first, gl.minimum(full_end, groups)


@gluon.jit
def tile_list(
    begin, length, is_body, sees_all, temporal, half_width, frames, area, text_len,
    TEXT_FIRST: gl.constexpr, BAND: gl.constexpr, BOX_FRAMES: gl.constexpr, BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
):  # fmt: skip
    """(total, band_end, tiles) of the queries begin, begin + 1, ...: tiles 0 <= n < total, total > 0.

    band_end is the end of the band's ranks; `tiles` is the argument of `tile_at`, its first item the number of masked
    tiles.
    """
    body = (frames - 1) * area
    x_end, y_begin, y_end = open_keys(sees_all, area, frames * area, text_len, TEXT_FIRST, False)
    first_rank, last_rank = query_ranks(begin, length, is_body, gl.where(temporal, 1, 0), frames, area, BLOCK_M)
    low, high, full_low, full_high = band_ranks(first_rank, last_rank, sees_all, half_width, area, body, BAND)
    first, boxes, groups, full_first, full_end = band_groups(
        low, high, full_low, full_high, temporal, frames, BOX_FRAMES, BLOCK_N
    )
    y_length = y_end - y_begin
    ends = gl.where(x_end % BLOCK_N > 0, 1, 0) + gl.where(y_length % BLOCK_N > 0, 1, 0)
    full = (full_end - full_first) * boxes
    masked = ends + groups * boxes - full
    total = masked + x_end // BLOCK_N + y_length // BLOCK_N + full
    return total, high, (masked, x_end, y_begin, y_end, first, boxes, full_first, full_end)


@gluon.jit
def tile_at(number, tiles, temporal, BOX_FRAMES: gl.constexpr, BLOCK_N: gl.constexpr):
    """(in_band, start, frame) of the tile with this number.

    Open keys: tokens from `start`. In the band: ranks from `start` of a spatial head, or places from `start` of the
    frames 1 + frame, 2 + frame, ... of a temporal one.
    """
    masked, x_end, y_begin, y_end, first, boxes, full_first, full_end = tiles
    is_masked = number < masked
    x_tiles = x_end // BLOCK_N
    y_tiles = (y_end - y_begin) // BLOCK_N
    # The numbers of tiles of X and of Y in this half of the list, masked or full.
    of_x = gl.where(is_masked, gl.where(x_end % BLOCK_N > 0, 1, 0), x_tiles)
    of_y = gl.where(is_masked, gl.where((y_end - y_begin) % BLOCK_N > 0, 1, 0), y_tiles)
    turn = number - gl.where(is_masked, 0, masked)
    x_start = (turn + gl.where(is_masked, x_tiles, 0)) * BLOCK_N
    y_start = y_begin + (turn - of_x + gl.where(is_masked, y_tiles, 0)) * BLOCK_N
    in_band = turn >= of_x + of_y
    box = gl.maximum(turn - of_x - of_y, 0)
    group = box // boxes
    frame = (box - group * boxes) * BOX_FRAMES
    group += gl.where(is_masked, gl.where(group >= full_first, full_end - full_first, 0), full_first)
    step = gl.where(temporal, BLOCK_N // BOX_FRAMES, BLOCK_N)
    start = gl.where(in_band, first + group * step, gl.where(turn < of_x, x_start, y_start))
    return in_band, start, gl.where(in_band & temporal, frame, 0)


@gluon.jit
def key_position(key, start, frame, in_box, frames, BOX_FRAMES: gl.constexpr, BLOCK_N: gl.constexpr):
    """The number that the mask compares: token (open keys) or rank (band) of key 0 <= key < BLOCK_N of a tile."""
    PLACES: gl.constexpr = BLOCK_N // BOX_FRAMES
    # The factors depend on the tile on purpose: values common to all tiles would occupy a register for each key.
    a_place = gl.where(in_box, frames - 1, 1)
    a_frame = gl.where(in_box, 1, PLACES)
    return gl.where(in_box, start * (frames - 1) + frame, start) + key % PLACES * a_place + key // PLACES * a_frame


@gluon.jit
def seen_ranks(index, is_body, temporal, half_width, frames, area, band_end, BAND: gl.constexpr):
    """(first, end): the band's ranks that the query with this index in its run attends; undefined for text queries."""
    rank = gl.where(is_body, index, band_rank(0, index, frames, area, gl.where(temporal, 1, 0)))
    block = band_block(rank, area, BAND)
    return (block - half_width) * BAND, gl.minimum((block + half_width + 1) * BAND, band_end)
