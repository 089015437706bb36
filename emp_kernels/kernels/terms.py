"""Terms of losses with options (emp_kernels/terms.py) from one read, and their gradient."""

import triton
import triton.language as tl

from .adjusted import distance, parts_of, scales_of, weights_of
from .gradient import minus_one_plus_exp
from .numerics import FLOOR, INF, SCALE, UNSCALE, exp_scaled, log1p
from .row_results import label_of
from .sums import NAN_WINS

SIZES = ["n", "rows_per_group", "group_stride", "row_stride", "probability_stride", "classes"]
SIZES += ["vectors", "ignore_index"]


@triton.jit
def starts_of(
    rows, rows_per_group, group_stride, row_stride, V: tl.constexpr, GROUPED: tl.constexpr
):
    """Start offsets of rows, multiples of V."""
    start = rows * row_stride
    if GROUPED:
        start = rows // rows_per_group * group_stride + rows % rows_per_group * row_stride
    return tl.multiple_of(start, V)


@triton.jit(do_not_specialize=SIZES)
def row_terms(
    logits, labels, highs, lows, weight, probabilities, out,
    n, rows_per_group, group_stride, row_stride, probability_stride, vectors, classes, ignore_index,
    high, low, to_cap, share, uniform,
    V: tl.constexpr, GROUPED: tl.constexpr, IGNORE: tl.constexpr, CAPPED: tl.constexpr,
    PER_ROW: tl.constexpr, TARGETS: tl.constexpr, WEIGHTED: tl.constexpr, SOFT: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out (9, N): loss, entropy, lse, target, total, others, maximum, above and mean of each row.

    Tiles are reduced one at a time relative to the running maximum m; u and t, scaled by 2^48, are
    sums over the elements below it, `ties` is the number of elements equal to it, and `others` the
    sum of the weights of all elements but one maximal one."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    y, label_in_range, counts = label_of(labels, rows, inside, classes, ignore_index, IGNORE)
    high, low = scales_of(highs, lows, high, low, rows, inside, PER_ROW)
    start = starts_of(rows, rows_per_group, group_stride, row_stride, V, GROUPED)
    probability_start = tl.multiple_of(rows * probability_stride, V)
    m = tl.full([ROWS], -INF, tl.float32)
    u = tl.zeros([ROWS], tl.float32)
    t = tl.zeros([ROWS], tl.float32)
    ties = tl.zeros([ROWS], tl.int32)
    dot = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    others = tl.zeros([ROWS], tl.float32)
    top_weight = tl.zeros([ROWS], tl.float32)
    label_dot = tl.zeros([ROWS], tl.float32)
    label_total = tl.zeros([ROWS], tl.float32)
    for first in range(0, classes, WIDTH):
        columns = first + tl.arange(0, WIDTH)
        mask = counts[:, None] & (columns < vectors * V)[None, :]
        z = tl.load(logits + start[:, None] + columns[None, :], mask=mask, other=-INF)
        z = z.to(tl.float32)
        new_m = tl.maximum(m, tl.max(tl.where(mask, z, -INF), 1))
        against = new_m
        if not CAPPED:
            against = tl.where(new_m == -INF, 0.0, new_m)
        grows = (m < new_m) | (ties == 0)
        m_whole, m_rest, _ = parts_of(m, to_cap, CAPPED)
        new_whole, new_rest, _ = parts_of(against, to_cap, CAPPED)
        delta = distance(m_whole, m_rest, new_whole, new_rest, high, low, CAPPED)
        delta = tl.where((ties > 0) & grows, delta, 0.0)
        fall = tl.maximum(delta, FLOOR)  # after tiles of only -inf: f is 0
        f = exp_scaled(fall, True) * UNSCALE
        joined = tl.where(grows, tl.fma(ties.to(tl.float32), SCALE, u), u)
        u = joined * f
        t = (t + fall * tl.where(grows, joined, 0.0)) * f
        dot += tl.where(total == 0.0, 0.0, total * delta)
        label_dot += tl.where(label_total == 0.0, 0.0, label_total * delta)

        whole, rest, _ = parts_of(z, to_cap, CAPPED)
        d = distance(
            whole, rest, new_whole[:, None], new_rest[:, None], high[:, None], low[:, None], CAPPED
        )
        d = tl.minimum(d, 0.0, propagate_nan=NAN_WINS)  # tanh's rounding is not monotone
        reached = tl.where(mask, tl.maximum(d, FLOOR, propagate_nan=NAN_WINS), FLOOR)
        e = exp_scaled(reached, True)
        u += tl.sum(tl.where(z < new_m[:, None], e, 0.0), 1)
        equal = (z == new_m[:, None]) & mask
        t += tl.sum(tl.where(equal, 0.0, e * reached), 1)  # NaN for NaN
        found = tl.sum(equal.to(tl.int32), 1)
        if TARGETS:
            q, p = weights_of(
                weight, probabilities, probability_start, columns, mask, share, uniform, WEIGHTED,
                SOFT,
            )  # fmt: skip
            dot += tl.sum(tl.where(q == 0.0, 0.0, q * d), 1)
            total += tl.sum(q, 1)
            label_dot += tl.sum(tl.where(p == 0.0, 0.0, p * d), 1)
            label_total += tl.sum(p, 1)
            place = tl.min(tl.where(equal, columns[None, :], 2147483647), 1)
            place = tl.where(grows, place, 2147483647)
            here = columns[None, :] == place[:, None]
            taken = grows & (found > 0)
            others += tl.sum(tl.where(here, 0.0, q), 1) + tl.where(taken, top_weight, 0.0)
            top_weight = tl.where(taken, tl.sum(tl.where(here, q, 0.0), 1), top_weight)
        ties = tl.where(grows, 0, ties) + found
        m = new_m

    u = (u + (tl.maximum(ties, 1) - 1).to(tl.float32) * SCALE) * UNSCALE
    broken = t != t
    above = log1p(u)
    mean = tl.div_rn(t * UNSCALE, 1.0 + u)
    m_whole, m_rest, _ = parts_of(m, to_cap, CAPPED)
    zero = tl.zeros([ROWS], tl.float32)
    lse = distance(m_whole, m_rest, zero, zero, high, low, CAPPED) + above
    if SOFT:
        loss = label_total * above - label_dot
        label_in_range = counts
    else:
        z_y = tl.load(logits + start + y, mask=counts, other=0.0).to(tl.float32)
        y_whole, y_rest, _ = parts_of(z_y, to_cap, CAPPED)
        loss = above - distance(y_whole, y_rest, m_whole, m_rest, high, low, CAPPED)
    bad = broken | (label_in_range == 0)
    if not CAPPED:  # an infinite maximum: no softmax, unless other shards have finite columns
        bad = bad | (tl.abs(m) == INF)
    column = n.to(tl.int64)
    for i in tl.static_range(9):
        value = (
            loss, above - mean, lse, total * above - dot, total, others, m, above, mean,
        )[i]  # fmt: skip
        if i < 2:
            value = tl.where(bad, float("nan"), value)
        else:
            value = tl.where(broken, float("nan"), value)
        tl.store(out + i * column + rows, tl.where(counts, value, 0.0), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def terms_gradient(
    logits, labels, highs, lows, weight, probabilities, loss, lse, maximum, above, mean, others,
    by_probability, by_entropy, by_target, rest_at, out,
    n, rows_per_group, group_stride, row_stride, probability_stride, vectors, classes,
    high, low, to_cap, share, uniform,
    V: tl.constexpr, GROUPED: tl.constexpr, CAPPED: tl.constexpr, PER_ROW: tl.constexpr,
    REUSED: tl.constexpr, ENTROPY: tl.constexpr, TARGETS: tl.constexpr, WEIGHTED: tl.constexpr,
    SOFT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out (N, C) = (A p_j + B p_j (d_j - mean) - S q_j - L [j = y]) d a_j / d z_j; a row whose
    coefficients are all 0 is zero and not read. With REUSED, loss and lse are reused and there is
    no maximum."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    a = tl.load(by_probability + rows, mask=inside, other=0.0)
    rest = tl.load(rest_at + rows, mask=inside, other=0.0)
    trained = (a != 0.0) | (rest != 0.0)
    if ENTROPY:
        b = tl.load(by_entropy + rows, mask=inside, other=0.0)
        trained = trained | (b != 0.0)
    if TARGETS:
        s = tl.load(by_target + rows, mask=inside, other=0.0)
        trained = trained | (s != 0.0)
    high, low = scales_of(highs, lows, high, low, rows, trained, PER_ROW)
    if REUSED:
        row_above = tl.load(lse + rows, mask=trained, other=0.0)
        m = row_above * 0.0  # NaN if there is no softmax
    else:
        row_above = tl.load(above + rows, mask=trained, other=0.0)
        m = tl.load(maximum + rows, mask=trained, other=0.0)
    start = starts_of(rows, rows_per_group, group_stride, row_stride, V, GROUPED)
    mask = trained[:, None] & (columns < vectors * V)[None, :]
    z = tl.load(logits + start[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    m_whole, m_rest, _ = parts_of(m, to_cap, CAPPED)
    whole, small, slope = parts_of(z, to_cap, CAPPED)
    d = distance(
        whole, small, m_whole[:, None], m_rest[:, None], high[:, None], low[:, None], CAPPED
    )
    row_loss = tl.load(loss + rows, mask=trained, other=0.0)
    row_above = tl.where(row_loss != row_loss, row_loss, row_above)  # invalid rows
    if not SOFT:
        y = tl.load(labels + rows, mask=trained, other=0).to(tl.int64)
    p = tl.exp(d - row_above[:, None])
    g = a[:, None] * p
    if TARGETS:
        q, _ = weights_of(
            weight, probabilities, tl.multiple_of(rows * probability_stride, V), columns, mask,
            share, uniform, WEIGHTED, SOFT,
        )  # fmt: skip
        g -= s[:, None] * q
    if SOFT:  # at the maximum, as p may round to 1
        others_there = tl.load(others + rows, mask=trained, other=0.0)
        there = rest + s * others_there + a * minus_one_plus_exp(-row_above)
        there = tl.where(row_above < 0.6, there, float("nan"))
        place = (z == m[:, None]) & (row_above < 0.6)[:, None]
    else:
        there = rest + a * minus_one_plus_exp(-row_loss) + m * 0.0
        place = columns[None, :] == y[:, None]
    g = tl.where(place, there[:, None], g)
    if ENTROPY:
        row_mean = tl.load(mean + rows, mask=trained, other=0.0)
        g += b[:, None] * p * (tl.maximum(d, -1e4) - row_mean[:, None])
    scale = high
    if CAPPED:
        scale = high * to_cap
    g = tl.where(mask, g * slope * scale[:, None], 0.0)
    target = out + tl.multiple_of(rows * classes, V)[:, None] + columns[None, :]
    tl.store(target, g, mask=inside[:, None] & (columns < vectors * V)[None, :])
