"""Scoring, one row a program or one row for several: the row streams through registers once.

For many classes. Each of WIDTH positions keeps its own running maximum and sums, so that nothing
crosses threads before the end of the row. Where rows are too few to fill the chip, PARTS programs
share a row: each leaves its part's sums behind, and the last to come merges them.
"""

import triton
import triton.language as tl

from .numerics import INF, LARGEST
from .plan import SIZES
from .row_results import label_of, store_scores, store_statistics, store_sums
from .select_small import finish_call, take_ticket
from .sums import add_losers, keep_largest, merge, rescale
from .work import ROW_TICKETS


@triton.jit
def absorb(
    champions, u, t, q, second, tiles, TILES: tl.constexpr, STATISTICS: tl.constexpr,
    COMPENSATED: tl.constexpr,
):  # fmt: skip
    """Adds TILES tiles to each position's maximum and sums."""
    largest, losers = keep_largest(champions, tiles, TILES)
    m = tl.maximum(largest, -LARGEST)  # finite while all logits so far are -inf
    u, t, q = rescale(champions, m, u, t, q, STATISTICS)
    u, t, q, second = add_losers(losers, m, u, t, q, second, TILES, STATISTICS, COMPENSATED)
    return largest, u, t, q, second


@triton.jit
def largest_before(before, z, column, y):
    return tl.maximum(before, tl.where(column < y, z, -INF))


@triton.jit(do_not_specialize=SIZES)
def score_stream(
    logits, labels, ids, out, correct, work, indices, threshold,
    state_score, state_loss, state_entropy, state_updates, state_selections, state_seen_at,
    state_clock, parts,
    n, rows_per_group, group_stride, row_stride, vectors, classes, misaligned,
    beta, ignore_index, num_samples, keep,
    V: tl.constexpr, RAGGED: tl.constexpr, GROUPED: tl.constexpr, IGNORE: tl.constexpr,
    STATISTICS: tl.constexpr, SUMS: tl.constexpr, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr,
    FILL: tl.constexpr, SELECT: tl.constexpr, COMPENSATED: tl.constexpr,
    PARTS: tl.constexpr, WIDTH: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """launch.score says what the arguments are, which both scoring kernels share."""
    row = tl.program_id(0).to(tl.int64) // PARTS
    part = tl.program_id(0) % PARTS
    y, known, counts = label_of(labels, row, row < n, classes, ignore_index, IGNORE)

    if GROUPED:
        start = row // rows_per_group * group_stride + row % rows_per_group * row_stride
    else:
        start = row * row_stride
    z_y = tl.load(logits + start + y, mask=known, other=float("nan")).to(tl.float32)

    # Columns [head, head + vectors * V) start at a multiple of V elements and are read V at a
    # time; without RAGGED they are all columns. The few others are the edge.
    head = start * 0
    body = tl.multiple_of(start + misaligned, V)
    if RAGGED:
        head = (V - (start + misaligned) % V) % V
        body = tl.multiple_of(start + misaligned + head, V)
    base = tl.multiple_of(
        logits - misaligned, V * (logits.dtype.element_ty.primitive_bitwidth // 8)
    )
    columns = tl.arange(0, WIDTH)
    pointers = base + body + columns
    label_column = y - head

    step: tl.constexpr = WIDTH * TILES // V
    share = tl.cdiv(tl.cdiv(vectors, step), PARTS) * step
    first = part * share
    stop = tl.minimum(first + share, vectors)
    stop = tl.where(counts, stop, first)  # an ignored row is not read
    steps = tl.maximum(stop - first, 0) // step

    champions = tl.full([WIDTH], -INF, tl.float32)
    u = tl.zeros([WIDTH], tl.float32)
    t = tl.zeros([WIDTH], tl.float32)
    q = tl.zeros([WIDTH], tl.float32)
    second = tl.full([WIDTH], -INF, tl.float32)
    before = tl.full([WIDTH], -INF, tl.float32)
    for i in range(steps):
        offset = (first + i * step) * V
        tiles = ()
        for j in tl.static_range(TILES):
            z = tl.load(pointers + offset + j * WIDTH).to(tl.float32)
            tiles = tiles + (z,)
            if STATISTICS:
                before = largest_before(before, z, offset + j * WIDTH + columns, label_column)
        champions, u, t, q, second = absorb(
            champions, u, t, q, second, tiles, TILES, STATISTICS, COMPENSATED
        )
    for offset in range((first + steps * step) * V, stop * V, WIDTH):
        z = tl.load(pointers + offset, mask=offset + columns < stop * V, other=-INF).to(tl.float32)
        champions, u, t, q, second = absorb(
            champions, u, t, q, second, (z,), 1, STATISTICS, COMPENSATED
        )
        if STATISTICS:
            before = largest_before(before, z, offset + columns, label_column)
    if RAGGED:
        edge_columns = columns + tl.where(columns < head, 0, vectors * V)
        end = tl.where(counts & (part == PARTS - 1), classes, 0)  # the last part reads the edge
        readable = (columns < 2 * V) & (edge_columns < end)
        z = tl.load(logits + start + edge_columns, mask=readable, other=-INF)
        z = z.to(tl.float32)
        champions, u, t, q, second = absorb(
            champions, u, t, q, second, (z,), 1, STATISTICS, COMPENSATED
        )
        if STATISTICS:
            before = largest_before(before, z, edge_columns, y)

    row_m, row_u, row_t, row_q, row_second = merge(champions, u, t, q, second, STATISTICS)
    row_before = tl.max(before, 0)
    complete = True
    if PARTS > 1:
        here = parts + row * 6 * PARTS
        tl.store(here + part, row_m)
        tl.store(here + PARTS + part, row_u)
        tl.store(here + 2 * PARTS + part, row_t)
        if STATISTICS:
            tl.store(here + 3 * PARTS + part, row_q)
            tl.store(here + 4 * PARTS + part, row_second)
            tl.store(here + 5 * PARTS + part, row_before)
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
                row_before = tl.max(tl.load(all_parts + 5 * PARTS, cache_modifier=".cg"), 0)
            row_m, row_u, row_t, row_q, row_second = merge(
                part_m, part_u, part_t, part_q, part_second, STATISTICS
            )

    if complete:
        if STATISTICS:
            store_statistics(
                row_m, row_u, row_t, row_q, row_second, row_before, z_y, known, counts,
                row, row < n, out, correct, n,
            )  # fmt: skip
        elif SUMS:
            store_sums(row_m, row_u, row_t, z_y, counts, row, row < n, out, n)
        else:
            store_scores(
                row_m, row_u, row_t, z_y, known, counts, row, row < n, out, work, ids, beta, n,
                num_samples, HAS_IDS, FILL,
            )  # fmt: skip
    if SELECT:
        finish_call(
            out, work, ids, indices, threshold,
            state_score, state_loss, state_entropy, state_updates, state_selections, state_seen_at,
            state_clock, n, keep, HAS_IDS, HAS_STATE, SELECT,
        )  # fmt: skip
