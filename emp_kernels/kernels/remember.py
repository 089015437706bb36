"""Writing scores into the state: the last valid row of an id wins, whatever the order of threads.

The rows of one id agree on the last of them in the state's own loss entries, so that no memory
is needed: `clear` sets the entry to 0, `claim` raises it to the largest tag among the rows, and
`write` lets the row whose tag stands there write. A tag has the sign bit of a float32 set, which
a valid loss never has: once the winner has written, no other row finds its tag.
"""

import triton
import triton.language as tl

from .numerics import LARGEST
from .plan import ONCE


@triton.jit
def _claims(state_loss):
    return state_loss.to(tl.pointer_type(tl.uint32), bitcast=True)


@triton.jit
def tag_of(rows):
    """Tags ascend with the rows: 0x80000001 is row 0's."""
    return (rows + 1).to(tl.uint32) | 0x80000000


@triton.jit
def clear(state_loss, samples, valid):
    tl.store(_claims(state_loss) + samples, tl.zeros_like(samples).to(tl.uint32), mask=valid)


@triton.jit
def claim(state_loss, samples, rows, valid):
    tl.atomic_max(_claims(state_loss) + samples, tag_of(rows), mask=valid, sem="relaxed")


@triton.jit
def write(
    state_score, state_loss, state_entropy, state_updates, state_seen_at, clock,
    samples, rows, valid, score, loss, entropy, CLAIMED: tl.constexpr,
):  # fmt: skip
    """Each valid row (with CLAIMED: each that won its sample) writes, at `clock`, and counts one
    update."""
    if CLAIMED:
        tag = tl.load(_claims(state_loss) + samples, mask=valid, other=0, cache_modifier=".cg")
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


@triton.jit(**ONCE)
def remember_rows(
    score, loss, entropy, ids,
    state_score, state_loss, state_entropy, state_updates, state_seen_at, state_clock,
    n, num_samples,
    STEP: tl.constexpr, HAS_IDS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One step for rows (N,): the three steps are three launches, so that each sees the whole of
    the one before. Without ids row i is sample i, and WRITE alone does it. The clock has been
    advanced before."""
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = rows < n
    row_score = tl.load(score + rows, mask=inside, other=float("nan"))
    row_loss = tl.load(loss + rows, mask=inside, other=0.0)
    row_entropy = tl.load(entropy + rows, mask=inside, other=0.0)
    # comparisons with NaN are false: NaN, infinite and ignored rows are not valid
    valid = (tl.abs(row_loss) <= LARGEST) & (tl.abs(row_entropy) <= LARGEST)
    valid = valid & (row_score > float("-inf"))
    samples = rows
    if HAS_IDS:
        samples = tl.load(ids + rows, mask=inside, other=-1).to(tl.int64)
    valid = valid & (samples >= 0) & (samples < num_samples)
    if STEP == CLEAR:
        clear(state_loss, samples, valid)
    elif STEP == CLAIM:
        claim(state_loss, samples, rows, valid)
    else:
        write(
            state_score, state_loss, state_entropy, state_updates, state_seen_at,
            tl.load(state_clock),
            samples, rows, valid, row_score, row_loss, row_entropy, HAS_IDS,
        )  # fmt: skip
