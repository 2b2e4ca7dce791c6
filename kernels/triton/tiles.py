"""Shared by the Triton kernels: the mask's one definition under `triton.jit`, token addressing, row loads.

A head's keys are addressed by their *rank* in the head's order of the body (all frames but the first, M = (F - 1) * S
tokens, S = area). For the temporal order

    rank r  ->  place p = r // (F - 1),  frame f = r % (F - 1) + 1,  token = video_start + f * S + p

and for the spatial order token = video_start + S + r. A few integer operations turn a rank into a token, so neither a
permuted copy nor an index table is needed. Token numbers are int32 and widened before a stride is applied.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from svg_compile import mask
from svg_compile.kernels.triton.launch import device_function

# The names must be those of the functions: Inductor writes out their sources under these names.
band_rank = device_function(mask.band_rank)
band_block = device_function(mask.band_block)
attends = device_function(mask.attends)


@triton.jit
def body_offset(rank, frames, area, temporal):
    """The token of rank >= 0 in the head's order, counted from the first token of frame 1; exact for any rank."""
    span = tl.maximum(frames - 1, 1)
    place = rank // span
    return tl.where(temporal, (rank - place * span) * area + place, rank)


@triton.jit
def load_rows(
    base,
    token,
    token_ok,
    stride_token,
    stride_channel,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHECK_TOKENS: tl.constexpr,
):
    """Rows [len(token), WIDTH] of channels FIRST, FIRST + 1, ...; out of range or not ok gives 0 without a read."""
    channel = FIRST + tl.arange(0, WIDTH)
    rows = token.to(tl.int64) * stride_token
    pointer = base + rows[:, None] + (channel.to(tl.int64) * stride_channel)[None, :]
    if FIRST + WIDTH > CHANNELS:
        if CHECK_TOKENS:
            return tl.load(pointer, mask=token_ok[:, None] & (channel < CHANNELS)[None, :], other=0.0)
        return tl.load(pointer, mask=(channel < CHANNELS)[None, :], other=0.0)
    if CHECK_TOKENS:
        return tl.load(pointer, mask=token_ok[:, None], other=0.0)
    return tl.load(pointer)


@triton.jit
def store_rows(
    base,
    rows,
    token,
    token_ok,
    stride_token,
    stride_channel,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write rows [len(token), WIDTH] to channels FIRST, FIRST + 1, ...; nothing where the token is not ok."""
    channel = FIRST + tl.arange(0, WIDTH)
    offset = (token.to(tl.int64) * stride_token)[:, None] + (channel.to(tl.int64) * stride_channel)[None, :]
    tl.store(base + offset, rows.to(base.dtype.element_ty), mask=token_ok[:, None] & (channel < CHANNELS)[None, :])


@triton.jit
def scores(
    query_low,
    query_high,
    base,
    token,
    token_ok,
    stride_token,
    stride_channel,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHECK_TOKENS: tl.constexpr,
):
    """Q K^T of one tile, float32 [rows, keys], unscaled. Channels are split into LOW and, where HIGH > 0, HIGH more."""
    key = load_rows(base, token, token_ok, stride_token, stride_channel, 0, LOW, CHANNELS, CHECK_TOKENS)
    result = tl.dot(query_low, tl.trans(key), input_precision="ieee")
    if HIGH > 0:
        key = load_rows(base, token, token_ok, stride_token, stride_channel, LOW, HIGH, CHANNELS, CHECK_TOKENS)
        result = tl.dot(query_high, tl.trans(key), result, input_precision="ieee")
    return result


@triton.jit
def softmax_step(score, visible, peak, total, unit, CHECKED: tl.constexpr):
    """One step of the online softmax in base 2: (weights, factor of earlier tiles, peak, total).

    score is raw, `unit` = |scale| * log2(e) > 0, so the scale is free: exp2(score * unit - peak * unit) is one fused
    multiply-add and one exp2. peak is the row maximum of the raw scores. CHECKED: `visible` masks, and a row may have
    no visible key yet, where -inf - -inf must not become NaN.
    """
    if CHECKED:
        score = tl.where(visible, score, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(score, 1))
    shift = new_peak * unit
    if CHECKED:
        shift = tl.where(new_peak == float("-inf"), 0.0, shift)
    weight = tl.exp2(score * unit - shift[:, None])
    factor = tl.exp2(peak * unit - shift)
    return weight, factor, new_peak, total * factor + tl.sum(weight, 1)


@triton.jit
def key_tile(
    query_low, query_high, out_low, out_high, peak, total, key, value, token, token_ok, visible, unit,
    stride_kn, stride_kd, stride_vn, stride_vd,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    VALUE_LOW: tl.constexpr, VALUE_HIGH: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys. `key`, `value`: pointers to the token that `token` counts from; CHECKED: use the masks."""
    score = scores(query_low, query_high, key, token, token_ok, stride_kn, stride_kd, LOW, HIGH, HEAD_DIM, CHECKED)
    weight, factor, peak, total = softmax_step(score, visible, peak, total, unit, CHECKED)
    weight = weight.to(value.dtype.element_ty)
    rows = load_rows(value, token, token_ok, stride_vn, stride_vd, 0, VALUE_LOW, VALUE_DIM, CHECKED)
    out_low = tl.dot(weight, rows, out_low * factor[:, None], input_precision="ieee")
    if VALUE_HIGH > 0:
        rows = load_rows(value, token, token_ok, stride_vn, stride_vd, VALUE_LOW, VALUE_HIGH, VALUE_DIM, CHECKED)
        out_high = tl.dot(weight, rows, out_high * factor[:, None], input_precision="ieee")
    return out_low, out_high, peak, total
