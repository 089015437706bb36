"""Sampling methods: which samples a pruned epoch draws, by name."""

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

_BLOCK = 1 << 16  # keys per block, which fit in a cache
_TINY = 1e-12  # lower bound of the scores, so that the logarithm exists
_UNITS = 2**61  # total length in integer units; products must stay below 2**63
_SMALL = 1e-30
_ROW = 4096  # values summed by one thread
_MOST = 2**31  # importance sampling takes fewer samples, so that each has a unit

# Ascending ids (K,) on the CPU, and the weights (N,) of the losses if they are not all 1.
Chosen = tuple[torch.Tensor, torch.Tensor | None]


def gumbel_keys(scores: torch.Tensor, stream: int, first: int = 0) -> torch.Tensor:
    """Gumbel top-k keys (N,) float32 of `scores` (N,), both on the CPU: the K highest keys are K
    draws without replacement, each with probability proportional to its score among the remaining
    samples.

    ``log(score) + G`` with Gumbel noise G, minus the logarithm of an exponential variable (Kool et
    al., 2019, arXiv 1903.06059). +inf stays the highest. Sample i (ids start at `first`) uses
    element i of the random stream seeded with `stream` (64 bits), so a part of the scores gets the
    same keys as in the whole.
    """
    keys = torch.empty(len(scores), dtype=torch.float32, device="cpu")
    for start in range(0, len(scores), _BLOCK):
        part = scores[start : start + _BLOCK]
        gumbel = -(-_uniform(stream, first + start, len(part)).log()).log()
        torch.add(part.clamp_min(_TINY).log(), gumbel.float(), out=keys[start : start + _BLOCK])
    return keys


def _uniform(stream: int, first: int, count: int) -> torch.Tensor:
    """Elements [first, first + count) of the splitmix64 stream, as float64 between 0 and 1."""

    def signed(x: int) -> int:
        return (x + 2**63) % 2**64 - 2**63

    def mixed(z: torch.Tensor, shift: int) -> torch.Tensor:
        return z ^ ((z >> shift) & (2 ** (64 - shift) - 1))

    z = torch.arange(first + 1, first + count + 1, device="cpu") * signed(0x9E3779B97F4A7C15)
    z = mixed(z + signed(stream), 30) * signed(0xBF58476D1CE4E5B9)
    z = mixed(mixed(z, 27) * signed(0x94D049BB133111EB), 31)
    return ((z >> 12 & (2**52 - 1)).double() + 0.5) * 2.0**-52


def importance_draw(scores: torch.Tensor, count: int, stream: int) -> Chosen:
    """Draws `count` distinct samples with exactly known inclusion probabilities; returns
    inverse-probability weights.

    The inclusion probability p_i is proportional to the sample's score plus the mean score (a
    mixture of half uniform, so that no weight exceeds about 2), capped at 1. The weight is (count /
    N) / p_i, so the mean of weight * loss over the drawn samples is an unbiased estimate of the
    mean loss over all N.

    Systematic sampling: the samples, in random order, are laid side by side on a line, each as long
    as its probability, and those that contain one of `count` marks 1 apart are drawn, the first
    mark being random. Lengths are integers, so no sum is rounded and exactly `count` are drawn.

    Args:
        scores: (N,) float32 on the CPU; negative ones count as 0, +inf (never seen) as the highest
            of the others.
        count: from 1 to N.
        stream: seed of the order and of the first mark.

    Returns:
        Ascending ids (count,), weights (N,) float32.
    """
    n = len(scores)
    if count == n:
        return torch.arange(n, device="cpu"), None
    units = _units(scores, count)
    rest, left = units, count  # without the samples that are drawn with certainty
    while True:
        whole = int(rest.sum())
        certain = -(-whole // left)  # units per draw
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
    """Each score plus the mean, as integers >= 1 (N,) int64 in about the finest unit for which
    `count` times the sum is below 2**63."""
    n = len(scores)
    sizes, highest = scores.clamp_min(0.0), float(scores.max())
    if highest == torch.inf:
        unseen = scores == torch.inf
        highest = float(sizes.masked_fill_(unseen, 0.0).max())
        sizes.masked_fill_(unseen, highest)
    if highest <= 0.0:
        return torch.ones(n, dtype=torch.int64, device="cpu")
    if highest < _SMALL:  # their mean may underflow float32
        sizes.div_(highest)
    sizes.div_(_sum(sizes) / n).add_(1.0).mul_(_UNITS / count / (2 * n))
    return sizes.long().clamp_min_(1)


def _sum(values: torch.Tensor) -> float:
    """A sum in a fixed order: torch would split a whole tensor's sum among its threads."""
    whole = len(values) // _ROW * _ROW
    rows = values[:whole].view(-1, _ROW).sum(1, dtype=torch.float64)
    last = values[whole:].sum(dtype=torch.float64)
    return float(torch.cat([last[None], rows]).cumsum(0)[-1])


def _top(state: EMPState, keep: Keep, stream: int) -> Chosen:
    return state.select(keep).cpu(), None


def _gumbel(state: EMPState, keep: Keep, stream: int) -> Chosen:
    return select(gumbel_keys(state.score.cpu(), stream), keep), None


def _pool(state: EMPState, keep: Keep, stream: int) -> Chosen:
    """The highest scores of a random pool of sqrt(K * N) samples; never-seen samples enter the pool
    first."""
    n, scores = state.num_samples, state.score.cpu()
    count = kept_count(keep, n)
    size = min(n, math.isqrt(max(0, count * n - 1)) + 1)  # the square root, rounded up
    keys = _random_keys(n, stream).masked_fill_(scores == torch.inf, torch.inf)
    pool = select(keys, size)
    return pool[select(scores[pool], count)], None


def _importance(state: EMPState, keep: Keep, stream: int) -> Chosen:
    return importance_draw(state.score.cpu(), kept_count(keep, state.num_samples), stream)


class Way(NamedTuple):
    """A sampling method: (state, keep, seed) -> Chosen, and whether it takes never-seen samples
    first, in which case it chooses only among them while there are more than K."""

    choose: Callable[[EMPState, Keep, int], Chosen]
    unseen_first: bool = True


# Keys are EMPSampler's names.
SAMPLINGS = {
    "top": Way(_top),
    "gumbel": Way(_gumbel),
    "pool": Way(_pool),
    "importance": Way(_importance, unseen_first=False),
}


def check_sampling(function: str, sampling: str, num_samples: int) -> str:
    """Return `sampling` if it names a method that supports `num_samples`.

    Raises:
        TypeError: it is no str.
        ValueError: an unknown name, or too many samples.
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
    """The samples of a pruned epoch. If more samples were never seen than are kept, `stream`
    chooses among them at random: taking the lowest ids would favour the first classes of a sorted
    data set.
    """
    if state.num_samples == 0:
        return torch.arange(0, device="cpu"), None
    way = SAMPLINGS[sampling]
    ids, weights = way.choose(state, keep, stream)
    if not way.unseen_first or state.score[ids[0]] < torch.inf:  # not only never-seen samples
        return ids, weights
    unseen = (state.score == torch.inf).nonzero()[:, 0]
    count = kept_count(keep, state.num_samples)
    if len(unseen) <= count:
        return ids, weights
    return unseen.cpu()[_at_random(len(unseen), count, stream)], None


def _at_random(n: int, count: int, stream: int) -> torch.Tensor:
    """`count` random positions in [0, n), ascending."""
    return select(_random_keys(n, stream), count)


def _random_keys(n: int, stream: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(stream)
    return torch.rand(n, generator=generator, dtype=torch.float32, device="cpu")
