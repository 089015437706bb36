"""Scoring, several rows per program: whole rows are held in registers, and the maximum is taken
first.

For up to a few thousand classes. A program takes ROWS rows of TILES tiles of WIDTH columns.
"""

import triton
import triton.language as tl

from .numerics import INF, LARGEST
from .plan import ONCE
from .row_results import label_of, store_scores, store_statistics, store_sums
from .select_small import finish_call
from .sums import (
    champion_terms,
    keep_largest,
    leave_one_out,
    loser_sums,
    lowest_top,
    widened,
)


@triton.jit(**ONCE)
def score_rows(
    logits, labels, ids, out, correct, prediction, work, indices, threshold, invalid,
    state_score, state_loss, state_entropy, state_updates, state_selections, state_seen_at,
    state_clock, claims, n, rows_per_group, group_stride, row_stride, vectors, classes,
    beta, ignore_index, num_samples, keep,
    V: tl.constexpr, SPREAD: tl.constexpr, GROUPED: tl.constexpr, IGNORE: tl.constexpr,
    STATISTICS: tl.constexpr, SUMS: tl.constexpr, COUNT: tl.constexpr, HAS_IDS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    SELECT: tl.constexpr, BLOCK: tl.constexpr, COMPENSATED: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """See launch.score for the arguments, which both scoring kernels share."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    y, label_in_range, counts = label_of(labels, rows, inside, classes, ignore_index, IGNORE)

    if GROUPED:
        start = rows // rows_per_group * group_stride + rows % rows_per_group * row_stride
    else:
        start = rows * row_stride
    z_y = tl.load(logits + start + y, mask=label_in_range, other=float("nan")).to(tl.float32)

    columns = tl.arange(0, WIDTH)
    if SPREAD:
        stop = classes
        pointers = logits + start[:, None] + columns[None, :]
    else:
        stop = vectors * V
        itemsize: tl.constexpr = logits.dtype.element_ty.primitive_bitwidth // 8
        pointers = tl.multiple_of(logits + start, V * itemsize)[:, None] + columns[None, :]

    tiles = ()
    for i in tl.static_range(TILES):
        readable = counts[:, None] & (i * WIDTH + columns < stop)[None, :]
        z = tl.load(pointers + i * WIDTH, mask=readable, other=-INF)
        if i == 0:
            champions = z
        else:
            tiles = tiles + (z,)
    positions = tl.zeros([ROWS, WIDTH], tl.int32)
    champions, positions, losers = keep_largest(
        champions, positions, tiles, WIDTH, WIDTH, TILES - 1, STATISTICS
    )
    champions = widened(champions)
    m = tl.max(champions, 1)

    u, t, q, second = loser_sums(
        losers, tl.maximum(m, -LARGEST)[:, None], champions, TILES - 1, STATISTICS, COMPENSATED
    )
    top_u, top_t, top_q, ties, top_second = champion_terms(champions, m[:, None], STATISTICS)
    u = tl.sum(u + top_u, 1)
    t = tl.sum(t + top_t, 1)
    ties = tl.sum(ties, 1)
    if STATISTICS:
        q = tl.sum(q + top_q, 1)
        second = tl.max(tl.maximum(second, top_second), 1)
    else:
        q = u
        second = u
    u, q, second = leave_one_out(u, q, ties, second, m, STATISTICS)

    if STATISTICS:
        top = lowest_top(champions, m[:, None], positions + columns[None, :])
        store_statistics(
            m, u, t, q, second, top, y, z_y, label_in_range, counts, rows, inside, out, correct,
            prediction, n,
        )  # fmt: skip
    elif SUMS:
        store_sums(m, u, t, z_y, counts, rows, inside, out, n)
    else:
        store_scores(
            m, u, t, z_y, label_in_range, counts, rows, inside, out, work, ids, beta, n,
            num_samples, HAS_IDS, COUNT,
        )  # fmt: skip
        if SELECT:
            finish_call(
                out, work, ids, indices, threshold, invalid,
                state_score, state_loss, state_entropy, state_updates, state_selections,
                state_seen_at, state_clock, claims, num_samples, n, keep, HAS_IDS, HAS_STATE,
                SELECT, BLOCK,
            )  # fmt: skip
