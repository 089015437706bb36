"""An epoch's order, and one rank's way through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .sampler import EMPSampler

_CHUNK = 1024  # ids handed over to Python at a time
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


class Order:
    """An epoch's ids (L,) of all ranks, how many of them were drawn before, and whether they come
    from a checkpoint."""

    def __init__(self, epoch: int, ids: torch.Tensor, start: int, resumed: bool) -> None:
        self.epoch, self.ids, self.start = epoch, ids, min(start, len(ids))
        self.resumed = resumed


class Draws(Iterator[int]):
    """One rank's ids of an order, counted in the state's selections as they are drawn."""

    def __init__(self, sampler: EMPSampler, order: Order) -> None:
        self.sampler, self.order = sampler, order
        self.position = 0  # ids drawn
        self.ended = False  # StopIteration was raised
        self._ids = _of_rank(order, sampler)
        self._chunk: list[int] = []
        self._at = 0
        self._counts: Any = None

    def __next__(self) -> int:
        if self._at == len(self._chunk):
            self._next_chunk()
        drawn = self._chunk[self._at]
        self._at += 1
        self.position += 1
        if self._counts is not None:
            self._counts[drawn] += 1
        return drawn

    def _next_chunk(self) -> None:
        state = self.sampler.state
        if self.position == 0 and self.order.start == 0:
            state.close_window()
        if self.position == len(self._ids):
            self.end()
            raise StopIteration
        ids = self._ids[self.position : self.position + _CHUNK]
        self._chunk, self._at = ids.tolist(), 0
        if state.device.type == "cpu":
            self._counts = state.selections.numpy()
        else:
            ones = torch.ones_like(ids, dtype=torch.int32)
            state.selections.index_add_(0, ids.to(state.device), ones.to(state.device))

    def exhausted(self) -> bool:
        """Whether all ids are drawn, be it that nobody has asked for one more yet."""
        return self.ended or 0 < self.position == len(self._ids)

    def end(self) -> None:
        """The epoch is over: the next one is due, unless another iterator was made meanwhile."""
        if not self.ended and self.sampler._drawing is self:
            self.sampler.epoch = self.sampler.state.epoch = self.order.epoch + 1
        self.ended = True

    def rest(self) -> Order:
        """What all ranks have left when each has drawn as much as this one."""
        drawn = self.position * self.sampler.num_replicas
        return Order(self.order.epoch, self.order.ids, self.order.start + drawn, resumed=True)


def _of_rank(order: Order, sampler: EMPSampler) -> torch.Tensor:
    """The rank's ids: every R-th of what is left, all ranks equally many."""
    rest, ranks = order.ids[order.start :], sampler.num_replicas
    if ranks == 1:
        return rest
    whole = len(rest) // ranks * ranks
    if sampler.drop_last or whole == len(rest):
        rest = rest[:whole]
    else:
        padding = torch.arange(whole + ranks - len(rest)) % len(order.ids)
        rest = torch.cat([rest, order.ids[padding]])
    return rest[sampler.rank :: ranks].contiguous()
