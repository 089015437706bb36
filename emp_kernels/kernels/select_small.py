"""The end of a call on few rows, done by the program that finishes last: no second launch.

Every program takes a ticket when its scores are stored. Nobody waits: whoever draws the last
ticket knows that all scores are there, selects among them and writes the state.
"""

import triton
import triton.language as tl

from .keys import kth_largest, order_key, score_of
from .numerics import INF
from .plan import ONCE
from .remember import claim, clear, write
from .work import TICKET


@triton.jit
def take_ticket(work, ticket, programs):
    """True in the last of the `programs` that come."""
    tl.debug_barrier()  # every thread's stores are before the ticket, which releases them
    before = tl.atomic_add(work + ticket, 1, sem="acq_rel")
    tl.debug_barrier()
    return before == programs - 1


@triton.jit
def select_tile(
    score, rows, inside, ids, indices, threshold, state_selections, n, keep,
    VALID_ONLY: tl.constexpr, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """Selects among scores (T,) at rows 0 ... T-1, those inside: stores the ascending positions
    of the `keep` highest, padded with -1, and with VALID_ONLY the lowest selected score."""
    key = order_key(score, VALID_ONLY)
    count = keep
    if VALID_ONLY:
        count = tl.minimum(keep, tl.sum((key > 0).to(tl.int32), 0))
    kth = kth_largest(key, tl.maximum(count, 1))
    above = key > kth
    ties_taken = count - tl.sum(above.to(tl.int32), 0)
    tied = (key == kth) & inside
    taken = above | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= ties_taken))
    position = tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(indices + position, rows.to(tl.int64), mask=taken)
    if VALID_ONLY:
        padding = tl.full(rows.shape, -1, tl.int64)
        tl.store(indices + rows, padding, mask=(rows >= count) & (rows < keep))
        tl.store(threshold, tl.where(count > 0, score_of(kth), INF))
        if HAS_STATE:
            samples = rows.to(tl.int64)
            if HAS_IDS:
                samples = tl.load(ids + rows, mask=taken, other=0).to(tl.int64)
            tl.atomic_add(state_selections + samples, 1, mask=taken, sem="relaxed")


@triton.jit(**ONCE)
def finish_rows(
    out, ids, indices, threshold,
    state_score, state_loss, state_entropy, state_updates, state_selections, state_seen_at,
    state_clock, n, keep, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program: writes the N <= TILE rows of out (4, N) into the state and selects `keep`."""
    rows = tl.arange(0, TILE)
    inside = rows < n
    score = tl.load(out + rows, mask=inside, other=float("nan"), cache_modifier=".cg")
    if HAS_STATE:
        loss = tl.load(out + n + rows, mask=inside, other=0.0, cache_modifier=".cg")
        entropy = tl.load(out + 2 * n + rows, mask=inside, other=0.0, cache_modifier=".cg")
        valid = order_key(score, True) > 0
        clock = tl.load(state_clock) + 1
        tl.debug_barrier()  # every thread has read the clock
        tl.store(state_clock, clock)
        samples = rows.to(tl.int64)
        if HAS_IDS:
            samples = tl.load(ids + rows, mask=valid, other=0).to(tl.int64)
            clear(state_loss, samples, valid)
            tl.debug_barrier()
            claim(state_loss, samples, rows, valid)
            tl.debug_barrier()
        write(
            state_score, state_loss, state_entropy, state_updates, state_seen_at, clock,
            samples, rows, valid, score, loss, entropy, HAS_IDS,
        )  # fmt: skip
    select_tile(
        score, rows, inside, ids, indices, threshold, state_selections, n, keep,
        True, HAS_IDS, HAS_STATE,
    )  # fmt: skip


@triton.jit
def finish_call(
    out, work, ids, indices, threshold,
    state_score, state_loss, state_entropy, state_updates, state_selections, state_seen_at,
    state_clock, n, keep, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """`finish_rows` in the program of a scoring launch that comes last."""
    if take_ticket(work, TICKET, tl.num_programs(0)):
        finish_rows(
            out, ids, indices, threshold,
            state_score, state_loss, state_entropy, state_updates, state_selections,
            state_seen_at, state_clock, n, keep, HAS_IDS, HAS_STATE, TILE,
        )  # fmt: skip


@triton.jit(**ONCE)
def select_few(scores, indices, keep, n, TILE: tl.constexpr):
    """Positions of the `keep` highest of scores (N,), N <= TILE, in one program."""
    rows = tl.arange(0, TILE)
    inside = rows < n
    score = tl.load(scores + rows, mask=inside, other=float("nan")).to(tl.float32)
    select_tile(score, rows, inside, scores, indices, scores, scores, n, keep, False, False, False)
