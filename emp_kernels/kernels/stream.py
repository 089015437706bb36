"""Scoring, one row per program or per several programs: the row streams through registers once.

For many classes. Each of LANES threads reads V columns at a time and keeps its own running
maximum and sums, so that nothing crosses threads before the end of the row. A row is PIECES of
fixed width, each summed by itself and then joined to those before it, lane by lane. Where rows are
too few to fill the chip each piece is a program's own: it leaves its lanes' sums behind, and the
last to come joins all of them in the same order, so that a row's sums are the same either way.
"""

import triton
import triton.language as tl

from .numerics import INF, LARGEST
from .plan import ONCE
from .row_results import label_of, store_scores, store_statistics, store_sums
from .select_small import finish_call, take_ticket
from .sums import keep_largest, loser_sums, lowest_top, merge, rescale, settle, widened
from .work import ROW_TICKETS


@triton.jit
def absorb(
    champions, positions, m, u, t, q, second, tiles, first, TILES: tl.constexpr,
    STATISTICS: tl.constexpr, COMPENSATED: tl.constexpr,
):  # fmt: skip
    """Add TILES tiles (L, V), from the lane's column `first` on, to each lane's champions and their
    columns (L, V), to their maximum m (finite while all logits so far are -inf) and to the sums
    relative to it (L,)."""
    WIDTH: tl.constexpr = champions.shape[0] * champions.shape[1]
    champions, positions, losers = keep_largest(
        champions, positions, tiles, first, WIDTH, TILES, STATISTICS
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
    return champions, positions, new_m, u, t, q, second


def values_of_a_lane(vector: int, statistics: bool) -> int:
    """float32 values that a lane of a piece leaves behind: its champions and sums, and for the
    statistics two more sums and the champions' positions."""
    return 2 * vector + 4 if statistics else vector + 2


@triton.jit
def nothing_yet(like, LANES: tl.constexpr, V: tl.constexpr):
    """Champions and their positions (L, V), and m, u, t, q and second (L,), of no columns."""
    champions = tl.full([LANES, V], -INF, tl.float32).to(like)
    zeros = tl.zeros([LANES], tl.float32)
    return (
        champions, tl.zeros([LANES, V], tl.int32), zeros - LARGEST, zeros, zeros, zeros, zeros - INF
    )  # fmt: skip


@triton.jit
def join(
    champions, positions, m, u, t, q, second, other_champions, other_places, other_m, other_u,
    other_t, other_q, other_second, STATISTICS: tl.constexpr,
):  # fmt: skip
    """Each lane's sums over two pieces, of which the other one is behind."""
    if STATISTICS:
        rises = widened(other_champions) > widened(champions)
        positions = tl.where(rises, other_places, positions)
    champions, _, losers = keep_largest(champions, positions, (other_champions,), 0, 1, 1, False)
    new_m = tl.maximum(m, other_m)
    u, t, q = rescale(m, new_m, u, t, q, STATISTICS)
    other_u, other_t, other_q = rescale(other_m, new_m, other_u, other_t, other_q, STATISTICS)
    new_u, new_t, new_q, new_second = loser_sums(
        losers, new_m[:, None], widened(champions), 1, STATISTICS, True
    )
    u += other_u + tl.sum(new_u, 1)
    t += other_t + tl.sum(new_t, 1)
    if STATISTICS:
        q += other_q + tl.sum(new_q, 1)
        second = tl.maximum(tl.maximum(second, other_second), tl.max(new_second, 1))
    return champions, positions, new_m, u, t, q, second


@triton.jit
def leave(
    here, each, champions, positions, u, t, q, second, LANES: tl.constexpr, V: tl.constexpr,
    STATISTICS: tl.constexpr,
):  # fmt: skip
    """Stores a piece's lanes at `here`, what there is of each of their columns at `each` (L, V).

    Champions keep their dtype, so that they are loaded in the layout in which they were found: it
    decides the order of the sums."""
    lanes = tl.arange(0, LANES)
    tl.store(here.to(tl.pointer_type(champions.dtype), bitcast=True) + each, champions)
    tl.store(here + LANES * V + lanes, u)
    tl.store(here + LANES * (V + 1) + lanes, t)
    if STATISTICS:
        tl.store(here + LANES * (V + 2) + lanes, q)
        tl.store(here + LANES * (V + 3) + lanes, second)
        tl.store(here + LANES * (V + 4) + each, positions.to(tl.float32, bitcast=True))


@triton.jit
def left(here, each, like, LANES: tl.constexpr, V: tl.constexpr, STATISTICS: tl.constexpr):
    """What `leave` stored."""
    lanes = tl.arange(0, LANES)
    champions = tl.load(here.to(tl.pointer_type(like), bitcast=True) + each, cache_modifier=".cg")
    m = tl.maximum(tl.max(widened(champions), 1), -LARGEST)
    u = tl.load(here + LANES * V + lanes, cache_modifier=".cg")
    t = tl.load(here + LANES * (V + 1) + lanes, cache_modifier=".cg")
    q, second, positions = u, u, each
    if STATISTICS:
        q = tl.load(here + LANES * (V + 2) + lanes, cache_modifier=".cg")
        second = tl.load(here + LANES * (V + 3) + lanes, cache_modifier=".cg")
        positions = tl.load(here + LANES * (V + 4) + each, cache_modifier=".cg")
        positions = positions.to(tl.int32, bitcast=True)
    return champions, positions, m, u, t, q, second


@triton.jit(**ONCE)
def score_stream(
    logits, labels, ids, out, correct, prediction, work, indices, threshold, invalid,
    state_score, state_loss, state_entropy, state_updates, state_selections, state_seen_at,
    state_clock, claims, parts,
    n, rows_per_group, group_stride, row_stride, vectors, classes,
    beta, ignore_index, num_samples, keep,
    V: tl.constexpr, SPREAD: tl.constexpr, GROUPED: tl.constexpr, IGNORE: tl.constexpr,
    STATISTICS: tl.constexpr, SUMS: tl.constexpr, COUNT: tl.constexpr, HAS_IDS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    SELECT: tl.constexpr, BLOCK: tl.constexpr, COMPENSATED: tl.constexpr,
    PIECES: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr, TILES: tl.constexpr,
    TAIL: tl.constexpr,
):  # fmt: skip
    """See launch.score for the arguments, which both scoring kernels share."""
    row = tl.program_id(0).to(tl.int64) // PARTS
    part = tl.program_id(0) % PARTS
    y, label_in_range, counts = label_of(labels, row, row < n, classes, ignore_index, IGNORE)

    if GROUPED:
        start = row // rows_per_group * group_stride + row % rows_per_group * row_stride
    else:
        start = row * row_stride
    z_y = tl.load(logits + start + y, mask=label_in_range, other=float("nan")).to(tl.float32)

    if SPREAD:
        columns = tl.arange(0, LANES)[:, None] + tl.arange(0, V)[None, :] * LANES
        pointers = logits + start + columns
        end = classes
    else:
        columns = tl.arange(0, LANES)[:, None] * V + tl.arange(0, V)[None, :]
        itemsize: tl.constexpr = logits.dtype.element_ty.primitive_bitwidth // 8
        pointers = tl.multiple_of(logits + start, V * itemsize) + columns
        end = vectors * V

    WIDTH: tl.constexpr = LANES * V
    STEP: tl.constexpr = WIDTH * TILES
    share = tl.cdiv(tl.cdiv(vectors * V, STEP), PIECES) * STEP  # columns of a piece
    like = logits.dtype.element_ty
    champions, positions, m, u, t, q, second = nothing_yet(like, LANES, V)
    for piece in range(part * (PIECES // PARTS), (part + 1) * (PIECES // PARTS)):
        first = piece * share
        stop = tl.minimum(first + share, end)
        stop = tl.where(counts, stop, first)  # an ignored row is not read
        whole = first + tl.maximum(stop - first, 0) // STEP * STEP
        found = nothing_yet(like, LANES, V)
        for offset in range(first, whole, STEP):
            tiles = ()
            for j in tl.static_range(TILES):
                z = tl.load(pointers + offset + j * WIDTH)
                tiles = tiles + (z,)
            found = absorb(*found, tiles, offset, TILES, STATISTICS, COMPENSATED)
        # The rest is less than a step; a few loads at a time hide more latency than one.
        for offset in range(whole, stop, WIDTH * TAIL):
            tiles = ()
            for j in tl.static_range(TAIL):
                column = offset + j * WIDTH + columns
                z = tl.load(pointers + offset + j * WIDTH, mask=column < stop, other=-INF)
                tiles = tiles + (z,)
            found = absorb(*found, tiles, offset, TAIL, STATISTICS, COMPENSATED)
        if PIECES == PARTS:
            champions, positions, m, u, t, q, second = found
        else:
            champions, positions, m, u, t, q, second = join(
                champions, positions, m, u, t, q, second, *found, STATISTICS
            )

    complete = True
    if PARTS > 1:
        size: tl.constexpr = LANES * ((2 * V + 4) if STATISTICS else (V + 2))
        here = parts + row * PARTS * size
        if not SPREAD:
            here = tl.multiple_of(here, 16)
        leave(
            here + part * size, columns, champions, positions, u, t, q, second, LANES, V, STATISTICS
        )
        complete = take_ticket(work, ROW_TICKETS + row, PARTS)
        if complete:
            tl.store(work + ROW_TICKETS + row, 0)
            champions, positions, m, u, t, q, second = nothing_yet(like, LANES, V)
            for piece in range(PARTS):
                found = left(here + piece * size, columns, like, LANES, V, STATISTICS)
                champions, positions, m, u, t, q, second = join(
                    champions, positions, m, u, t, q, second, *found, STATISTICS
                )
    lane_m, u, t, q, second = settle(widened(champions), u, t, q, second, STATISTICS)
    row_m, row_u, row_t, row_q, row_second = merge(lane_m, u, t, q, second, STATISTICS)
    row_top = row * 0
    if STATISTICS:
        row_top = tl.min(lowest_top(widened(champions), row_m, positions + columns), 0)

    if complete:
        if STATISTICS:
            store_statistics(
                row_m, row_u, row_t, row_q, row_second, row_top, y, z_y, label_in_range, counts,
                row, row < n, out, correct, prediction, n,
            )  # fmt: skip
        elif SUMS:
            store_sums(row_m, row_u, row_t, z_y, counts, row, row < n, out, n)
        else:
            store_scores(
                row_m, row_u, row_t, z_y, label_in_range, counts, row, row < n, out, work, ids,
                beta, n, num_samples, HAS_IDS, COUNT,
            )  # fmt: skip
    if SELECT:
        finish_call(
            out, work, ids, indices, threshold, invalid,
            state_score, state_loss, state_entropy, state_updates, state_selections, state_seen_at,
            state_clock, claims, num_samples, n, keep, HAS_IDS, HAS_STATE, SELECT, BLOCK,
        )  # fmt: skip
