"""An epoch's order, and one rank's way through it."""

from __future__ import annotations

from collections.abc import Iterator
from operator import length_hint
from typing import TYPE_CHECKING

import torch

from . import backends

if TYPE_CHECKING:
    from .sampler import EMPSampler

_CHUNK = 1024  # ids handed over to Python at a time
_TINY = 1e-12  # what is below is drawn as if it were this: a logarithm has to exist
_MASK = 2**64 - 1


def stream_of(seed: int, epoch: int) -> int:
    """The 64-bit seed of an epoch's order: two splitmix64 steps, so that no two are alike."""
    z = seed & _MASK
    for add in (0, epoch):
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


class Order:
    """An epoch's ids (L,) of all ranks, how many of them were drawn before, and whether they come
    from a checkpoint."""

    def __init__(self, epoch: int, ids: torch.Tensor, start: int, *, resumed: bool) -> None:
        self.epoch, self.ids, self.start = epoch, ids, min(start, len(ids))
        self.resumed = resumed


class Drawing:
    """How far one of `ranks` ranks has come in an order.

    Attributes:
        ids: what the rank draws of it, int64.
        position: how many of them it has drawn.
        stopped: whether it was asked for one more.
    """

    def __init__(self, order: Order, ranks: int, rank: int, drop_last: bool) -> None:
        self.order, self.ranks = order, ranks
        self.ids = _of_rank(order, ranks, rank, drop_last)
        self.stopped = False
        self._taken = 0
        self._left: Iterator[int] = iter(())  # of the ids taken

    @property
    def position(self) -> int:
        return self._taken - length_hint(self._left)

    def chunks(self) -> Iterator[Iterator[int]]:
        """The ids, 1024 at a time: `position` follows whoever draws them from these iterators."""
        for ids in self.ids.split(_CHUNK):
            self._left = iter(ids.tolist())
            self._taken += len(ids)
            yield self._left

    @property
    def over(self) -> bool:
        """Whether all ids are drawn, be it that nobody has asked for one more yet."""
        return self.stopped or 0 < self.position == len(self.ids)

    @property
    def unused(self) -> bool:
        return self.position == 0 and not self.stopped

    def rest(self) -> Order:
        """What all ranks have left when each has drawn as much as this one."""
        order, drawn = self.order, self.position * self.ranks
        return Order(order.epoch, order.ids, order.start + drawn, resumed=True)


def _of_rank(order: Order, ranks: int, rank: int, drop_last: bool) -> torch.Tensor:
    """The rank's ids: every R-th of what is left, all ranks equally many."""
    rest = order.ids[order.start :]
    if ranks == 1:
        return rest
    whole = len(rest) // ranks * ranks
    if drop_last or whole == len(rest):
        rest = rest[:whole]
    else:
        padding = torch.arange(whole + ranks - len(rest), device=rest.device) % len(order.ids)
        rest = torch.cat([rest, order.ids[padding]])
    return rest[rank::ranks].contiguous()


def draws(sampler: EMPSampler, drawing: Drawing) -> Iterator[int]:
    """A sampler's iterator: hands out a drawing's ids and counts them in the state's selections.

    No line of Python runs for an id.
    """
    state = sampler.state
    if drawing.order.start == 0:
        state.close_window()
    for ids in drawing.chunks():
        counts = state.selections  # held: the counter knows its address
        if counts.is_cpu:
            backend = backends.resolve("EMPSampler", None, drawing.ids)
            yield from map(backend.counter(counts), ids)
        else:
            ahead = drawing.ids[drawing.position : drawing.position + _CHUNK].to(counts.device)
            counts.index_add_(0, ahead, torch.ones_like(ahead, dtype=torch.int32))
            yield from ids
    drawing.stopped = True
    sampler.end(drawing)
