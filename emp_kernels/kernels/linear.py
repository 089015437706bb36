"""Scores of a product, hidden @ weightᵀ + bias: each tile is reduced as soon as it is computed.

A program takes ROWS rows and a part of the classes, in tiles of COLUMNS; PARTS programs share rows
and store their sums, which a second kernel merges. The label's logit is taken from the tile that
contains it: computed separately it could differ from the row's maximum by a rounding error, which
would dominate a confident row's loss.
"""

import triton
import triton.language as tl

from .numerics import FLOOR, INF, LARGEST, SCALE, exp_scaled
from .row_results import label_of, store_scores
from .sums import NAN_WINS, leave_one_out, merge, rescale


@triton.jit
def add_tile(z, m, u, t, ties, COMPENSATED: tl.constexpr):
    """Add a tile z (R, V) to each row's maximum m, the sums u and t over the elements below it, and
    the number of `ties` equal to it."""
    new_m = tl.maximum(m, tl.max(z, 1))
    finite_m = tl.maximum(new_m, -LARGEST)  # while all logits so far are -inf
    u = tl.where(m < new_m, tl.fma(ties.to(tl.float32), SCALE, u), u)
    ties = tl.where(m < new_m, 0, ties)
    u, t, _ = rescale(m, finite_m, u, t, u, False)
    d = tl.maximum(z - finite_m[:, None], FLOOR, propagate_nan=NAN_WINS)
    e = exp_scaled(d, COMPENSATED)
    below = z < new_m[:, None]
    u += tl.sum(tl.where(below, e, 0.0), 1)
    t += tl.sum(e * d, 1)  # 0 at the maximum, NaN for NaN
    ties += tl.sum(tl.where(below, 0, 1), 1)
    return new_m, u, t, ties


@triton.jit(do_not_specialize=["n", "vectors", "classes", "ignore_index"])
def score_tiles(
    hidden, weight, bias, labels, order, counted, parts,
    n, vectors, classes, hidden_stride, weight_stride, ignore_index,
    V: tl.constexpr, IGNORE: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, COMPENSATED: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Store m, u, t and the label's logit of each row and part in parts (PARTS, 4, n).

    Rows of hidden and weight are `vectors` of V elements (EVEN: a multiple of DEPTH of them) and
    start at multiples of V.
    With IGNORE, rows are taken in `order`, of which the first `counted` () count; the parts of the
    others are not written. WIDEN is for the interpreter, which has no bfloat16 products.
    """
    blocks = tl.cdiv(n, ROWS)
    block = tl.program_id(0) % blocks  # concurrent programs share tiles of weight
    part = tl.program_id(0) // blocks
    stop = n
    if IGNORE:
        stop = tl.load(counted)
    rows = block * ROWS + tl.arange(0, ROWS)
    inside = rows < stop
    if IGNORE:
        rows = tl.load(order + rows, mask=inside, other=0)
    rows = tl.where(inside, rows.to(tl.int64), 0)  # padding rows read row 0
    y, label_in_range, _ = label_of(labels, rows, inside, classes, ignore_index, IGNORE)

    share = tl.cdiv(tl.cdiv(classes, COLUMNS), PARTS) * COLUMNS
    first = part * share
    last = tl.minimum(first + share, classes)
    last = tl.where(block * ROWS < stop, last, first)
    ks = tl.arange(0, DEPTH)
    hidden_rows = hidden + tl.multiple_of(rows * hidden_stride, V)
    m = tl.full([ROWS], -INF, tl.float32)
    u = tl.zeros([ROWS], tl.float32)
    t = tl.zeros([ROWS], tl.float32)
    z_y = tl.zeros([ROWS], tl.float32)
    ties = tl.zeros([ROWS], tl.int32)
    for start in range(first, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        present = columns < last
        starts = tl.minimum(columns, classes - 1).to(tl.int64) * weight_stride
        weight_rows = weight + tl.multiple_of(starts, V)
        z = tl.zeros([ROWS, COLUMNS], tl.float32)
        for k in tl.range(0, vectors * V, DEPTH, num_stages=STAGES):
            if EVEN:
                a = tl.load(hidden_rows[:, None] + (k + ks)[None, :])
                b = tl.load(weight_rows[None, :] + (k + ks)[:, None])
            else:
                within = k + ks < vectors * V
                a = tl.load(
                    hidden_rows[:, None] + (k + ks)[None, :], mask=within[None, :], other=0.0
                )
                b = tl.load(
                    weight_rows[None, :] + (k + ks)[:, None], mask=within[:, None], other=0.0
                )
            if WIDEN:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            z = tl.dot(a, b, z, input_precision=PRECISION)
        if HAS_BIAS:
            z += tl.load(bias + columns, mask=present, other=0.0).to(tl.float32)[None, :]
        z = tl.where(present[None, :], z, -INF)
        here = label_in_range & (y >= start) & (y < start + COLUMNS)
        if tl.sum(here.to(tl.int32), 0) > 0:
            z_y += tl.sum(tl.where(columns[None, :] == tl.where(here, y, -1)[:, None], z, 0.0), 1)
        m, u, t, ties = add_tile(z, m, u, t, ties, COMPENSATED)

    u, _, _ = leave_one_out(u, u, tl.maximum(ties, 1), u, m, False)  # no columns: no ties
    here = parts + part.to(tl.int64) * 4 * n + rows
    tl.store(here, m, mask=inside)
    tl.store(here + n, u, mask=inside)
    tl.store(here + 2 * n, t, mask=inside)
    tl.store(here + 3 * n, z_y, mask=inside)


@triton.jit(do_not_specialize=["n", "classes", "ignore_index"])
def finish_scores(
    parts, labels, out, n, classes, beta, ignore_index,
    IGNORE: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """out (4, n) from parts (PARTS, 4, n)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    _, label_in_range, counts = label_of(labels, rows, inside, classes, ignore_index, IGNORE)
    each = parts + tl.arange(0, PARTS)[:, None].to(tl.int64) * 4 * n + rows[None, :]
    mask = counts[None, :] & (tl.arange(0, PARTS) >= 0)[:, None]
    part_m = tl.load(each, mask=mask, other=-INF)
    part_u = tl.load(each + n, mask=mask, other=0.0)
    part_t = tl.load(each + 2 * n, mask=mask, other=0.0)
    z_y = tl.sum(tl.load(each + 3 * n, mask=mask, other=0.0), 0)
    m, u, t, _, _ = merge(part_m, part_u, part_t, part_u, part_m, False)
    z_y = tl.where(label_in_range, z_y, float("nan"))
    store_scores(
        m, u, t, z_y, label_in_range, counts, rows, inside, out, out, out, beta, n, n, False, False
    )
