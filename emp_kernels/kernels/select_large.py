"""Exact selection among many scores, with little more than two reads and no host synchronisation.

1. `bracket`: a range of keys that should hold the k-th largest, from a sample. (A histogram of
   the leading digit, filled while scoring, was slower: scores share a few digits, so thousands of
   programs contend for one counter.)
2. `split`: one read. Each chunk counts its keys above the bracket and stores those inside it in its
   slot. If the bracket misses the k-th key, this is detected here and the bracket becomes the full
   range.
3. `narrow`, four times: the bin of a 256-bin histogram of the bracket that holds the k-th key
   becomes the next bracket, until it is a single key. It reads the slots; a chunk that overflowed
   its slot is read again, so nothing is ever dropped.
4. `count`: the number of keys that each chunk selects, and their prefix sums.
5. `compact`: the second read; each chunk writes its positions in order.

Where programs depend on one another, the last to take a ticket continues; none waits.
"""

import triton
import triton.language as tl

from . import plan as cut
from .keys import kth_largest, order_key, score_of
from .numerics import INF
from .remember import samples_of
from .select_small import take_ticket
from .work import BOTTOM, INVALID

CHUNK = tl.constexpr(cut.CHUNK)
DIGITS = tl.constexpr(cut.DIGITS)
HIGHEST = tl.constexpr(0xFFFFFFFF)

# plan (int64, zero at the start)
LOWEST = tl.constexpr(0)  # the bracket's keys, both inclusive
LAST = tl.constexpr(1)
ABOVE = tl.constexpr(2)  # keys above the bracket
COUNT = tl.constexpr(3)  # number of keys to select
WHOLE = tl.constexpr(4)  # 1 if the bracket is the full range and the slots are unused
INSIDE = tl.constexpr(5)  # keys inside the first bracket
TICKETS = tl.constexpr(8)  # split, each narrowing, count
BIN_COUNTS = tl.constexpr(16)  # DIGITS counts for each narrowing


@triton.jit
def _store_bracket(plan, lowest, last, above):
    tl.store(plan + LOWEST, lowest.to(tl.int64))
    tl.store(plan + LAST, last.to(tl.int64))
    tl.store(plan + ABOVE, above.to(tl.int64))


@triton.jit(**cut.ONCE)
def bracket(scores, plan, work, keep, n, VALID_ONLY: tl.constexpr, SAMPLE: tl.constexpr):
    """One program: a bracket of six standard deviations of the sample's rank around the k-th key,
    with k = keep or, with VALID_ONLY, at most the number of valid scores."""
    draws = tl.arange(0, SAMPLE).to(tl.int64)
    key = order_key(tl.load(scores + draws * n // SAMPLE).to(tl.float32), VALID_ONLY)
    count = keep.to(tl.int64)
    if VALID_ONLY:
        count = tl.minimum(count, n - tl.load(work + INVALID) - tl.load(work + BOTTOM))
    share = count.to(tl.float32) / n
    rank = (share * SAMPLE).to(tl.int32)
    margin = (6.0 * tl.sqrt(share * (1.0 - share) * SAMPLE)).to(tl.int32) + 2
    ends = tl.arange(0, 2)  # ranks of the lowest and the highest key
    ranks = tl.where(ends == 0, tl.minimum(rank + margin, SAMPLE), tl.maximum(rank - margin, 1))
    found = kth_largest(key[:, None], ranks).to(tl.int64)
    lowest = tl.sum(tl.where(ends == 0, found, 0), 0)
    last = tl.sum(tl.where(ends == 1, found, 0), 0)
    lowest = tl.where(rank + margin > SAMPLE, 0, lowest)
    last = tl.where(rank - margin < 1, HIGHEST, last)
    tl.store(plan + COUNT, count)
    nothing = count == 0
    _store_bracket(
        plan, tl.where(nothing, HIGHEST, lowest), tl.where(nothing, HIGHEST, last), count * 0
    )


@triton.jit
def _chunk_keys(scores, chunk, n, VALID_ONLY: tl.constexpr):
    """The chunk's start, offsets (CHUNK,) from it, whether they are in range, and the keys."""
    start = chunk * tl.full((), CHUNK, tl.int64)
    places = tl.arange(0, CHUNK)
    live = places < tl.minimum(n - start, CHUNK).to(tl.int32)
    score = tl.load(scores + start + places, mask=live, other=float("nan")).to(tl.float32)
    return start, places, live, order_key(score, VALID_ONLY)


@triton.jit(**cut.ONCE)
def split(
    scores, slots, above, inside, plan, n, chunks, VALID_ONLY: tl.constexpr, SLOT: tl.constexpr
):
    """Per chunk: count the keys `above` the bracket and `inside` it, and store the latter in its
    slot. The last program checks that the bracket contains the k-th key."""
    lowest = tl.load(plan + LOWEST).to(tl.uint32)
    last = tl.load(plan + LAST).to(tl.uint32)
    all_above = tl.zeros((), tl.int64)
    all_inside = tl.zeros((), tl.int64)
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        _, _, live, key = _chunk_keys(scores, chunk, n, VALID_ONLY)
        over = live & (key > last)
        within = live & (key >= lowest) & (key <= last)
        place = tl.cumsum(within.to(tl.int32), 0) - 1
        slot = slots + chunk * tl.full((), SLOT, tl.int64)
        tl.store(slot + place, key, mask=within & (place < SLOT))
        chunk_above = tl.sum(over.to(tl.int32), 0)
        chunk_inside = tl.sum(within.to(tl.int32), 0)
        tl.store(above + chunk, chunk_above)
        tl.store(inside + chunk, chunk_inside)
        all_above += chunk_above
        all_inside += chunk_inside
    tl.atomic_add(plan + ABOVE, all_above, sem="relaxed")
    tl.atomic_add(plan + INSIDE, all_inside, sem="relaxed")
    if take_ticket(plan, TICKETS, tl.num_programs(0).to(tl.int64)):
        count = tl.load(plan + COUNT)
        total_above = tl.atomic_add(plan + ABOVE, 0, sem="relaxed")
        total_inside = tl.atomic_add(plan + INSIDE, 0, sem="relaxed")
        missed = (total_above >= count) | (total_above + total_inside < count)
        if missed & (count > 0):
            tl.store(plan + WHOLE, 1)
            zero = tl.zeros((), tl.int64)
            _store_bracket(plan, zero, zero + HIGHEST, zero)


@triton.jit
def _bin_width(span):
    """log2 of the smallest power-of-two bin width for which `span` + 1 keys fill at most DIGITS
    bins."""
    shift = tl.zeros((), tl.int32)
    for i in tl.static_range(24):
        shift += (span >= (256 << i)).to(tl.int32)
    return shift


@triton.jit
def _histogram(key, live, lowest, last, shift):
    within = live & (key >= lowest.to(tl.uint32)) & (key <= last.to(tl.uint32))
    digit = tl.where(within, (key - lowest.to(tl.uint32)) >> shift.to(tl.uint32), 0)
    return tl.histogram(digit.to(tl.int32), DIGITS, mask=within)


@triton.jit
def _slot_keys(slots, chunk, held, SLOT: tl.constexpr):
    """Which entries of the chunk's slot are filled, and their keys (SLOT,)."""
    place = tl.arange(0, SLOT)
    live = place < held
    start = chunk * tl.full((), SLOT, tl.int64)
    return live, tl.load(slots + start + place, mask=live, other=0)


@triton.jit(**cut.ONCE)
def narrow(
    scores, slots, inside, plan, n, chunks, step, VALID_ONLY: tl.constexpr, SLOT: tl.constexpr
):
    """One narrowing step: a histogram of the bracket; the last program makes the k-th key's bin the
    next bracket."""
    lowest = tl.load(plan + LOWEST)
    last = tl.load(plan + LAST)
    if lowest < last:
        shift = _bin_width(last - lowest)
        whole = tl.load(plan + WHOLE)
        counts = tl.zeros([DIGITS], tl.int32)
        for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
            held = tl.load(inside + chunk)
            if (held > SLOT) | (whole != 0):
                _, _, chunk_live, chunk_key = _chunk_keys(scores, chunk, n, VALID_ONLY)
                counts += _histogram(chunk_key, chunk_live, lowest, last, shift)
            elif held > 0:
                live, key = _slot_keys(slots, chunk, held, SLOT)
                counts += _histogram(key, live, lowest, last, shift)
        bins = tl.arange(0, DIGITS)
        totals = plan + BIN_COUNTS + step * DIGITS + bins
        tl.atomic_add(totals, counts.to(tl.int64), mask=counts > 0, sem="relaxed")
        if take_ticket(plan, TICKETS + 1 + step, tl.num_programs(0).to(tl.int64)):
            counts64 = tl.load(totals, cache_modifier=".cg")
            above = tl.load(plan + ABOVE)
            reach = above + tl.sum(counts64, 0) - tl.cumsum(counts64, 0) + counts64
            digit = tl.max(tl.where(reach >= tl.load(plan + COUNT), bins, 0), 0).to(tl.int64)
            above += tl.sum(tl.where(bins > digit, counts64, 0), 0)
            lowest += digit << shift.to(tl.int64)
            last = tl.minimum(last, lowest + (1 << shift.to(tl.int64)) - 1)
            _store_bracket(plan, lowest, last, above)


@triton.jit
def _chunk_counts(scores, chunk, n, kth, VALID_ONLY: tl.constexpr):
    _, _, live, key = _chunk_keys(scores, chunk, n, VALID_ONLY)
    over = live & (key > kth.to(tl.uint32))
    equal = live & (key == kth.to(tl.uint32))
    return tl.sum(over.to(tl.int64), 0), tl.sum(equal.to(tl.int64), 0)


@triton.jit
def _slot_counts(slots, chunk, held, kth, SLOT: tl.constexpr):
    live, key = _slot_keys(slots, chunk, held, SLOT)
    over = live & (key > kth.to(tl.uint32))
    equal = live & (key == kth.to(tl.uint32))
    return tl.sum(over.to(tl.int64), 0), tl.sum(equal.to(tl.int64), 0)


@triton.jit(**cut.ONCE)
def count(
    scores, slots, above, inside, taken, ties, plan, threshold, n, chunks,
    VALID_ONLY: tl.constexpr, SLOT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Count each chunk's keys above the k-th, `taken`, and equal to it, `ties`. The last program
    turns both into prefix sums over chunks, `taken` including the ties that are selected, and
    stores the k-th score, +inf if nothing is selected."""
    kth = tl.load(plan + LOWEST)
    whole = tl.load(plan + WHOLE)
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        held = tl.load(inside + chunk)
        if (held > SLOT) | (whole != 0):
            over, equal = _chunk_counts(scores, chunk, n, kth, VALID_ONLY)
        else:
            over, equal = _slot_counts(slots, chunk, held, kth, SLOT)
            over += tl.load(above + chunk)
        tl.store(taken + chunk, over)
        tl.store(ties + chunk, equal)
    if take_ticket(plan, TICKETS + 5, tl.num_programs(0).to(tl.int64)):
        total = tl.load(plan + COUNT)
        ties_to_take = total - tl.load(plan + ABOVE)  # ties to select
        taken_before = tl.zeros((), tl.int64)
        ties_before = tl.zeros((), tl.int64)
        for start in range(0, chunks, TILE):
            later = start + tl.arange(0, TILE)
            mask = later < chunks
            over = tl.load(taken + later, mask=mask, other=0, cache_modifier=".cg")
            equal = tl.load(ties + later, mask=mask, other=0, cache_modifier=".cg")
            chunk_ties = ties_before + tl.cumsum(equal, 0) - equal
            given = over + tl.minimum(tl.maximum(ties_to_take - chunk_ties, 0), equal)
            tl.store(taken + later, taken_before + tl.cumsum(given, 0) - given, mask=mask)
            tl.store(ties + later, chunk_ties, mask=mask)
            taken_before += tl.sum(given, 0)
            ties_before += tl.sum(equal, 0)
        if VALID_ONLY:
            tl.store(threshold, tl.where(total > 0, score_of(kth.to(tl.uint32)), INF))


@triton.jit(**cut.ONCE)
def compact(
    scores, taken, ties, plan, indices, ids, state_selections, num_samples, n, keep,
    VALID_ONLY: tl.constexpr, HAS_IDS: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """One chunk per program: store the positions of its selected scores in order, pad the indices
    with -1, and count the selections in the state."""
    chunk = tl.program_id(0)
    kth = tl.load(plan + LOWEST).to(tl.uint32)
    total = tl.load(plan + COUNT)
    before = tl.load(ties + chunk)
    behind = tl.load(ties + chunk + 1, mask=chunk + 1 < tl.num_programs(0), other=before + 1)
    ties_to_take = total - tl.load(plan + ABOVE) - before
    start, places, live, key = _chunk_keys(scores, chunk, n, VALID_ONLY)
    chosen = live & (key > kth)
    if (ties_to_take > 0) & (behind > before):  # few chunks have ties to select
        tied = live & (key == kth)
        chosen = chosen | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= ties_to_take))
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    first = tl.load(taken + chunk)
    end = tl.load(taken + chunk + 1, mask=chunk + 1 < tl.num_programs(0), other=total)
    # Store exactly as many as were counted, even if another stream has changed the scores since.
    room = tl.minimum(end, total) - first
    chosen = chosen & (place < room)
    missing = room - tl.sum(chosen.to(tl.int64), 0)
    if missing > 0:
        rest = live & (chosen == 0)
        chosen = chosen | (rest & (tl.cumsum(rest.to(tl.int32), 0) <= missing))
        place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    rows = start + places
    tl.store(indices + first + place, rows, mask=chosen)
    if VALID_ONLY:
        pad = (rows >= total) & (rows < keep)
        tl.store(indices + rows, tl.full([CHUNK], -1, tl.int64), mask=pad)
        if HAS_STATE:
            samples, counted = samples_of(ids, rows, chosen, num_samples, HAS_IDS)
            tl.atomic_add(state_selections + samples, 1, mask=counted, sem="relaxed")
