"""The exact global top k of scores distributed over ranks, by all-reducing histograms."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .. import backends
from ..keep import Keep, check_ignored, check_keep, check_keep_of, kept_count
from ..order_keys import order_keys
from ..validation import check_scores
from .group import check_group, gather_equal, per_rank, sum_equal

FUNCTION = "distributed.select"
DIGIT = 11  # bits of a key resolved per round
_CHUNKS = {"cpu": 1 << 16}  # scores whose keys are made at a time: few enough for a cache,
_CHUNK = 1 << 26  # or as many as fit in memory


def select(
    local_scores: torch.Tensor,
    keep: Keep,
    *,
    ignored: torch.Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """This rank's part of the K highest scores of all ranks.

    Equal to :func:`emp_kernels.select` of the ranks' concatenated scores, in rank order: ties go to
    the lower rank, then to the lower index, -0.0 equals +0.0, -inf ranks last except for NaN, which
    ranks last of all.

    Scores are not sent. The ranks all-reduce histograms of the scores' leading 11 bits, continue
    within the bin that holds the K-th score, and repeat with the next bits: three all-reduces of 16
    KB find it, and at most two more divide ties among the ranks. A rank may have any number of
    scores, including none; the total may exceed 2**31.

    Args:
        local_scores: (N_local,) float32, float16 or bfloat16, which may differ between ranks
            (float64: on all ranks or none).
        keep: as in :func:`emp_kernels.select`, the same on all ranks; N is the total number of
            scores.
        ignored: (N_local,) bool; scores where it is True are neither counted nor returned. A rank
            without such scores may leave it out.
        group: a process group, all of whose ranks must call; None is the default one.

    Returns:
        (K_local,) int64 positions in `local_scores`, ascending, on its device. The ranks'
        K_local add up to K.

    Raises:
        TypeError: local_scores is not a floating tensor, keep is a bool or not a number, ignored is
            not a bool tensor, group is not a process group.
        ValueError: local_scores is not 1-D, keep is out of range, ignored has another shape or
            device; keep is not the same on all ranks, or one of them was given invalid arguments
            (on all ranks, before anything is selected).
        RuntimeError: torch.distributed is not initialised; a rank died or did not call within the
            group's timeout.
    """
    ranks, rank = check_group(FUNCTION, group)
    wrong = None
    try:
        keep = _check(local_scores, keep, ignored)
    except (TypeError, ValueError) as error:  # the others must be told, as they are waiting
        wrong, local_scores, keep, ignored = error, torch.empty(0, device="cpu"), 1, None
    local_scores = local_scores.detach().resolve_neg()
    rows = None if ignored is None else (~ignored).nonzero()[:, 0]
    if rows is not None:
        local_scores = local_scores[rows]
    terms = Terms(keep, local_scores.dtype == torch.float64, wrong is None)
    rounds = counting_rounds(_Keys(local_scores), terms, rank, ranks)
    try:
        counts = next(rounds)
        while True:
            total = sum_equal(FUNCTION, counts.to(local_scores.device), group)
            counts = rounds.send(total.cpu())
    except StopIteration as finished:
        own = finished.value
    except Disagreement:
        told = torch.tensor(terms.told(), device=local_scores.device)
        all_terms = [Terms.heard(facts.tolist()) for facts in gather_equal(FUNCTION, told, group)]
        if wrong is not None:
            raise wrong from None
        raise ValueError(_worded(all_terms)) from None
    chosen = backends.resolve("select", None, local_scores)
    positions: torch.Tensor = chosen.select(local_scores, own)
    return positions if rows is None else rows[positions]


def _check(scores: torch.Tensor, keep: Keep, ignored: torch.Tensor | None) -> Keep:
    check_scores(FUNCTION, scores, "local_scores", "(N_local,)")
    if ignored is not None:
        check_ignored(FUNCTION, ignored, "local_scores", scores)
    keep = check_keep(FUNCTION, keep)
    return min(keep, 2**63 - 1) if isinstance(keep, int) else keep


class Disagreement(Exception):
    """The ranks' terms differ."""


class Terms(NamedTuple):
    """What the ranks must agree on: `keep`, whether scores are float64 (`wide`), and that no rank
    was given invalid arguments (`sound`)."""

    keep: Keep
    wide: bool
    sound: bool

    def told(self) -> list[int]:
        """The terms as four int64."""
        share = isinstance(self.keep, float)
        bits = torch.tensor(self.keep, dtype=torch.float64 if share else torch.int64, device="cpu")
        return [int(bits.view(torch.int64)), int(share), int(self.wide), int(self.sound)]

    @staticmethod
    def heard(facts: list[int]) -> Terms:
        """The terms from another rank's four int64."""
        bits, share, wide, sound = facts
        keep = torch.tensor(bits, device="cpu").view(torch.float64).item() if share else bits
        return Terms(keep, bool(wide), bool(sound))

    def votes(self) -> torch.Tensor:
        """One int64 per bit of the terms. Ranks agree exactly if every bit's sum over ranks is 0 or
        the number of ranks."""
        bits, *flags = self.told()
        return torch.tensor([*(bits >> i & 1 for i in range(64)), *flags], device="cpu")


def _worded(terms: list[Terms]) -> str:
    """How the terms differ, for an error message."""
    if not all(each.sound for each in terms):
        told = per_rank(["valid ones" if each.sound else "an error" for each in terms])
        return f"{FUNCTION}: arguments must be valid on all ranks, got {told}"
    if len({(type(each.keep), each.keep) for each in terms}) > 1:
        told = per_rank([repr(each.keep) for each in terms])
        return f"{FUNCTION}: keep must be the same on all ranks, got {told}"
    told = per_rank(["float64" if each.wide else "another dtype" for each in terms])
    return f"{FUNCTION}: local_scores must be float64 on all ranks or on none, got {told}"


# This rank's histogram (2**width,) int64: among its keys of `bits` bits that begin with `prefix`,
# the number with each value of the next `width` bits, which end at bit `shift`.
Histogram = Callable[[int, int, int], torch.Tensor]


def counting_rounds(
    histogram: Histogram, terms: Terms, rank: int, ranks: int
) -> Generator[torch.Tensor, torch.Tensor, int]:
    """The selection as a generator of all-reduces: yields this rank's int64 counts, is sent their
    sum over all ranks, and returns how many of its own highest scores this rank selects.

    The first counts also carry the votes on the terms.

    Raises:
        Disagreement: on all ranks, if the terms differ or one rank's are not sound.
        ValueError: keep is larger than the number of all scores.
    """
    bits = 64 if terms.wide else 32
    prefix = above = mine_above = count = 0
    for shift, width in _digits(bits):
        mine = histogram(prefix, shift, width)
        if shift + width == bits:
            votes = terms.votes()
            total = yield torch.cat([mine, votes])
            total, votes = total[: 1 << width], total[1 << width :]
            if not (terms.sound and ((votes == 0) | (votes == ranks)).all()):
                raise Disagreement
            n = int(total.sum())
            count = kept_count(check_keep_of(FUNCTION, terms.keep, n), n)
            if count == 0:
                return 0
        else:
            total = yield mine
        # The highest bin at which the cumulative count from the top reaches the number wanted.
        reached = above + total.flip(0).cumsum(0)
        place = int((reached < count).sum())
        chosen = (1 << width) - 1 - place
        above = int(reached[place] - total[chosen])
        mine_above += int(mine[chosen + 1 :].sum())
        prefix = prefix << width | chosen
    ties, mine_tied = int(total[chosen]), int(mine[chosen])
    if above + ties == count:
        return mine_above + mine_tied
    return mine_above + (yield from _share(count - above, mine_tied, rank, ranks))


def _share(
    wanted: int, mine: int, rank: int, ranks: int
) -> Generator[torch.Tensor, torch.Tensor, int]:
    """How many of its `mine` ties this rank selects if `wanted` are taken from the lowest ranks:
    the last rank that takes any is found by the digits of the rank numbers."""
    prefix = 0
    for shift, width in _digits(max(1, (ranks - 1).bit_length())):
        counts = torch.zeros(1 << width, dtype=torch.int64, device="cpu")
        if rank >> (shift + width) == prefix:
            counts[rank >> shift & ((1 << width) - 1)] = mine
        total = yield counts
        reached = total.cumsum(0)
        place = int((reached < wanted).sum())
        wanted -= int(reached[place] - total[place])
        prefix = prefix << width | place
    if rank == prefix:
        return wanted
    return mine if rank < prefix else 0


def _digits(bits: int) -> Iterator[tuple[int, int]]:
    """(shift, width) of the digits of a number, leading one first."""
    while bits > 0:
        width = min(DIGIT, bits)
        bits -= width
        yield bits, width


class _Keys:
    """Histograms of the scores' keys."""

    def __init__(self, scores: torch.Tensor) -> None:
        self.bits = 64 if scores.dtype == torch.float64 else 32
        self.parts: Any = scores.split(
            _CHUNKS.get(scores.device.type, _CHUNK)
        )  # or keys, once some are excluded
        self.are_keys = False

    def __call__(self, prefix: int, shift: int, width: int) -> torch.Tensor:
        counts: Any = 0
        kept, first = [], shift + width == self.bits
        # The sign bit comes first and is inverted.
        beginning = prefix - (1 << max(0, self.bits - shift - width - 1))
        for part in self.parts:
            keys = part if self.are_keys else order_keys(part)
            if not first:
                keys = keys[keys >> (shift + width) == beginning]
                kept.append(keys)
            digits = (keys >> shift) & ((1 << width) - 1)
            if first:
                digits ^= 1 << (width - 1)
            counts = counts + torch.bincount(digits, minlength=1 << width)
        if not first:
            self.parts, self.are_keys = kept, True
        return counts.cpu()
