"""Scoring, one row per program or per several programs: the row streams through registers once.

For many classes. Each of LANES threads reads V columns at a time and keeps its own running maximum
and sums, so that threads communicate only at the end of the row. If there are too few rows to fill
the chip, PARTS programs share a row: each stores its part's sums, and the last to finish merges
them.
"""

import triton
import triton.language as tl

from .numerics import INF, LARGEST
from .plan import ONCE
from .row_results import label_of, store_scores, store_statistics, store_sums
from .select_small import finish_call, take_ticket
from .sums import FAR, keep_largest, loser_sums, lowest_top, merge, rescale, settle, widened
from .work import ROW_TICKETS


@triton.jit
def absorb(
    champions, places, m, u, t, q, second, tiles, first, TILES: tl.constexpr,
    STATISTICS: tl.constexpr, COMPENSATED: tl.constexpr,
):  # fmt: skip
    """Add TILES tiles (L, V), from the lane's column `first` on, to each lane's champions and their
    columns (L, V), to their maximum m (finite while all logits so far are -inf) and to the sums
    relative to it (L,)."""
    WIDTH: tl.constexpr = champions.shape[0] * champions.shape[1]
    champions, places, losers = keep_largest(
        champions, places, tiles, first, WIDTH, TILES, STATISTICS
    )
    values = widened(champions)
    new_m = tl.maximum(m, tl.max(values, 1))
    u, t, q = rescale(m, new_m, u, t, q, STATISTICS)
    new_u, new_t, new_q, new_second = loser_sums(
        losers, new_m[:, None], values, TILES, STATISTICS, COMPENSATED
    )
    u += tl.sum(new_u, 1)
    t += tl.sum(new_t, 1)
    if STATISTICS:
        q += tl.sum(new_q, 1)
        second = tl.maximum(second, tl.max(new_second, 1))
    return champions, places, new_m, u, t, q, second


@triton.jit(**ONCE)
def score_stream(
    logits, labels, ids, out, correct, prediction, work, indices, threshold,
    state_score, state_loss, state_entropy, state_updates, state_selections, state_seen_at,
    state_clock, claims, parts,
    n, rows_per_group, group_stride, row_stride, vectors, classes, misaligned,
    beta, ignore_index, num_samples, keep,
    V: tl.constexpr, RAGGED: tl.constexpr, GROUPED: tl.constexpr, IGNORE: tl.constexpr,
    STATISTICS: tl.constexpr, SUMS: tl.constexpr, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr,
    SELECT: tl.constexpr, COMPENSATED: tl.constexpr,
    PARTS: tl.constexpr, LANES: tl.constexpr, TILES: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """See launch.score for the arguments, which both scoring kernels share."""
    row = tl.program_id(0).to(tl.int64) // PARTS
    part = tl.program_id(0) % PARTS
    y, known, counts = label_of(labels, row, row < n, classes, ignore_index, IGNORE)

    if GROUPED:
        start = row // rows_per_group * group_stride + row % rows_per_group * row_stride
    else:
        start = row * row_stride
    z_y = tl.load(logits + start + y, mask=known, other=float("nan")).to(tl.float32)

    # Columns [head, head + vectors * V) start at a multiple of V elements and are read V at a time;
    # without RAGGED these are all columns. The remaining few are the edge.
    head = start * 0
    body = tl.multiple_of(start + misaligned, V)
    if RAGGED:
        head = (V - (start + misaligned) % V) % V
        body = tl.multiple_of(start + misaligned + head, V)
    base = tl.multiple_of(
        logits - misaligned, V * (logits.dtype.element_ty.primitive_bitwidth // 8)
    )
    columns = tl.arange(0, LANES)[:, None] * V + tl.arange(0, V)[None, :]
    pointers = base + body + columns

    WIDTH: tl.constexpr = LANES * V
    step: tl.constexpr = LANES * TILES
    share = tl.cdiv(tl.cdiv(vectors, step), PARTS) * step
    first = part * share
    stop = tl.minimum(first + share, vectors)
    stop = tl.where(counts, stop, first)  # an ignored row is not read
    steps = tl.maximum(stop - first, 0) // step

    champions = tl.full([LANES, V], -INF, tl.float32).to(logits.dtype.element_ty)
    m = tl.full([LANES], -LARGEST, tl.float32)
    u = tl.zeros([LANES], tl.float32)
    t = tl.zeros([LANES], tl.float32)
    q = tl.zeros([LANES], tl.float32)
    second = tl.full([LANES], -INF, tl.float32)
    places = tl.zeros([LANES, V], tl.int32)
    for i in range(steps):
        offset = (first + i * step) * V
        tiles = ()
        for j in tl.static_range(TILES):
            z = tl.load(pointers + offset + j * WIDTH)
            tiles = tiles + (z,)
        champions, places, m, u, t, q, second = absorb(
            champions, places, m, u, t, q, second, tiles, offset, TILES, STATISTICS, COMPENSATED
        )
    # The rest is less than a step; a few loads at a time hide more latency than one.
    for offset in range((first + steps * step) * V, stop * V, WIDTH * TAIL):
        tiles = ()
        for j in tl.static_range(TAIL):
            column = offset + j * WIDTH + columns
            z = tl.load(pointers + offset + j * WIDTH, mask=column < stop * V, other=-INF)
            tiles = tiles + (z,)
        champions, places, m, u, t, q, second = absorb(
            champions, places, m, u, t, q, second, tiles, offset, TAIL, STATISTICS, COMPENSATED
        )
    places += (head + columns).to(tl.int32)
    if RAGGED:
        edge_columns = (columns + tl.where(columns < head, 0, vectors * V)).to(tl.int32)
        end = tl.where(counts & (part == PARTS - 1), classes, 0)  # the last part reads the edge
        readable = (columns < 2 * V) & (edge_columns < end)
        z = tl.load(logits + start + edge_columns, mask=readable, other=-INF)
        if STATISTICS:
            ties = widened(z) == widened(champions)
            places = tl.where(ties, tl.minimum(places, edge_columns), places)
        champions, places, m, u, t, q, second = absorb(
            champions, places, m, u, t, q, second, (z,), edge_columns, 1, STATISTICS, COMPENSATED
        )

    lane_m, u, t, q, second = settle(widened(champions), u, t, q, second, STATISTICS)
    row_m, row_u, row_t, row_q, row_second = merge(lane_m, u, t, q, second, STATISTICS)
    row_top = row * 0
    if STATISTICS:
        row_top = tl.min(lowest_top(widened(champions), row_m, places), 0)
    complete = True
    if PARTS > 1:
        here = parts + row * 6 * PARTS
        tl.store(here + part, row_m)
        tl.store(here + PARTS + part, row_u)
        tl.store(here + 2 * PARTS + part, row_t)
        if STATISTICS:
            tl.store(here + 3 * PARTS + part, row_q)
            tl.store(here + 4 * PARTS + part, row_second)
            tl.store(here + 5 * PARTS + part, row_top.to(tl.float32, bitcast=True))
        complete = take_ticket(work, ROW_TICKETS + row, PARTS)
        if complete:
            all_parts = here + tl.arange(0, PARTS)
            part_m = tl.load(all_parts, cache_modifier=".cg")
            part_u = tl.load(all_parts + PARTS, cache_modifier=".cg")
            part_t = tl.load(all_parts + 2 * PARTS, cache_modifier=".cg")
            part_q = part_u
            part_second = part_u
            if STATISTICS:
                part_q = tl.load(all_parts + 3 * PARTS, cache_modifier=".cg")
                part_second = tl.load(all_parts + 4 * PARTS, cache_modifier=".cg")
            row_m, row_u, row_t, row_q, row_second = merge(
                part_m, part_u, part_t, part_q, part_second, STATISTICS
            )
            if STATISTICS:
                part_top = tl.load(all_parts + 5 * PARTS, cache_modifier=".cg")
                part_top = part_top.to(tl.int32, bitcast=True)
                row_top = tl.min(tl.where(part_m == row_m, part_top, FAR), 0)

    if complete:
        if STATISTICS:
            store_statistics(
                row_m, row_u, row_t, row_q, row_second, row_top, y, z_y, known, counts,
                row, row < n, out, correct, prediction, n,
            )  # fmt: skip
        elif SUMS:
            store_sums(row_m, row_u, row_t, z_y, counts, row, row < n, out, n)
        else:
            store_scores(
                row_m, row_u, row_t, z_y, known, counts, row, row < n, out, work, ids, beta, n,
                num_samples, HAS_IDS,
            )  # fmt: skip
    if SELECT:
        finish_call(
            out, work, ids, indices, threshold,
            state_score, state_loss, state_entropy, state_updates, state_selections, state_seen_at,
            state_clock, claims, num_samples, n, keep, HAS_IDS, HAS_STATE, SELECT,
        )  # fmt: skip
