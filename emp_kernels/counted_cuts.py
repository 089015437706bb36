"""Exact top k of scores that are read in blocks, by counting digits.

Scores are given as the keys of :func:`emp_kernels.order_keys.order_keys`. Each pass over the blocks
counts the next digit of all keys that can still be the threshold, so memory grows with the counters
and not with the scores.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

COUNTERS = 1 << 22  # int64 counters at a time, unless there are more targets
DIGIT_BITS = 16  # per pass, at most


class Block(NamedTuple):
    """Consecutive scores.

    Attributes:
        keys: (n,) int32 or int64.
        groups: (n,) int64, the target that each score belongs to; None: every score belongs to
            every target.
    """

    keys: torch.Tensor
    groups: torch.Tensor | None


class Cut(NamedTuple):
    """The threshold of each of T targets.

    Attributes:
        keys: (T,) order key of the lowest score taken.
        ties: (T,) int64, the number of scores with that key to take: those at the lowest positions.
    """

    keys: torch.Tensor
    ties: torch.Tensor


# How often each digit of `bits` bits, which ends at bit `shift`, follows in the keys on each of the
# ranges that begin at `lowest` (U,), those ascending: (U, 2^bits) int64. Called once a pass.
CountDigits = Callable[[torch.Tensor, int, int], torch.Tensor]


def find_cut(
    blocks: Callable[[], Iterable[Block]], ranks: torch.Tensor, dtype: torch.dtype, *, grouped: bool
) -> Cut:
    """The cut that takes the ``ranks[t]`` highest scores, for each target t.

    Args:
        blocks: yields all scores in order of position; called once per pass.
        ranks: (T,) int64, at most the number of the target's scores; 0 takes nothing.
        dtype: of the keys.
        grouped: whether the blocks have groups.
    """

    def count(lowest: torch.Tensor, bits: int, shift: int) -> torch.Tensor:
        return count_digits(blocks(), lowest, bits, shift, grouped=grouped)

    return find_counted_cut(count, ranks, dtype, torch.iinfo(dtype).bits, grouped=grouped)


def find_counted_cut(
    count: CountDigits, ranks: torch.Tensor, dtype: torch.dtype, width: int, *, grouped: bool
) -> Cut:
    """`find_cut` of keys that only `count` reads, all of them in [-2^(width-1), 2^(width-1))."""
    shift = width
    left = ranks.clone()  # ranks within a target's range
    slots = torch.arange(len(ranks), device=ranks.device) if grouped else torch.zeros_like(ranks)
    # The leading digits of the threshold found so far.
    digits = ranks.new_zeros(len(ranks) if grouped else 1, dtype=dtype)
    if not len(ranks):
        return Cut(digits[:0], left)
    while True:
        bits = max(1, min(DIGIT_BITS, shift, (COUNTERS // len(digits)).bit_length() - 1))
        first = shift == width  # the leading digit is signed
        lowest = digits - (1 << (bits - 1)) if first else digits << bits
        shift -= bits
        counts = count(lowest, bits, shift)
        above = counts.flip(1).cumsum(1)[slots]  # (T, 2^bits), from the highest digit on
        down = (above < left[:, None]).sum(1)
        passed = above.gather(1, (down - 1).clamp(min=0)[:, None])[:, 0]
        left -= torch.where(down > 0, passed, 0)
        found = lowest[slots] + ((1 << bits) - 1 - down).to(dtype)
        if shift == 0:
            return Cut(found, left)
        if grouped:
            digits = found
        else:
            digits, slots = found.unique(return_inverse=True)


def count_digits(
    blocks: Iterable[Block], lowest: torch.Tensor, bits: int, shift: int, *, grouped: bool
) -> torch.Tensor:
    """What `blocks` add to a pass: (U, 2^bits) int64 as :data:`CountDigits` says."""
    size = 1 << bits
    # Each range also has bins below and above it.
    counts = torch.zeros(len(lowest) * (size + 2), dtype=torch.int64, device=lowest.device)
    for keys, groups in blocks:
        leading = keys >> shift
        slots = groups if grouped else None
        if not grouped and len(lowest) > 1:  # disjoint ranges, ascending
            slots = (torch.searchsorted(lowest, leading, right=True) - 1).clamp_(min=0)
        # A difference may wrap, but never into the range.
        place = leading.sub_(lowest if slots is None else lowest[slots]).clamp_(-1, size).add_(1)
        if slots is not None:
            place = place + slots * (size + 2)
        counts += torch.bincount(place, minlength=len(counts))
    return counts.view(-1, size + 2)[:, 1:-1]


class Taking:
    """Marks the scores that a cut takes, in blocks given in order of position."""

    def __init__(self, cut: Cut) -> None:
        self.keys, self.left = cut.keys, cut.ties.clone()

    def of(self, block: Block) -> torch.Tensor:
        """(n,) bool: which scores of the next block are taken."""
        keys, groups = block
        last = self.keys if groups is None else self.keys[groups]
        taken = keys > last
        ties = (keys == last).nonzero()[:, 0]
        of_tie = torch.zeros_like(ties) if groups is None else groups[ties]
        order = of_tie.argsort(stable=True)
        found = torch.bincount(of_tie, minlength=len(self.left))
        begins = (found.cumsum(0) - found)[of_tie[order]]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - begins
        taken[ties] = place < self.left[of_tie]
        self.left = (self.left - found).clamp_(min=0)
        return taken
