"""Adjusted logits: softcap * tanh(z / softcap) / temperature, as differences from one of them."""

import triton
import triton.language as tl

from .numerics import FLOOR, INF, LARGEST, UNSCALE, exp_scaled


@triton.jit
def tanh_parts(x):
    """tanh x as whole + rest, where whole is 0 or +-1, so that near 1 the rest keeps its relative
    accuracy; and 1 - tanh^2."""
    size = tl.abs(x)
    z = x * x
    series = tl.fma(z, -0.00570496, 0.02063906)
    series = tl.fma(z, tl.fma(z, tl.fma(z, series, -0.05373971), 0.13331442), -0.33333282)
    small = tl.fma(x * z, series, x)  # relative error 4e-9 up to 0.625
    e = exp_scaled(tl.maximum(-2.0 * size, FLOOR), True) * UNSCALE
    w = tl.div_rn(1.0, 1.0 + e)
    large = size >= 0.625
    sign = tl.where(x < 0.0, -1.0, 1.0)
    whole = tl.where(large, sign, 0.0)
    rest = tl.where(large, -2.0 * sign * e * w, small)
    slope = tl.where(large, 4.0 * e * w * w, 1.0 - small * small)
    return whole, rest, slope


@triton.jit
def parts_of(z, to_cap, CAPPED: tl.constexpr):
    """The parts of which `distance` is computed, and d adjusted / dz without the scale."""
    if CAPPED:
        whole, rest, slope = tanh_parts(z * to_cap)
    else:
        whole, rest, slope = z, tl.zeros_like(z), tl.zeros_like(z) + 1.0
    return whole, rest, slope


@triton.jit
def distance(whole, rest, from_whole, from_rest, high, low, CAPPED: tl.constexpr):
    """adjusted(z) - adjusted(from); high + low is the scale, softcap / temperature or 1 /
    temperature, without rounding."""
    if CAPPED:
        x = (whole - from_whole) + (rest - from_rest)
        d = tl.fma(x, high, x * low)
    else:
        x = whole - from_whole
        d = tl.where(x >= -LARGEST, tl.fma(x, high, x * low), -INF)
        d = tl.where(x != x, x, d)
    return d


@triton.jit
def scales_of(highs, lows, high, low, rows, inside, PER_ROW: tl.constexpr):
    """The scale of each row: the call's, or its own."""
    if PER_ROW:
        high = tl.load(highs + rows, mask=inside, other=1.0)
        low = tl.load(lows + rows, mask=inside, other=0.0)
    else:
        high = tl.zeros_like(rows).to(tl.float32) + high
        low = tl.zeros_like(rows).to(tl.float32) + low
    return high, low


@triton.jit
def weights_of(
    weight, probabilities, starts, columns, mask, share, uniform, WEIGHTED: tl.constexpr,
    SOFT: tl.constexpr,
):  # fmt: skip
    """q of a tile, weight * (share * probabilities + uniform), and the probabilities; 0 outside
    of `mask`."""
    p = tl.zeros_like(mask).to(tl.float32)
    q = p + uniform
    if SOFT:
        p = tl.load(probabilities + starts[:, None] + columns[None, :], mask=mask, other=0.0)
        p = p.to(tl.float32)
        q = tl.fma(p, share, uniform)
    if WEIGHTED:
        columns = columns[None, :] + tl.zeros_like(mask).to(tl.int32)
        q *= tl.load(weight + columns, mask=mask, other=0.0)
    return tl.where(mask, q, 0.0), p
