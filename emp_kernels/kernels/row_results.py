"""Computes loss, entropy, lse, score and statistics from a row's sums and stores them."""

import triton
import triton.language as tl

from .numerics import FLOOR, INF, LARGEST, UNSCALE, exp_scaled, log1p
from .work import BOTTOM, INVALID


@triton.jit
def label_of(labels, rows, inside, classes, ignore_index, IGNORE: tl.constexpr):
    """Each row's label clamped to a valid column, whether it is in range, and whether the row is to
    be read (not ignored)."""
    y = tl.load(labels + rows, mask=inside, other=0).to(tl.int64)
    counts = inside
    if IGNORE:
        counts = inside & (y != ignore_index)
    label_in_range = (y >= 0) & (y < classes) & counts
    return tl.where(label_in_range, y, 0), label_in_range, counts


@triton.jit
def loss_and_lse(m, log_s, t, z_y, label_in_range):
    """Loss and lse of a row, and whether it is invalid: a NaN or +inf logit, or no finite one."""
    infinite = tl.abs(m) == INF
    broken = infinite | (t != t)
    lse = tl.where(infinite, m, m + log_s)
    lse = tl.where((t != t) & (m != INF), float("nan"), lse)
    loss = tl.where(broken, lse - z_y, (m - z_y) + log_s)
    return tl.where(label_in_range, loss, float("nan")), lse, broken


@triton.jit
def store_scores(
    m, u, t, z_y, label_in_range, counts, rows, inside, out, work, ids, beta, n, num_samples,
    HAS_IDS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Stores score, loss, entropy and lse into out (4, N); with COUNT counts rows that nobody
    selects."""
    log_s = log1p(u * UNSCALE)
    loss, lse, broken = loss_and_lse(m, log_s, t, z_y, label_in_range)
    entropy = log_s - tl.div_rn(t * UNSCALE, 1.0 + u * UNSCALE)
    entropy = tl.where(label_in_range & (broken == 0), entropy, float("nan"))
    score = tl.fma(entropy, beta, loss)
    score = tl.where((tl.abs(loss) <= LARGEST) & (tl.abs(entropy) <= LARGEST), score, float("nan"))
    if HAS_IDS:  # an id out of range makes its row invalid
        sample = tl.load(ids + rows, mask=inside, other=0).to(tl.int64)
        score = tl.where((sample >= 0) & (sample < num_samples), score, float("nan"))
    score = tl.where(counts, score, -INF)
    tl.store(out + rows, score, mask=inside)
    column = n.to(tl.int64)
    tl.store(out + column + rows, tl.where(counts, loss, 0.0), mask=inside)
    tl.store(out + 2 * column + rows, tl.where(counts, entropy, 0.0), mask=inside)
    tl.store(out + 3 * column + rows, tl.where(counts, lse, 0.0), mask=inside)
    if COUNT:
        invalid = inside & (score != score)
        tl.atomic_add(work + INVALID + rows * 0, 1, mask=invalid, sem="relaxed")
        lowest = counts & (score == -INF)
        tl.atomic_add(work + BOTTOM + rows * 0, 1, mask=lowest, sem="relaxed")


@triton.jit
def store_sums(m, u, t, z_y, counts, rows, inside, out, n):
    """Store m, u, t and z_y into out (4, N); u and t are 0 where m is infinite, unless t is
    NaN."""
    infinite = tl.abs(m) == INF
    u = tl.where(infinite, 0.0, u * UNSCALE)
    t = tl.where(infinite & (t == t), 0.0, t * UNSCALE)
    for i in tl.static_range(4):
        value = (m, u, t, z_y)[i]
        tl.store(out + i * n.to(tl.int64) + rows, tl.where(counts, value, 0.0), mask=inside)


@triton.jit
def store_statistics(
    m,
    u,
    t,
    q,
    second,
    top,
    y,
    z_y,
    label_in_range,
    counts,
    rows,
    inside,
    out,
    correct,
    prediction,
    n,
):
    """Store loss, entropy, lse, confidence, el2n and margin into out (6, N), and correct and
    prediction (N,), from `top`, the lowest index of the maximum."""
    u *= UNSCALE
    log_s = log1p(u)
    loss, lse, broken = loss_and_lse(m, log_s, t, z_y, label_in_range)
    bad = broken | (label_in_range == 0)
    entropy = log_s - tl.div_rn(t * UNSCALE, 1.0 + u)

    at_maximum = z_y == m
    e_y = exp_scaled(tl.maximum(z_y - m, FLOOR), True) * UNSCALE
    p_y = tl.div_rn(e_y, 1.0 + u)
    p_not_y = tl.where(at_maximum, tl.div_rn(u, 1.0 + u), 1.0 - p_y)
    squares = q * UNSCALE * UNSCALE
    others = tl.where(at_maximum, squares, tl.maximum(1.0 + squares - e_y * e_y, 0.0))
    el2n = tl.sqrt(p_not_y * p_not_y + tl.div_rn(others, (1.0 + u) * (1.0 + u)))
    margin = z_y - tl.where(at_maximum, second, m)

    tl.store(out + rows, tl.where(counts, loss, 0.0), mask=inside)
    for i in tl.static_range(5):
        value = (entropy, lse, p_y, el2n, margin)[i]
        if i != 1:
            value = tl.where(bad, float("nan"), value)
        place = (i + 1) * n.to(tl.int64) + rows
        tl.store(out + place, tl.where(counts, value, 0.0), mask=inside)
    tl.store(correct + rows, (top == y) & (bad == 0) & counts, mask=inside)
    tl.store(prediction + rows, tl.where(counts & (broken == 0), top, 0), mask=inside)
