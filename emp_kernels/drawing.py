"""Shuffles an epoch's samples and iterates over their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from . import backends
from .epochs import Epoch
from .loaders import Hold, asking
from .loop_checks import check_loader
from .state import EMPState

_CHUNK = 1024  # ids between two checks of the state's location
_MASK = 2**64 - 1
SHUFFLED = 2**32 - 2**17  # only fewer ids can be shuffled; see csrc/cpu/shuffle.h


def stream_of(seed: int, epoch: int) -> int:
    """The 64-bit seed of an epoch's order, by splitmix64 steps: one for the seed's lowest 64 bits,
    one for each further 64 bits and the sign, and one for the epoch."""
    size = abs(seed)
    z, above = size & _MASK, 2 * (size >> 64) + (seed < 0)
    words = [above >> bits & _MASK for bits in range(0, above.bit_length(), 64)]
    for add in (0, *words, epoch):
        z = (z + add + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return z


def shuffled(ids: torch.Tensor, stream: int) -> torch.Tensor:
    """Ids (K,) int64 on the CPU in a random order."""
    order: torch.Tensor = backends.resolve("EMPSampler", None, ids).shuffle(ids, stream)
    return order


def iterator_of(epoch: Epoch, state: EMPState, ended: Callable[[], None]) -> Iterator[int]:
    """An iterator over an epoch's ids that counts them in the state's selections and records what
    holds it.

    No Python code runs per id.
    """
    loader = asking()
    if loader is not None:
        check_loader(loader, state)

    def begin(position: int) -> torch.Tensor | None:
        if position == 0:
            assert epoch.hold is not None
            epoch.hold.look()
            state.close_window_of(epoch.order.start)
        return state.counts_of(epoch.ids[position : position + _CHUNK])

    backend = backends.resolve("EMPSampler", None, epoch.ids)
    iterator: Iterator[int] = backend.draws(epoch.ids, epoch.progress, _CHUNK, begin, ended)
    state.follow(epoch.ids, epoch.progress, iterator)
    epoch.held_by(Hold(iterator, loader))
    return iterator
