"""Scores as uint32 keys in the order of selection, and the k-th largest of them."""

import triton
import triton.language as tl

from .numerics import INF


@triton.jit
def order_key(score, VALID_ONLY: tl.constexpr):
    """A float32 score's rank as uint32: larger for the higher score, -0.0 as +0.0, NaN as 0.

    With VALID_ONLY an ignored row's -inf is 0 as well; every other score's key is above 0.
    """
    bits = (score + 0.0).to(tl.uint32, bitcast=True)  # -0.0 + 0.0 is +0.0
    key = bits ^ tl.where(bits >> 31 != 0, 0xFFFFFFFF, 0x80000000).to(tl.uint32)
    key = tl.where(score == score, key, 0)
    if VALID_ONLY:
        key = tl.where(score == -INF, 0, key)
    return key.to(tl.uint32)


@triton.jit
def score_of(key):
    """The score whose key this is (key > 0)."""
    bits = key ^ tl.where(key >> 31 != 0, 0x80000000, 0xFFFFFFFF).to(tl.uint32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def kth_largest(keys, k):
    """The k-th largest of keys (T,), 1 <= k <= T < 2^20: two bits at a time, by how many keys
    reach each of the three candidates above the bits so far. One sum holds all three counts."""
    mask: tl.constexpr = (1 << 20) - 1
    kth = tl.zeros((), tl.uint32)
    one = kth + 1
    for i in tl.static_range(16):
        step = one << (30 - 2 * i)
        reaches = (keys >= kth + step).to(tl.int64)
        reaches += (keys >= kth + 2 * step).to(tl.int64) << 20
        reaches += (keys >= kth + 3 * step).to(tl.int64) << 40
        counts = tl.sum(reaches, 0)
        digit = ((counts & mask) >= k).to(tl.uint32) + (((counts >> 20) & mask) >= k).to(tl.uint32)
        digit += ((counts >> 40) >= k).to(tl.uint32)
        kth += digit * step
    return kth
