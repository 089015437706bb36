"""How an epoch's samples are chosen and put into an order, and how their ids are handed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from . import backends
from .epochs import Epoch
from .keep import Keep, kept_count
from .loaders import Hold, asking
from .loop_checks import check_loader
from .selection import select
from .state import EMPState

_CHUNK = 1024  # ids between two looks at where the state is
_TINY = 1e-12  # what is below is drawn as if it were this: a logarithm has to exist
_MASK = 2**64 - 1
SHUFFLED = 2**32 - 2**17  # ids that can be shuffled are fewer; csrc/cpu/shuffle.h says why


def stream_of(seed: int, epoch: int) -> int:
    """The 64-bit seed of an epoch's order: splitmix64 steps, so that no two are alike. One for the
    seed's lowest 64 bits, one for each further 64 of it and its sign, and one for the epoch."""
    size = abs(seed)
    z, above = size & _MASK, 2 * (size >> 64) + (seed < 0)
    words = [above >> bits & _MASK for bits in range(0, above.bit_length(), 64)]
    for add in (0, *words, epoch):
        z = (z + add + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return z


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
    ids, weights = SAMPLINGS[sampling](state, keep, stream)
    if len(ids) == 0 or state.score[ids[0]] < torch.inf:  # then not all of these were never seen
        return ids, weights
    unseen = (state.score == torch.inf).nonzero()[:, 0]
    count = kept_count(keep, state.num_samples)
    if len(unseen) <= count:
        return ids, weights
    generator = torch.Generator().manual_seed(stream)
    keys = torch.rand(len(unseen), generator=generator, dtype=torch.float32, device="cpu")
    return unseen.cpu()[select(keys, count)], None


def shuffled(ids: torch.Tensor, stream: int) -> torch.Tensor:
    """Ids (K,) int64 on the CPU in a random order."""
    order: torch.Tensor = backends.resolve("EMPSampler", None, ids).shuffle(ids, stream)
    return order


def iterator_of(epoch: Epoch, state: EMPState, ended: Callable[[], None]) -> Iterator[int]:
    """Hands out an epoch's ids, counts them in the state's selections, and says who holds it.

    No line of Python runs for an id.
    """
    loader = asking()
    if loader is not None:
        check_loader(loader, state)

    def begin(position: int) -> torch.Tensor | None:
        if position == 0:
            assert epoch.hold is not None
            epoch.hold.look()
            if epoch.order.start == 0:
                state.close_window()
        counts = state.selections
        if counts.is_cpu:
            return counts
        ahead = epoch.ids[position : position + _CHUNK].to(counts.device)
        counts.index_add_(0, ahead, torch.ones_like(ahead, dtype=torch.int32))
        return None

    backend = backends.resolve("EMPSampler", None, epoch.ids)
    iterator: Iterator[int] = backend.draws(epoch.ids, epoch.progress, _CHUNK, begin, ended)
    epoch.held_by(Hold(iterator, loader))
    return iterator
