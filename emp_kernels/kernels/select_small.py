"""The final step of a call on few rows, by one program: the scoring launch's last one, or a
separate launch for several thousand rows or with ignored rows.

Every program takes a ticket after storing its scores. None waits: the program with the last ticket
knows that all scores are stored, selects among them and writes the state.
"""

import triton
import triton.language as tl

from .keys import kth_largest, order_key, score_of
from .numerics import INF
from .plan import ONCE
from .remember import CLAIM, CLEAR, WRITE, claim, clear, samples_of, write
from .work import INVALID, ROW_TICKETS, TICKET


@triton.jit
def take_ticket(work, ticket, programs):
    """True in the last of the `programs` to call this."""
    tl.debug_barrier()  # all threads' stores come before the ticket, which releases them
    before = tl.atomic_add(work + ticket, 1, sem="acq_rel")
    tl.debug_barrier()
    return before == programs - 1


@triton.jit
def place_block(
    score, rows, inside, kth, ties_taken, placed, least, most, ids, indices, state_selections,
    num_samples, VALID_ONLY: tl.constexpr, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr,
    AGAIN: tl.constexpr,
):  # fmt: skip
    """Store the selected ones of rows (B,) after the `placed` earlier ones; return the number
    placed and the number of ties left to take. If scores are read AGAIN, between `least` and `most`
    are placed, even if another stream has changed the scores since."""
    key = order_key(score, VALID_ONLY)
    tied = (key == kth) & inside
    ties_before = tl.cumsum(tied.to(tl.int32), 0)
    taken = (key > kth) | (tied & (ties_before <= ties_taken))
    position = placed + tl.cumsum(taken.to(tl.int32), 0) - 1
    if AGAIN:
        taken = taken & (position < most)
        missing = least - placed - tl.sum(taken.to(tl.int32), 0)
        rest = inside & (taken == 0)
        taken = taken | (rest & (tl.cumsum(rest.to(tl.int32), 0) <= missing))
        position = placed + tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(indices + position, rows.to(tl.int64), mask=taken)
    if HAS_STATE:
        samples, counted = samples_of(ids, rows, taken, num_samples, HAS_IDS)
        tl.atomic_add(state_selections + samples, 1, mask=counted, sem="relaxed")
    placed += tl.sum(taken.to(tl.int32), 0)
    return placed, ties_taken - tl.sum(tied.to(tl.int32), 0)


@triton.jit
def select_tile(
    scores, ids, indices, threshold, state_selections, num_samples, n, keep,
    VALID_ONLY: tl.constexpr, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Select among scores (N,), N <= TILE: store the ascending positions of the `keep` highest,
    padded with -1, and with VALID_ONLY the lowest selected score.

    All keys are in registers while the k-th is found. For more than a BLOCK of keys the registers
    are full, and the scores are read again, one block at a time.
    """
    rows = tl.arange(0, TILE)
    inside = rows < n
    score = tl.load(scores + rows, mask=inside, other=float("nan"), cache_modifier=".cg")
    score = score.to(tl.float32)
    key = order_key(score, VALID_ONLY)
    count = keep
    if VALID_ONLY:
        count = tl.minimum(keep, tl.sum((key > 0).to(tl.int32), 0))
    kth = kth_largest(key, tl.maximum(count, 1))
    ties_taken = count - tl.sum((key > kth).to(tl.int32), 0)
    placed = count * 0
    if TILE == BLOCK:
        place_block(
            score, rows, inside, kth, ties_taken, placed, 0, count, ids, indices,
            state_selections, num_samples, VALID_ONLY, HAS_IDS, HAS_STATE, False,
        )  # fmt: skip
    else:
        for start in range(0, n, BLOCK):
            block = start + tl.arange(0, BLOCK)
            live = block < n
            again = tl.load(scores + block, mask=live, other=float("nan"), cache_modifier=".cg")
            placed, ties_taken = place_block(
                again.to(tl.float32), block, live, kth, ties_taken, placed,
                count - tl.maximum(n - start - BLOCK, 0), count, ids, indices,
                state_selections, num_samples, VALID_ONLY, HAS_IDS, HAS_STATE, not VALID_ONLY,
            )  # fmt: skip
    if VALID_ONLY:
        for start in range(count // BLOCK * BLOCK, keep, BLOCK):
            pad = start + tl.arange(0, BLOCK)
            minus_one = tl.full([BLOCK], -1, tl.int64)
            tl.store(indices + pad, minus_one, mask=(pad >= count) & (pad < keep))
        tl.store(threshold, tl.where(count > 0, score_of(kth), INF))


@triton.jit
def remember_block(
    out, ids, state_score, state_loss, state_entropy, state_updates, state_seen_at, claims, clock,
    num_samples, rows, n, STEP: tl.constexpr, HAS_IDS: tl.constexpr,
):  # fmt: skip
    """One step (see remember.py) of writing rows (B,) of out (4, N) into the state; returns whether
    any row is valid."""
    inside = rows < n
    score = tl.load(out + rows, mask=inside, other=float("nan"), cache_modifier=".cg")
    # comparisons with NaN are false
    samples, valid = samples_of(ids, rows, score > -INF, num_samples, HAS_IDS)
    if STEP == CLEAR:
        clear(claims, samples, valid)
    elif STEP == CLAIM:
        claim(claims, samples, rows, valid)
    else:
        loss = tl.load(out + n + rows, mask=inside, other=0.0, cache_modifier=".cg")
        entropy = tl.load(out + 2 * n + rows, mask=inside, other=0.0, cache_modifier=".cg")
        write(
            state_score, state_loss, state_entropy, state_updates, state_seen_at, claims, clock,
            samples, rows, valid, score, loss, entropy, HAS_IDS,
        )  # fmt: skip
    return tl.max(valid.to(tl.int32), 0)


@triton.jit(**ONCE)
def finish_rows(
    out, ids, indices, threshold,
    state_score, state_loss, state_entropy, state_updates, state_selections, state_seen_at,
    state_clock, claims, num_samples, n, keep, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: write the N <= TILE rows of out (4, N) into the state and select `keep`."""
    if HAS_STATE:
        if HAS_IDS:
            for start in range(0, n, BLOCK):
                remember_block(
                    out, ids, state_score, state_loss, state_entropy, state_updates,
                    state_seen_at, claims, 0, num_samples, start + tl.arange(0, BLOCK), n,
                    CLEAR, HAS_IDS,
                )  # fmt: skip
            tl.debug_barrier()
            for start in range(0, n, BLOCK):
                remember_block(
                    out, ids, state_score, state_loss, state_entropy, state_updates,
                    state_seen_at, claims, 0, num_samples, start + tl.arange(0, BLOCK), n,
                    CLAIM, HAS_IDS,
                )  # fmt: skip
            tl.debug_barrier()
        clock = tl.load(state_clock) + 1
        any_valid = n * 0
        for start in range(0, n, BLOCK):
            valid = remember_block(
                out, ids, state_score, state_loss, state_entropy, state_updates,
                state_seen_at, claims, clock, num_samples, start + tl.arange(0, BLOCK), n,
                WRITE, HAS_IDS,
            )  # fmt: skip
            any_valid = tl.maximum(any_valid, valid)
        tl.debug_barrier()  # every thread has read the clock
        tl.store(state_clock, clock, mask=any_valid > 0)
    select_tile(
        out, ids, indices, threshold, state_selections, num_samples, n, keep, True, HAS_IDS,
        HAS_STATE, TILE, BLOCK,
    )  # fmt: skip


@triton.jit
def finish_call(
    out, work, ids, indices, threshold, invalid,
    state_score, state_loss, state_entropy, state_updates, state_selections, state_seen_at,
    state_clock, claims, num_samples, n, keep, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`finish_rows` in the program of a scoring launch that comes last, which also stores how many
    rows are invalid and sets the counts back to zero."""
    if take_ticket(work, TICKET, tl.num_programs(0)):
        tl.store(invalid, tl.load(work + INVALID, cache_modifier=".cg"))
        tl.debug_barrier()
        for i in tl.static_range(ROW_TICKETS):
            tl.store(work + i, 0)
        finish_rows(
            out, ids, indices, threshold,
            state_score, state_loss, state_entropy, state_updates, state_selections,
            state_seen_at, state_clock, claims, num_samples, n, keep, HAS_IDS, HAS_STATE, TILE,
            BLOCK,
        )  # fmt: skip


@triton.jit(**ONCE)
def select_few(scores, indices, keep, n, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Positions of the `keep` highest of scores (N,), N <= TILE, in one program."""
    select_tile(
        scores, scores, indices, scores, scores, 0, n, keep, False, False, False, TILE, BLOCK
    )
