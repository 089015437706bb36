"""The position of a sampler: the epoch, its order, and how much of it has been drawn."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import torch

from .loaders import Hold
from .orders import AnyOrder, share_size


class Epoch:
    """One rank's pass over an order.

    Attributes:
        ids: the rank's share, int64.
        position: number of ids drawn so far.
        stopped: whether the iterator was exhausted.
        hold: on the iterator; None if no iterator has begun.
        older: the epoch of the same number that was running and still held when this one began.
    """

    def __init__(self, order: AnyOrder, ids: torch.Tensor, older: Epoch | None = None) -> None:
        self.order, self.ids, self.older = order, ids, older
        self.progress = array("q", [0, 0, 0])
        self.hold: Hold | None = None

    def held_by(self, hold: Hold) -> None:
        """Set what draws it."""
        self.hold = hold
        before = None if self.older is None else self.older.hold
        if before is not None and hold.loader is not None and hold.loader is before.loader:
            assert self.older is not None
            self.older = self.older.older  # the loader abandoned that loop for this one

    @property
    def position(self) -> int:
        return self.progress[0]

    @property
    def stopped(self) -> bool:
        return bool(self.progress[1])

    @property
    def held(self) -> bool:
        """Whether a loop still runs, or trains the last batch."""
        return self.hold is not None and self.hold.held

    @property
    def abandoned(self) -> bool:
        """Whether its loop was left with ids to draw or prefetched batches to deliver. (An epoch
        whose last batch was delivered is over, whether or not more was requested.)"""
        return self.hold is not None and not self.hold.held and not self.over

    @property
    def over(self) -> bool:
        """Whether all ids are drawn and all their batches delivered."""
        whole = self.stopped or 0 < self.position == len(self.ids)
        return whole and self.hold is not None and not self.hold.undelivered

    @property
    def finished(self) -> bool:
        """Whether it is over and its loop has seen the end or is gone."""
        return self.over and self.hold is not None and self.hold.finished(self.stopped)


class Epochs:
    """The epochs of a sampler: the running one, the next one, and what a checkpoint holds.

    The rules:

    - The running epoch is the last iterator's; if that was abandoned while an older iterator of the
      same epoch is held (a peek at a batch in mid-loop), the older one's.
    - An epoch that is over is followed by the next one. One that was abandoned is drawn again: a
      resumed one from where it was resumed, others by the current scores.
    - :meth:`name` makes another epoch the next one; naming the running or the resumed one changes
      nothing.
    - A counter that restarts at 0 after a resume counts from the resumed epoch.
    """

    def __init__(self, ranks: int, rank: int, drop_last: bool) -> None:
        self.ranks, self.rank, self.drop_last = ranks, rank, drop_last
        self._next = 0  # the epoch to draw if none is running
        self._epoch: Epoch | None = None
        self._resumed_at: int | None = None  # until set_epoch is called after a resume
        self._first = 0  # the epoch that a loader's own counter calls 0
        self._named = 0  # the number that it passed last

    @property
    def running(self) -> Epoch | None:
        """The epoch that is being drawn, was drawn last, or is to be resumed."""
        while self._epoch is not None and self._epoch.older is not None and self._epoch.abandoned:
            self._epoch = self._epoch.older
        return self._epoch

    @property
    def coming(self) -> int:
        """The epoch that the next iterator draws."""
        running = self.running
        if running is None:
            return self._next
        return running.order.number + running.over

    @property
    def current(self) -> int:
        """The running epoch while its loop holds it, else the coming one."""
        running = self.running
        return running.order.number if running is not None and running.held else self.coming

    def fixed(self, number: int) -> AnyOrder | None:
        """The order of epoch `number`, if nothing draws it anew: it is being drawn, or resumed."""
        running = self.running
        if running is None or running.order.number != number:
            return None
        resumed = running.order.resumed and not running.over
        return running.order if running.held or resumed else None

    def name(self, number: int) -> None:
        """Implements set_epoch."""
        number = self._meant(number)
        running = self.running
        if running is None or running.order.number != number or running.finished:
            self._epoch, self._next = None, number

    def _meant(self, number: int) -> int:
        """The epoch meant by set_epoch(number): loaders with their own counter (Accelerate's,
        Lightning Fabric's) restart at 0 after a resume."""
        resumed_at, self._resumed_at = self._resumed_at, None
        if resumed_at is not None:
            again = number == 0 and resumed_at == self.coming
            self._first = resumed_at if again else 0
        elif self._first and number not in (self._named, self._named + 1):
            self._first = 0  # not a counter that counts up
        self._named = number
        return self._first + number

    def begin(self, draw: Callable[[int], AnyOrder]) -> Epoch:
        """The epoch of a new iterator: the rest of a resumed order, or a new one from `draw`."""
        last = self.running
        if last is not None and last.order.resumed and not last.over:
            order = last.order
        else:
            if last is not None and last.over and not last.held:
                self._next, self._epoch, last = self.coming, None, None  # its memory is needed
            order = draw(self.coming)
        beside = last is not None and last.held and last.order.number == order.number
        ids = order.share(self.ranks, self.rank, self.drop_last)
        self._epoch = Epoch(order, ids, last if beside else None)
        return self._epoch

    def snapshot(self, position: int | None) -> tuple[int, AnyOrder | None, int]:
        """(epoch, its order, how many of this rank's ids are drawn) for a checkpoint."""
        running = self.running
        if running is None:
            return self._next, None, 0
        order = running.order
        drawn = running.position if position is None else min(position, len(running.ids))
        whole = drawn == len(running.ids) and running.hold is not None
        if position is None and running.stopped and running.abandoned:  # prefetched, not trained
            return order.number, order, 0
        if whole and (position is not None or (running.stopped and not running.held)):
            return order.number + 1, None, 0
        return order.number, order, drawn

    def restore(self, number: int, order: AnyOrder | None) -> None:
        """Continue from a checkpoint: with the rest of `order`, else at the start of epoch
        `number`."""
        self._resume(number, order)
        self._resumed_at, self._first, self._named = number, 0, 0

    def _resume(self, number: int, order: AnyOrder | None) -> None:
        self._next = number
        self._epoch = None
        if order is not None:  # only the number of ids is known; the next iterator finds the ids
            size = share_size(order, self.ranks, self.drop_last)
            self._epoch = Epoch(
                order, torch.zeros((), dtype=torch.int64, device="cpu").expand(size)
            )

    def copy(self) -> Epochs:
        """For pickle and copy: epochs at the same position, without iterators."""
        number, order, drawn = self.snapshot(None)
        if order is not None:
            start = min(order.start + drawn * self.ranks, order.length)
            order = order.resumed_at(start)
        other = Epochs(self.ranks, self.rank, self.drop_last)
        other.__dict__.update(self.__dict__)
        other._resume(number, order)
        return other
