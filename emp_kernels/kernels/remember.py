"""Writing scores into the state: the last valid row of an id wins, whatever the thread order.

The last row of each id is found in `claims`, which has an entry per sample: `clear` sets it to 0,
`claim` raises it to the largest tag among the id's rows, and `write` writes the row whose tag is
stored there. An entry of the state is always either an old or a new value, even for another stream
that copies it concurrently.
"""

import triton
import triton.language as tl

from .numerics import LARGEST
from .plan import ONCE


@triton.jit
def tag_of(rows):
    """Tags of rows: ascending, from 1."""
    return (rows + 1).to(tl.int32)


@triton.jit
def clear(claims, samples, valid):
    tl.store(claims + samples, tl.zeros_like(samples).to(tl.int32), mask=valid)


@triton.jit
def claim(claims, samples, rows, valid):
    tl.atomic_max(claims + samples, tag_of(rows), mask=valid, sem="relaxed")


@triton.jit
def write(
    state_score, state_loss, state_entropy, state_updates, state_seen_at, claims, clock,
    samples, rows, valid, score, loss, entropy, CLAIMED: tl.constexpr,
):  # fmt: skip
    """Each valid row (with CLAIMED: each row that holds its sample's claim) writes its scores and
    `clock`, and counts one update."""
    if CLAIMED:
        tag = tl.load(claims + samples, mask=valid, other=0, cache_modifier=".cg")
        valid = valid & (tag == tag_of(rows))
    tl.store(state_score + samples, score, mask=valid)
    tl.store(state_loss + samples, loss, mask=valid)
    tl.store(state_entropy + samples, entropy, mask=valid)
    updates = tl.load(state_updates + samples, mask=valid, other=0)
    tl.store(state_updates + samples, updates + 1, mask=valid)
    tl.store(state_seen_at + samples, clock, mask=valid)


CLEAR = tl.constexpr(0)
CLAIM = tl.constexpr(1)
WRITE = tl.constexpr(2)


@triton.jit
def samples_of(ids, rows, valid, num_samples, HAS_IDS: tl.constexpr):
    """Each row's sample, and which of the `valid` rows have one in range. Ids are checked at every
    read, as another stream may write them concurrently."""
    samples = rows.to(tl.int64)
    if HAS_IDS:
        samples = tl.load(ids + rows, mask=valid, other=-1).to(tl.int64)
    return samples, valid & (samples.to(tl.uint64) < num_samples.to(tl.uint64))


@triton.jit(**ONCE)
def remember_rows(
    score, loss, entropy, ids,
    state_score, state_loss, state_entropy, state_updates, state_seen_at, state_clock, claims,
    before, n, num_samples,
    STEP: tl.constexpr, HAS_IDS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One step for rows (N,); the three steps are separate launches, so that each sees the
    completed previous one. Without ids row i is sample i, and only WRITE is needed. `before` is a
    copy of the clock, which advances if any row is valid."""
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = rows < n
    row_score = tl.load(score + rows, mask=inside, other=float("nan"))
    row_loss = tl.load(loss + rows, mask=inside, other=0.0)
    row_entropy = tl.load(entropy + rows, mask=inside, other=0.0)
    # comparisons with NaN are false: NaN, infinite and ignored rows are not valid
    valid = (tl.abs(row_loss) <= LARGEST) & (tl.abs(row_entropy) <= LARGEST)
    valid = valid & (row_score > float("-inf"))
    samples, valid = samples_of(ids, rows, valid, num_samples, HAS_IDS)
    if STEP == CLEAR:
        clear(claims, samples, valid)
    elif STEP == CLAIM:
        claim(claims, samples, rows, valid)
    else:
        clock = tl.load(before) + 1
        write(
            state_score, state_loss, state_entropy, state_updates, state_seen_at, claims, clock,
            samples, rows, valid, row_score, row_loss, row_entropy, HAS_IDS,
        )  # fmt: skip
        tl.store(state_clock, clock, mask=tl.max(valid.to(tl.int32), 0) > 0)
