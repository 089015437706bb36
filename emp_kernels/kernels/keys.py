"""Scores as uint32 keys in the order of selection, and the k-th largest of them."""

import triton
import triton.language as tl

from .numerics import INF


@triton.jit
def order_key(score, VALID_ONLY: tl.constexpr):
    """A float32 score's order key as uint32: larger for higher scores, -0.0 as +0.0, NaN as 0.

    With VALID_ONLY an ignored row's -inf is 0 as well; every other score's key is above 0.
    """
    bits = score.to(tl.uint32, bitcast=True)
    bits = tl.where(bits == 0x80000000, 0, bits).to(tl.uint32)  # adding 0.0 may flush
    key = bits ^ tl.where(bits >> 31 != 0, 0xFFFFFFFF, 0x80000000).to(tl.uint32)
    key = tl.where(score == score, key, 0)
    if VALID_ONLY:
        key = tl.where(score == -INF, 0, key)
    return key.to(tl.uint32)


@triton.jit
def score_of(key):
    """The score of a key > 0."""
    bits = key ^ tl.where(key >> 31 != 0, 0x80000000, 0xFFFFFFFF).to(tl.uint32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _reaching(keys, one, two, three):
    """How many of keys (T,), T < 2^16, are at least each of three candidates; the counts are packed
    into one sum for few keys, two for more."""
    first = (keys >= one).to(tl.uint32)
    second = (keys >= two).to(tl.uint32)
    third = (keys >= three).to(tl.uint32)
    if keys.shape[0] < 1024:
        counts = tl.sum(first + (second << 10) + (third << 20), 0)
        reaching = (counts & 1023, (counts >> 10) & 1023, counts >> 20)
    else:
        counts = tl.sum(first + (second << 16), 0)
        reaching = (counts & 0xFFFF, counts >> 16, tl.sum(third, 0))
    return reaching


@triton.jit
def kth_largest(keys, k):
    """The k-th largest of keys (T,), 1 <= k <= T < 2^16, two bits at a time, by counting the keys
    that reach each of the three next candidates. For keys (T, 1) and k (R,), the k[r]-th largest
    for each r, (R,)."""
    k = k.to(tl.uint32)
    kth = k * 0
    for i in range(16):
        step = (k * 0 + 1) << (30 - 2 * i)
        one, two, three = _reaching(keys, kth + step, kth + 2 * step, kth + 3 * step)
        digit = (one >= k).to(tl.uint32) + (two >= k).to(tl.uint32) + (three >= k).to(tl.uint32)
        kth += digit * step
    return kth
