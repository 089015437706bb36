"""The sums over one row of logits, leaving one maximal element out, and how parts combine.

Of a set of logits with maximum m: u = sum exp(z - m) - 1, t = sum exp(z - m) (z - m) and
q = sum exp(z - m)^2 - 1, all times a power of 2^24 (numerics). Leaving one maximal element out
keeps them exact near zero. No element is asked whether it is the one: of two values the smaller
is added to the sums and the larger goes on (`keep_largest`), so only the last few, the
champions, must be counted (`champion_terms`, `leave_one_out`).
"""

import triton
import triton.language as tl

from .numerics import FLOOR, INF, LARGEST, SCALE, UNSCALE, exp_scaled

NAN_WINS = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def keep_largest(champion, tiles, TILES: tl.constexpr):
    """The elementwise maximum of `champion` and all `tiles`, and the TILES values that lost.

    A NaN becomes the champion and stays it.
    """
    losers = ()
    for i in tl.static_range(TILES):
        z = tiles[i]
        losers = losers + (tl.minimum(champion, z, propagate_nan=NAN_WINS),)
        champion = tl.maximum(champion, z, propagate_nan=NAN_WINS)
    return champion, losers


@triton.jit
def add_losers(
    losers, m, u, t, q, second, TILES: tl.constexpr, STATISTICS: tl.constexpr,
    COMPENSATED: tl.constexpr,
):  # fmt: skip
    """Adds values <= m to the elementwise sums relative to m (finite)."""
    for i in tl.static_range(TILES):
        d = tl.maximum(losers[i] - m, FLOOR)
        e = exp_scaled(d, COMPENSATED)
        u += e
        t = tl.fma(e, d, t)
        if STATISTICS:
            q = tl.fma(e, e, q)
            second = tl.maximum(second, losers[i])
    return u, t, q, second


@triton.jit
def rescale(m, new_m, u, t, q, STATISTICS: tl.constexpr):
    """Sums relative to m as sums relative to new_m >= m."""
    d = tl.maximum(m - new_m, FLOOR)
    e = exp_scaled(d, True)
    t = tl.fma(d, u, t) * e * UNSCALE
    u = u * e * UNSCALE
    if STATISTICS:
        q = q * e * UNSCALE * e * UNSCALE
    return u, t, q


@triton.jit
def champion_terms(champions, m, STATISTICS: tl.constexpr):
    """Each champion's terms u, t, q of the sums relative to the largest of them, m; whether it
    equals m (then u and q are 0); and itself where it is below m. A NaN's t is NaN."""
    d = tl.maximum(champions - tl.maximum(m, -LARGEST), FLOOR, propagate_nan=NAN_WINS)
    e = exp_scaled(d, True)
    below = champions < m
    u = tl.where(below, e, 0.0)
    q = u
    second = u
    if STATISTICS:
        q = u * u
        second = tl.where(below, champions, -INF)
    return u, e * d, q, tl.where(below, 0, 1), second


@triton.jit
def leave_one_out(u, q, ties, second, m, STATISTICS: tl.constexpr):
    """u, q and the second largest value, once all but one of `ties` maxima are added."""
    spare = (ties - 1).to(tl.float32)
    u = tl.fma(spare, SCALE, u)
    if STATISTICS:
        q = tl.fma(spare, SCALE * SCALE, q)
        second = tl.where(ties > 1, m, second)
    return u, q, second


@triton.jit
def merge(champions, u, t, q, second, STATISTICS: tl.constexpr):
    """One row's (m, u, t, q, second) from parts: each part's maximum and its sums, all (P,)."""
    m = tl.max(champions, 0)
    top_u, top_t, top_q, ties, top_second = champion_terms(champions, m, STATISTICS)
    u, t, q = rescale(champions, tl.maximum(m, -LARGEST), u, t, q, STATISTICS)
    u = tl.sum(u + top_u, 0)
    t = tl.sum(t + top_t, 0)
    ties = tl.sum(ties, 0)
    if STATISTICS:
        q = tl.sum(q + top_q, 0)
        second = tl.max(tl.maximum(second, top_second), 0)
    else:
        q = u
        second = u
    u, q, second = leave_one_out(u, q, ties, second, m, STATISTICS)
    return m, u, t, q, second
