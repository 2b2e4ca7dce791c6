"""Faults of the mask and of the attention kernel."""

from __future__ import annotations

from mutant import MASK, Mutant

MUTANTS = (
    Mutant(
        "masked loop drops text and sink",
        "kernels/triton/attention.py",
        "sees_all, is_open[None, :], key_frame[None, :],",
        "sees_all, (place < 0)[None, :], key_frame[None, :] + 1,",
    ),
    Mutant(
        "kernel drops the sink",
        "kernels/triton/runs.py",
        "tl.where(sees_all, video, area)",
        "tl.where(sees_all, video, 0)",
    ),
    Mutant(
        "kernel drops text after the video",
        "kernels/triton/runs.py",
        "y_end = video + text_len",
        "y_end = y_begin",
    ),
    Mutant(
        "text keys dropped from the mask",
        "svg_compile/mask.py",
        "query_is_text | key_is_text |",
        "query_is_text |",
        MASK,
    ),
    Mutant("sink dropped from the mask", "svg_compile/mask.py", " | (key_frame == 0)", "", MASK),
    Mutant("band one-sided", "svg_compile/mask.py", " & (key_block - query_block <= half_width)", "", MASK),
    Mutant(
        "band never masked at its edges", "kernels/triton/attention.py", "shown & key_ok[None, :]", "key_ok[None, :]"
    ),
    Mutant(
        "frame and place swapped",
        "kernels/triton/tiles.py",
        "(rank - place * span) * area + place",
        "place * span + (rank - place * span)",
    ),
    Mutant(
        "frame and place swapped in the fast loop",
        "kernels/triton/attention.py",
        "(turn_in - turns * span) * area + turns",
        "turn_in",
    ),
    Mutant(
        "q's strides used for v",
        "kernels/triton/attention.py",
        "batch * stride_vb + head * stride_vh",
        "batch * stride_qb + head * stride_qh",
    ),
    Mutant(
        "k's token stride used for v",
        "kernels/triton/attention.py",
        "stride_kn, stride_kd, stride_vn, stride_vd,\n            HEAD_DIM",
        "stride_kn, stride_kd, stride_kn, stride_kd,\n            HEAD_DIM",
    ),
    Mutant(
        "int32 row offsets",
        "kernels/triton/tiles.py",
        "rows = token.to(tl.int64) * stride_token",
        "rows = token * stride_token",
    ),
    Mutant(
        "int32 tile offsets",
        "kernels/triton/attention.py",
        "start = tl.where(in_band >= 0, video_start + area + full_low + in_band * BLOCK_N, start).to(tl.int64)",
        "start = tl.where(in_band >= 0, video_start + area + full_low + in_band * BLOCK_N, start)",
    ),
    Mutant(
        "key mask ignored", "kernels/triton/attention.py", "key_ok &= tl.load(key_mask", "key_ok |= tl.load(key_mask"
    ),
    Mutant(
        "hidden keys taken for clean",
        "kernels/triton/prepare.py",
        "tl.maximum(hidden_first, begin), end)",
        "end, end)",
    ),
    Mutant(
        "a body that hides keys taken for clean",
        "kernels/triton/attention.py",
        "tl.where(in_body, full_low, full_high)",
        "full_high",
    ),
    Mutant(
        "band one block too wide",
        "kernels/triton/runs.py",
        "(last_block - half_width) * BAND, low), high)",
        "(first_block - half_width) * BAND, low), high)",
    ),
    Mutant("text tiles forgotten", "kernels/triton/attention.py", "y_tiles * BLOCK_N - x_rest", "- x_rest"),
    Mutant("unseen rows divide by zero", "kernels/triton/attention.py", "tl.where(total == 0.0, 1.0, total)", "total"),
    Mutant("running sum not rescaled", "kernels/triton/tiles.py", "total * factor + tl.sum", "total + tl.sum"),
    Mutant(
        "no guard for rows that saw nothing",
        "kernels/triton/tiles.py",
        'new_peak == float("-inf"), 0.0, shift',
        "new_peak > 3e38, 0.0, shift",
    ),
    Mutant(
        "tail of the queries written",
        "kernels/triton/tiles.py",
        "rows.to(base.dtype.element_ty), mask=token_ok[:, None]",
        "rows.to(base.dtype.element_ty), mask=(token >= 0)[:, None]",
    ),
    Mutant(
        "channels past the head dim written",
        "kernels/triton/tiles.py",
        "token_ok[:, None] & (channel < CHANNELS)[None, :])\n\n\n@triton.jit\ndef scores",
        "token_ok[:, None] & (channel >= 0)[None, :])\n\n\n@triton.jit\ndef scores",
    ),
    Mutant("negative scale loses its sign", "kernels/triton/launch.py", "(scale > 0) - (scale < 0)", "int(scale != 0)"),
    Mutant(
        "heads in no order",
        "kernels/triton/prepare.py",
        "tl.store(order + place, head",
        "tl.store(order + head, head",
    ),
    Mutant("the grid of another tile", "kernels/triton/attention.py", 'rows = meta["BLOCK_M"]', "rows = 32"),
)
