"""The mask, defined once: which keys a query attends.

Tokens are text, or video at (frame, place) in raster order, `area` = height * width places a frame. A query attends
a key iff

    the key is text, or the key is in frame 0 (the sink), or the query is text,
    or |block(query) - block(key)| <= half_width

where block is the token's rank in the head's order of the body (all frames but the first), in units of `block` tokens:

    spatial   rank = (frame - 1) * area + place             frame-major; negative in frame 0
    temporal  rank = place * (frames - 1) + max(frame - 1, 0)    place-major

These functions use nothing but +, -, *, // and comparisons, on non-negative operands of //, so that the same source
runs on Python ints, on tensors, and under `triton.jit` (whose // truncates where Python's floors).
"""


def band_rank(frame, place, frames, area, temporal):
    """Rank of a video token in the order of a spatial (`temporal` = 0) or temporal (1) head."""
    body_frame = (frame > 0) * (frame - 1)
    return temporal * (place * (frames - 1) + body_frame) + (1 - temporal) * ((frame - 1) * area + place)


def band_block(rank, area, block):
    """Block of a rank: floor(rank / block), written so that no negative number is divided."""
    shift = (area + block - 1) // block
    return (rank + shift * block) // block - shift


def attends(query_is_text, key_is_text, key_frame, query_block, key_block, half_width):
    """The mask itself; `half_width` in blocks. What `key_frame` and the blocks are for a text token does not matter."""
    near = (query_block - key_block <= half_width) & (key_block - query_block <= half_width)
    return query_is_text | key_is_text | (key_frame == 0) | near
