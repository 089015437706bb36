"""The sums over one row of logits, leaving one maximal element out, and how parts combine.

For a set of logits with maximum m: u = sum exp(z - m) - 1, t = sum exp(z - m) (z - m) and
q = sum exp(z - m)^2 - 1, all times a power of 2^48 (numerics). Leaving one maximal element out
keeps them accurate near zero. No element needs a test for it: of two values the smaller is added to
the sums and the larger is kept (`keep_largest`), so only the last few, the champions, are handled
at the end (`champion_terms`, `leave_one_out`). Values are compared in their own dtype, two 16-bit
ones at once; only the smaller ones are converted to float32.
"""

import triton
import triton.language as tl

from .numerics import FLOOR, INF, LARGEST, NVIDIA, SCALE, UNSCALE, exp_scaled

FAR = tl.constexpr(2**31 - 1)  # past every column
NAN_WINS = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _sorted_pair(a, b):
    """The elementwise minimum and maximum of a and b, in their dtype, both propagating NaN.

    Two 16-bit values share a register, and one instruction compares both.
    """
    if NVIDIA and a.numel > 1 and a.dtype == tl.bfloat16:
        pair = tl.inline_asm_elementwise(
            "min.NaN.bf16x2 $0, $2, $3; max.NaN.bf16x2 $1, $2, $3;",
            "=&r,=r,r,r", [a, b], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
    elif NVIDIA and a.numel > 1 and a.dtype == tl.float16:
        pair = tl.inline_asm_elementwise(
            "min.NaN.f16x2 $0, $2, $3; max.NaN.f16x2 $1, $2, $3;",
            "=&r,=r,r,r", [a, b], dtype=(tl.float16, tl.float16), is_pure=True, pack=2,
        )  # fmt: skip
    else:
        pair = (
            tl.minimum(a, b, propagate_nan=NAN_WINS).to(a.dtype),
            tl.maximum(a, b, propagate_nan=NAN_WINS).to(a.dtype),
        )
    return pair


@triton.jit
def widened(z):
    """Logits as float32; two packed bfloat16 take one operation each."""
    if NVIDIA and z.numel > 1 and z.dtype == tl.bfloat16:
        z = tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;",
            "=&r,=r,r", [z], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    return z.to(tl.float32)


@triton.jit
def keep_largest(
    champions, positions, tiles, first, WIDTH: tl.constexpr, TILES: tl.constexpr,
    STATISTICS: tl.constexpr,
):  # fmt: skip
    """The elementwise maximum of `champions` and all `tiles`, and the TILES smaller values, in the
    dtype of the logits. A NaN stays the champion. With STATISTICS, `positions` is the start column
    of the first tile with the champion: tile i starts at `first` + i * WIDTH."""
    losers = ()
    for i in tl.static_range(TILES):
        if STATISTICS:
            rises = widened(tiles[i]) > widened(champions)
            positions = tl.where(rises, first + i * WIDTH, positions)
        loser, champions = _sorted_pair(champions, tiles[i])
        losers = losers + (loser,)
    return champions, positions, losers


@triton.jit
def lowest_top(champions, m, columns):
    """The lowest column of a champion that equals the maximum m; FAR if there is none, as with a
    NaN."""
    return tl.min(tl.where(champions == m, columns, FAR), 1)


@triton.jit
def loser_sums(
    losers, m, like, TILES: tl.constexpr, STATISTICS: tl.constexpr, COMPENSATED: tl.constexpr
):
    """The elementwise sums u, t and q relative to m (finite) over TILES values <= m, and their
    maximum, shaped `like`."""
    u = tl.zeros_like(like)
    t = u
    q = u
    second = u - INF
    for i in tl.static_range(TILES):
        z = widened(losers[i])
        d = tl.maximum(z - m, FLOOR)
        e = exp_scaled(d, COMPENSATED)
        if i == 0:
            u = e
            t = e * d
        else:
            u += e
            t = tl.fma(e, d, t)
        if STATISTICS:
            q = tl.fma(e, e, q)
            second = tl.maximum(second, z)
    return u, t, q, second


@triton.jit
def rescale(m, new_m, u, t, q, STATISTICS: tl.constexpr):
    """Convert sums relative to m to sums relative to new_m >= m."""
    d = tl.maximum(m - new_m, FLOOR)
    e = exp_scaled(d, True)
    t = tl.fma(d, u, t) * e * UNSCALE
    u = u * e * UNSCALE
    if STATISTICS:
        q = q * (e * UNSCALE) * (e * UNSCALE)
    return u, t, q


@triton.jit
def champion_terms(champions, m, STATISTICS: tl.constexpr):
    """Each champion's terms u, t, q relative to their maximum m, whether it equals m (then u and q
    are 0), and its value if it is below m. A NaN's t is NaN."""
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
    """u, q and the second largest value after adding all but one of the `ties` maxima."""
    spare = (ties - 1).to(tl.float32)
    u = tl.fma(spare, SCALE, u)
    if STATISTICS:
        q = tl.fma(spare, SCALE * SCALE, q)
        second = tl.where(ties > 1, m, second)
    return u, q, second


@triton.jit
def settle(champions, u, t, q, second, STATISTICS: tl.constexpr):
    """The maximum m (P,) of champions (P, V), and the sums relative to it (P,) with the champions'
    terms added, except for one maximal one."""
    m = tl.max(champions, 1)
    top_u, top_t, top_q, ties, top_second = champion_terms(champions, m[:, None], STATISTICS)
    u += tl.sum(top_u, 1)
    t += tl.sum(top_t, 1)
    if STATISTICS:
        q += tl.sum(top_q, 1)
        second = tl.maximum(second, tl.max(top_second, 1))
    u, q, second = leave_one_out(u, q, tl.sum(ties, 1), second, m, STATISTICS)
    return m, u, t, q, second


@triton.jit
def merge(champions, u, t, q, second, STATISTICS: tl.constexpr):
    """One row's (m, u, t, q, second) from the maxima and sums (P,) of its parts."""
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
