"""Ways of choosing the samples of a pruned epoch, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from . import backends
from .drawing import shuffled, stream_of
from .keep import Keep, kept_count
from .selection import select
from .state import EMPState

_TINY = 1e-12  # what is below is drawn as if it were this: a logarithm has to exist
_UNITS = 2**61  # importance sampling counts in integers; products of them are below 2**63
_SMALL = 1e-30
_ROW = 4096  # values that one thread sums
_MOST = 2**31  # samples that it takes are fewer, so that each has a unit

# Ascending ids (K,) on the CPU, and the weights (N,) of their losses where these are not all 1.
Chosen = tuple[torch.Tensor, torch.Tensor | None]


def gumbel_keys(scores: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Keys (N,) float32 of random draws from `scores` (N,), both on the CPU: the samples with the
    K highest are K draws without replacement, each with probability in proportion to its score
    among those that are left.

    ``log(score) + G`` with Gumbel noise G, which is minus the logarithm of an exponential variable
    (Kool et al., 2019, arXiv 1903.06059). +inf stays the highest.
    """
    exponential = torch.empty(len(scores), dtype=torch.float32, device="cpu")
    exponential.exponential_(generator=generator)
    return scores.clamp_min(_TINY).log() - exponential.log()


def importance_draw(scores: torch.Tensor, count: int, stream: int) -> Chosen:
    """`count` different samples, each with a probability that is known exactly, and 1 over it.

    The probability p_i of sample i is in proportion to its score plus the mean of all scores
    (half of each draw is uniform, so that no weight is above about 2), and 1 where that share is
    above 1. Its weight is (count / N) / p_i: over the draws the expected weight of every sample is
    the same, and the mean of weight * loss over what is drawn has the mean loss over all N as its
    expectation.

    Samples in a random order are laid side by side on a line, each as long as its probability, and
    those are drawn on which one of `count` marks falls that stand 1 apart, the first at random
    (systematic sampling). Lengths are integers, so no sum is rounded and exactly `count` are drawn.

    Args:
        scores: (N,) float32 on the CPU; below 0 counts as 0. One never seen, +inf, counts as the
            highest of the others.
        count: from 1 to N.
        stream: seed of the order and of the first mark.

    Returns:
        Ascending ids (count,), weights (N,) float32.
    """
    n = len(scores)
    if count == n:
        return torch.arange(n, device="cpu"), None
    units = _units(scores, count)
    rest, left = units, count  # but for samples that are drawn for certain
    while True:
        whole = int(rest.sum())
        certain = -(-whole // left)  # so many units are the share of one draw
        if int(rest.max()) < certain:
            break
        left -= int((rest >= certain).sum())
        rest = rest[rest < certain]
    weights = units.float().reciprocal_().mul_(whole / left * count / n)
    drawn = torch.zeros(n, dtype=torch.bool, device="cpu")
    if left < count:
        drawn = units >= certain
        weights.masked_fill_(drawn, count / n)
        units.masked_fill_(drawn, 0)

    generator = torch.Generator().manual_seed(stream)
    first = int(torch.rand((), generator=generator, dtype=torch.float64, device="cpu") * whole)
    order = shuffled(torch.arange(n, device="cpu"), stream_of(stream, 1))
    backend = backends.resolve("EMPSampler", None, units)
    backend.systematic(units, order, left, whole, first, drawn)
    return drawn.nonzero()[:, 0], weights


def _units(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Each score plus their mean, as an integer >= 1 (N,) int64 of a unit that is about the finest
    of which `count` times the sum is below 2**63."""
    n = len(scores)
    sizes, highest = scores.clamp_min(0.0), float(scores.max())
    if highest == torch.inf:
        unseen = scores == torch.inf
        highest = float(sizes.masked_fill_(unseen, 0.0).max())
        sizes.masked_fill_(unseen, highest)
    if highest <= 0.0:
        return torch.ones(n, dtype=torch.int64, device="cpu")
    if highest < _SMALL:  # whose mean may be no float32
        sizes.div_(highest)
    sizes.div_(_sum(sizes) / n).add_(1.0).mul_(_UNITS / count / (2 * n))
    return sizes.long().clamp_min_(1)


def _sum(values: torch.Tensor) -> float:
    """In one order on any number of threads: torch splits a whole tensor's sum among them."""
    whole = len(values) // _ROW * _ROW
    rows = values[:whole].view(-1, _ROW).sum(1, dtype=torch.float64)
    last = values[whole:].sum(dtype=torch.float64)
    return float(torch.cat([last[None], rows]).cumsum(0)[-1])


def _top(state: EMPState, keep: Keep, stream: int) -> Chosen:
    return state.select(keep).cpu(), None


def _gumbel(state: EMPState, keep: Keep, stream: int) -> Chosen:
    generator = torch.Generator().manual_seed(stream)
    return select(gumbel_keys(state.score.cpu(), generator), keep), None


def _pool(state: EMPState, keep: Keep, stream: int) -> Chosen:
    """The highest scores of a pool that is drawn at random, as large against the kept ones as all
    samples are against the pool."""
    n = state.num_samples
    count = kept_count(keep, n)
    size = min(n, math.isqrt(max(0, count * n - 1)) + 1)  # the root, rounded up
    pool = _at_random(n, size, stream)
    return pool[select(state.score.cpu()[pool], count)], None


def _importance(state: EMPState, keep: Keep, stream: int) -> Chosen:
    return importance_draw(state.score.cpu(), kept_count(keep, state.num_samples), stream)


class Way(NamedTuple):
    """A way of choosing: (state, keep, seed) -> Chosen; whether never-seen samples come first in
    it, so that where there are more of them than are kept, they are all that is chosen from."""

    choose: Callable[[EMPState, Keep, int], Chosen]
    unseen_first: bool = True


# By the names that EMPSampler takes.
SAMPLINGS = {
    "top": Way(_top),
    "gumbel": Way(_gumbel),
    "pool": Way(_pool),
    "importance": Way(_importance, unseen_first=False),
}


def check_sampling(function: str, sampling: str, num_samples: int) -> str:
    """Return `sampling`, the name of a way that can choose among so many samples.

    Raises:
        TypeError: it is no str.
        ValueError: it names no way, or there are too many samples.
    """
    if not isinstance(sampling, str):
        raise TypeError(f"{function}: sampling must be a str, got {type(sampling).__name__}")
    if sampling not in SAMPLINGS:
        raise ValueError(f"{function}: sampling must be {_NAMES}, got {sampling!r}")
    if sampling == "importance" and num_samples >= _MOST:
        raise ValueError(
            f"{function}: state must hold fewer than {_MOST} samples with sampling='importance', "
            f"got {num_samples}"
        )
    return sampling


_NAMES = " or ".join(SAMPLINGS)


def chosen(state: EMPState, keep: Keep, sampling: str, stream: int) -> Chosen:
    """What a pruned epoch draws. Where more samples were never seen than are kept, nothing tells
    them apart but their ids, and data sets are often sorted by class: `stream` chooses among them.
    """
    way = SAMPLINGS[sampling]
    if state.num_samples == 0:
        return torch.arange(0, device="cpu"), None
    if not way.unseen_first or state.score.max() < torch.inf:  # quicker than to count them
        return way.choose(state, keep, stream)
    unseen = (state.score == torch.inf).nonzero()[:, 0]
    count = kept_count(keep, state.num_samples)
    if len(unseen) <= count:
        return way.choose(state, keep, stream)
    return unseen.cpu()[_at_random(len(unseen), count, stream)], None


def _at_random(n: int, count: int, stream: int) -> torch.Tensor:
    """`count` of the positions 0 to n - 1, ascending."""
    generator = torch.Generator().manual_seed(stream)
    return select(torch.rand(n, generator=generator, dtype=torch.float32, device="cpu"), count)
