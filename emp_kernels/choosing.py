"""Ways of choosing the samples of a pruned epoch, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .keep import Keep, kept_count
from .selection import select
from .state import EMPState

_TINY = 1e-12  # what is below is drawn as if it were this: a logarithm has to exist


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


# Ascending ids (K,) on the CPU, and the weights (N,) of their losses where these are not all 1.
Chosen = tuple[torch.Tensor, torch.Tensor | None]


def _top(state: EMPState, keep: Keep, stream: int) -> Chosen:
    return state.select(keep).cpu(), None


def _gumbel(state: EMPState, keep: Keep, stream: int) -> Chosen:
    generator = torch.Generator().manual_seed(stream)
    return select(gumbel_keys(state.score.cpu(), generator), keep), None


# The ways of choosing, by the names that EMPSampler takes.
SAMPLINGS: dict[str, Callable[[EMPState, Keep, int], Chosen]] = {"top": _top, "gumbel": _gumbel}


def chosen(state: EMPState, keep: Keep, sampling: str, stream: int) -> Chosen:
    """What a pruned epoch draws. Where more samples were never seen than are kept, nothing tells
    them apart but their ids, and data sets are often sorted by class: `stream` chooses among them.
    """
    if state.num_samples == 0 or state.score.max() < torch.inf:  # quicker than to count them
        return SAMPLINGS[sampling](state, keep, stream)
    unseen = (state.score == torch.inf).nonzero()[:, 0]
    count = kept_count(keep, state.num_samples)
    if len(unseen) <= count:
        return SAMPLINGS[sampling](state, keep, stream)
    generator = torch.Generator().manual_seed(stream)
    keys = torch.rand(len(unseen), generator=generator, dtype=torch.float32, device="cpu")
    return unseen.cpu()[select(keys, count)], None
