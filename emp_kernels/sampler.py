"""Which samples an epoch draws, and in which order."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import Sampler

from . import backends, distributed
from .drawing import Drawing, Order, draws, gumbel_keys, stream_of
from .keep import Keep, check_keep_of, kept_count
from .selection import select
from .state import EMPState
from .validation import check_int, check_size, check_snapshot

_VERSION = 2
_SAMPLINGS = ("top", "gumbel")


class EMPSampler(Sampler[int]):
    """Draws every sample in the first and last epochs, the state's selection in between.

    An epoch's order is fixed when ``__iter__`` is called, from (seed, epoch, state): the ids of
    ``state.select(keep)``, never-seen samples first among them (or, with `sampling`, a random draw
    by score), in an order that `seed` and the epoch's number give. No global random generator is
    used. An iterator that has drawn all its ids advances the epoch, which starts at 0;
    :meth:`set_epoch` overrides it.

    With several ranks, rank r of R draws the ids r, r + R, r + 2R, ... of the one order that all
    ranks agree on: at each epoch's start their states are merged
    (:func:`emp_kernels.distributed.sync`, in the default process group), so that R ranks with
    batches of B draw what one process with batches of R * B would.

    `selections` of the state counts each id as it is drawn (on an accelerator: up to 1023 ids
    ahead). Ids that worker processes have prefetched are drawn.

    Args:
        state: of the data set's size; its scores choose the ids.
        keep: a float in (0, 1] keeps K = max(1, round(keep * N)) samples, an int keeps that many.
        sampling: "top" keeps the highest scores. "gumbel" draws as many without replacement, each
            with probability in proportion to its score (:func:`drawing.gumbel_keys`), anew each
            epoch: no sample is left out for ever, and one that no training fits does not take a
            place in every epoch. Never-seen samples are first in both.
        shuffle: False draws ascending ids.
        seed: any int, the same on all ranks.
        warmup_epochs: so many epochs at the beginning draw everything.
        anneal_epochs: so many of `epochs` at the end draw everything.
        epochs: how many there will be; needed by `anneal_epochs` and :meth:`total_steps`. Later
            ones are like the last.
        num_replicas, rank: of the ranks that share an epoch; by default those of the initialised
            process group, else 1 and 0.
        drop_last: with several ranks, leave out the last ids so that all ranks draw equally many;
            otherwise the first ids are drawn once more.

    Raises:
        TypeError: a wrong type.
        ValueError: a value out of range, `anneal_epochs` without `epochs`.
    """

    state: EMPState
    keep: Keep
    sampling: str
    shuffle: bool
    drop_last: bool
    seed: int
    warmup_epochs: int
    anneal_epochs: int
    epochs: int | None
    num_replicas: int
    rank: int
    epoch: int

    def __init__(
        self,
        state: EMPState,
        keep: Keep = 0.3,
        *,
        sampling: str = "top",
        shuffle: bool = True,
        seed: int = 0,
        warmup_epochs: int = 1,
        anneal_epochs: int = 0,
        epochs: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
    ) -> None:
        function = "EMPSampler"
        if not isinstance(state, EMPState):
            raise TypeError(f"{function}: state must be an EMPState, got {type(state).__name__}")
        self.state = state
        self.keep = check_keep_of(function, keep, state.num_samples)
        if not isinstance(sampling, str):
            raise TypeError(f"{function}: sampling must be a str, got {type(sampling).__name__}")
        if sampling not in _SAMPLINGS:
            raise ValueError(
                f"{function}: sampling must be {' or '.join(_SAMPLINGS)}, got {sampling!r}"
            )
        self.sampling = sampling
        for name, flag in (("shuffle", shuffle), ("drop_last", drop_last)):
            if not isinstance(flag, bool):
                raise TypeError(f"{function}: {name} must be a bool, got {type(flag).__name__}")
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = check_int(function, "seed", seed)
        self.warmup_epochs = check_size(function, "warmup_epochs", warmup_epochs)
        self.anneal_epochs = check_size(function, "anneal_epochs", anneal_epochs)
        self.epochs = None if epochs is None else check_size(function, "epochs", epochs)
        if self.epochs is None and self.anneal_epochs:
            raise ValueError(
                f"{function}: epochs must be given with anneal_epochs, got epochs=None and "
                f"anneal_epochs={anneal_epochs}"
            )
        if self.epochs is not None and self.anneal_epochs > self.epochs:
            raise ValueError(
                f"{function}: anneal_epochs must be at most epochs={epochs}, got {anneal_epochs}"
            )
        self.num_replicas, self.rank = distributed.ranks(function, num_replicas, rank)
        self.epoch = 0
        self._drawing: Drawing | None = None  # of the last iterator
        self._iterator: weakref.ref[Iterator[int]] | None = None
        self._resumed: Order | None = None  # what the next iterator draws

    def __len__(self) -> int:
        """How many ids this rank draws in the coming epoch (all of them, also where a resumed epoch
        will only draw the rest)."""
        return self._length(self._coming_epoch())

    def total_steps(self, batch_size: int) -> int:
        """Optimiser steps of all epochs on this rank: the sum of ceil(len / batch_size).

        What a learning-rate schedule must span.

        Raises:
            TypeError: `batch_size` is no int.
            ValueError: it is below 1, or the sampler was not given `epochs`.
        """
        function = "EMPSampler.total_steps"
        if check_size(function, "batch_size", batch_size) < 1:
            raise ValueError(f"{function}: batch_size must be at least 1, got {batch_size}")
        if self.epochs is None:
            raise ValueError(f"{function}: epochs must be given to EMPSampler, got None")
        return sum(-(-self._length(epoch) // batch_size) for epoch in range(self.epochs))

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one; without this call, epochs follow one another.

        A resumed epoch's rest is still drawn when its own number is set.
        """
        self.epoch = check_size("EMPSampler.set_epoch", "epoch", epoch)
        resumed = self._waiting()
        self._drawing = None
        self._resumed = resumed if resumed is not None and resumed.epoch == epoch else None

    def __iter__(self) -> Iterator[int]:
        order = self._waiting()
        self._resumed = None
        if order is None:
            self.epoch = self._coming_epoch()
            self.state.epoch = max(self.state.epoch, self.epoch)
            if self.num_replicas > 1 and distributed.initialised():
                distributed.sync(self.state)
            order = Order(self.epoch, self._draw(self.epoch), 0, resumed=False)
        self._drawing = Drawing(order, self.num_replicas, self.rank, self.drop_last)
        iterator = draws(self, self._drawing)
        self._iterator = weakref.ref(iterator)
        return iterator

    def end(self, drawing: Drawing) -> None:
        """Go on to the next epoch, unless `drawing` is not the last iterator's."""
        if drawing is self._drawing:
            self.epoch = self.state.epoch = drawing.order.epoch + 1

    def state_dict(self, *, position: int | None = None) -> dict[str, Any]:
        """The epoch, its order, and how much of it is drawn.

        It shares the order's tensor, which nobody changes. With one rank's dictionary, every rank
        of any number of ranks resumes: what one rank has drawn, the others have too. Save the
        EMPState beside it; torch.distributed.checkpoint takes both objects as they are.

        Args:
            position: how many ids of the last iterator count as drawn, where a loader that
                prefetches has drawn more than were trained on.
        """
        order, drawing = self._resumed, self._drawing
        if order is None and drawing is not None and (position is not None or not self._spent()):
            order = drawing.order
            drawn = drawing.position if position is None else min(position, len(drawing.ids))
            if position is not None and drawn == len(drawing.ids):
                return self._snapshot(order.epoch + 1, None, 0)
            return self._snapshot(order.epoch, order, drawn)
        return self._snapshot(self._coming_epoch() if order is None else order.epoch, order, 0)

    def _snapshot(self, epoch: int, order: Order | None, drawn: int) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "num_samples": self.state.num_samples,
            "epoch": epoch,
            # In a tuple, whose length torch.distributed.checkpoint need not know when it loads.
            "order": None if order is None else (order.ids,),
            "start": 0 if order is None else order.start,
            "position": drawn,
            "num_replicas": self.num_replicas,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Make the next iterator draw exactly what the saved one had not drawn.

        The number of ranks may differ from the saved one.

        Raises:
            TypeError: `state_dict` is no mapping, or an entry has another type.
            ValueError: it lacks an entry, or is of another version or size; nothing is changed.
        """
        function = "EMPSampler.load_state_dict"
        entries = ("num_samples", "epoch", "order", "start", "position", "num_replicas")
        check_snapshot(function, state_dict, _VERSION, entries)
        if state_dict["num_samples"] != self.state.num_samples:
            raise ValueError(
                f"{function}: num_samples must be the state's {self.state.num_samples}, "
                f"got {state_dict['num_samples']}"
            )
        epoch, start, position, ranks = (
            check_size(function, name, state_dict[name])
            for name in ("epoch", "start", "position", "num_replicas")
        )
        order = state_dict["order"]
        if order is not None:
            if not isinstance(order, tuple | list) or not isinstance(order[0], torch.Tensor):
                raise TypeError(
                    f"{function}: order must be a tuple of one tensor or None, "
                    f"got {type(order).__name__}"
                )
            order = Order(epoch, order[0], start + position * ranks, resumed=True)
        self.epoch, self._drawing, self._resumed = epoch, None, order

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the copy goes on where this sampler is."""
        resumed = self._resumed
        if resumed is None and self._drawing is not None and not self._spent():
            resumed = self._drawing.rest()
        own = {"_drawing": None, "_iterator": None, "_resumed": resumed}
        return self.__dict__ | own | {"epoch": self._coming_epoch()}

    def _spent(self) -> bool:
        """Whether the last iterator was asked for more than it had and is in nobody's hands.

        A batch sampler that still holds it has only just completed its last, short batch: that
        batch is being trained, and the epoch with it.
        """
        held = self._iterator is not None and self._iterator() is not None
        return self._drawing is not None and self._drawing.stopped and not held

    def _waiting(self) -> Order | None:
        """A resumed order that no iterator has begun to draw."""
        if self._resumed is not None:
            return self._resumed
        drawing = self._drawing
        if drawing is None or not (drawing.order.resumed and drawing.unused and len(drawing.ids)):
            return None
        return drawing.order

    def _coming_epoch(self) -> int:
        """The epoch that the next iterator draws: a new one once the last has drawn all it had."""
        drawing = self._drawing
        if self._resumed is not None or drawing is None:
            return self.epoch
        spent = drawing.over or not len(drawing.ids)
        return drawing.order.epoch + 1 if spent else self.epoch

    def _draws_all(self, epoch: int) -> bool:
        if epoch < self.warmup_epochs:
            return True
        return self.anneal_epochs > 0 and epoch >= (self.epochs or 0) - self.anneal_epochs

    def _length(self, epoch: int) -> int:
        n = self.state.num_samples
        return self._share(n if self._draws_all(epoch) else kept_count(self.keep, n))

    def _share(self, count: int) -> int:
        """How many of `count` ids one rank draws."""
        return (count if self.drop_last else count + self.num_replicas - 1) // self.num_replicas

    def _draw(self, epoch: int) -> torch.Tensor:
        """The epoch's ids in order, of all ranks, int64 on the CPU."""
        if self._draws_all(epoch):
            ids = torch.arange(self.state.num_samples, device="cpu")
        elif self.sampling == "gumbel":
            generator = torch.Generator().manual_seed(stream_of(self.seed, epoch))
            ids = select(gumbel_keys(self.state.score.cpu(), generator), self.keep)
        else:
            ids = self.state.select(self.keep).cpu()
        if not self.shuffle:
            return ids
        backend = backends.resolve("EMPSampler", None, ids)
        shuffled: torch.Tensor = backend.shuffle(ids, stream_of(self.seed, epoch))
        return shuffled
