"""Which query rows are profiled: stratified over all video tokens, deterministic, without a random generator."""

# The golden ratio's fraction in 16 bits: successive multiples spread evenly, so rows do not line up with the width.
_GOLDEN = 40503
_UNIT = 65536


def sampled_video_token(index, count, video):
    """Video token (0 <= token < `video`) sampled from stratum `index` of `count` <= `video`.

    Like the mask it uses only +, *, //, % on non-negative operands: Python ints, int64 tensors and `triton.jit` agree.
    """
    jitter = ((index + 1) * _GOLDEN) % _UNIT
    return (index * video + (jitter * video) // _UNIT) // count
