"""Which samples an epoch draws, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import Sampler

from . import distributed
from .choosing import check_sampling, chosen
from .distributed.orders import loaded_order, saved_order, shared_order
from .drawing import SHUFFLED, iterator_of, shuffled, stream_of
from .epochs import Epochs
from .keep import Keep, check_keep_of, kept_count
from .loop_checks import Writes, check_keep_of_one, check_not_wrapped, check_position
from .orders import AnyOrder, Order, grown_weights
from .state import EMPState
from .validation import check_int, check_size, check_snapshot

_VERSION = 2
_EPOCHS = 2**63  # an epoch's number is below: ranks tell it to one another as int64


class EMPSampler(Sampler[int]):
    """Draws every sample in the first and last epochs, the state's selection in between.

    An epoch's order is fixed when ``__iter__`` is called, from (seed, epoch, state): the ids of
    ``state.select(keep)``, never-seen samples first among them (or, with `sampling`, a random draw
    by score), in an order that `seed` and the epoch's number give. Where more samples were never
    seen than are kept, those two choose among them, too. No global random generator is used.

    Epochs, from 0 on, follow one another: an iterator that is drawn to its end is followed by the
    next epoch's. One that is dropped earlier is followed by the same epoch again, chosen by the
    scores of then (the same ids in the same order where no score has changed), and so is one whose
    loader was dropped with batches in it that its worker processes had prefetched: a look at
    ``next(iter(loader))`` uses nothing up. :meth:`set_epoch` overrides this. Iterators of one epoch
    may run side by side; the first that comes to its end ends it.

    With several ranks, rank r of R draws the ids r, r + R, r + 2R, ... of the one order that all
    ranks agree on: at each epoch's start their states are merged
    (:func:`emp_kernels.distributed.sync`, in the default process group), so that R ranks with
    batches of B draw what one process with batches of R * B would.

    `selections` of the state counts each id as it is drawn (on an accelerator: up to 1023 ids
    ahead). Ids that worker processes have prefetched are drawn. A loop that trains the wrong thing
    without an error (no scores written, another data set's state) is told in an EMPWarning.

    Args:
        state: of the data set's size; its scores choose the ids.
        keep: a float in (0, 1] keeps K = max(1, round(keep * N)) samples, an int keeps that many.
        sampling: the way of choosing. Never-seen samples are first in all but the last.

            - "top": the highest scores.
            - "gumbel": as many without replacement, each with probability in proportion to its
              score (:func:`choosing.gumbel_keys`), anew each epoch: no sample is left out for
              ever, and one that no training fits does not take a place in every epoch.
            - "pool": the highest scores of a pool of sqrt(K * N) samples, drawn at random each
              epoch, so that no sample has a place in more than about sqrt(K / N) of them.
            - "importance": each with probability in proportion to its score plus the mean score,
              and `weights` that make up for it (:func:`choosing.importance_draw`): with
              ``sample_weight=sampler.weights[ids]`` the loss's expectation is that of full data.
        shuffle: False draws ascending ids.
        seed: any int, the same on all ranks. No two are alike, however large.
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
        ValueError: a value out of range, `anneal_epochs` without `epochs`, or 2**32 - 2**17
            samples or more to shuffle.
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
    _function = "EMPSampler"

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
        function = self._function
        if not isinstance(state, EMPState):
            raise TypeError(f"{function}: state must be an EMPState, got {type(state).__name__}")
        self.state = state
        self.keep = check_keep_of_one(check_keep_of(function, keep, state.num_samples), state)
        self.sampling = check_sampling(function, sampling, state.num_samples)
        for name, flag in (("shuffle", shuffle), ("drop_last", drop_last)):
            if not isinstance(flag, bool):
                raise TypeError(f"{function}: {name} must be a bool, got {type(flag).__name__}")
        if shuffle and state.num_samples >= SHUFFLED:
            raise ValueError(
                f"{function}: state must hold fewer than {SHUFFLED} samples unless shuffle=False, "
                f"got {state.num_samples}"
            )
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
        group = getattr(state, "group", None)
        self.num_replicas, self.rank = distributed.ranks(function, num_replicas, rank, group)
        self._epochs = Epochs(self.num_replicas, self.rank, drop_last)
        self._writes = Writes()

    @property
    def epoch(self) -> int:
        """The running epoch's number, or, once all its ids are drawn, the next one's."""
        return self._epochs.coming

    @property
    def weights(self) -> torch.Tensor:
        """What the loss of each sample (num_samples,) is to be multiplied by in the running epoch,
        float32 on the state's device; 1 unless the way of sampling has weights. Not to be written
        into."""
        running = self._epochs.running
        if running is not None and running.order.weights is not None:
            weights = grown_weights(running.order.weights, self.state.num_samples)
            return weights.to(self.state.device)
        one = torch.ones((), dtype=torch.float32, device=self.state.device)
        return one.expand(self.state.num_samples)

    def __len__(self) -> int:
        """How many ids this rank draws in the running epoch, as long as its iterator or its
        loader's is held (also of a resumed one all of them), else in the coming one. The running
        epoch's order stays as it is where the state grows; later ones draw of what there is then.

        A loader with ``persistent_workers`` holds its iterator from one epoch to the next:
        :meth:`epoch_length` knows any epoch's.
        """
        check_not_wrapped()
        return self._length(self._epochs.current)

    def epoch_length(self, epoch: int) -> int:
        """How many ids this rank draws in `epoch`, counted from 0.

        Raises:
            TypeError: `epoch` is no int.
            ValueError: it is negative.
        """
        return self._length(_checked("EMPSampler.epoch_length", epoch))

    def total_steps(self, batch_size: int, *, drop_last: bool = False) -> int:
        """Optimiser steps of all epochs on this rank, which a learning-rate schedule must span: the
        sum of ceil(len / batch_size), or of floor where the loader has ``drop_last=True``.

        Raises:
            TypeError: `batch_size` is no int, `drop_last` no bool.
            ValueError: it is below 1, or the sampler was not given `epochs`.
        """
        function = "EMPSampler.total_steps"
        if check_size(function, "batch_size", batch_size) < 1:
            raise ValueError(f"{function}: batch_size must be at least 1, got {batch_size}")
        if self.epochs is None:
            raise ValueError(f"{function}: epochs must be given to EMPSampler, got None")
        if not isinstance(drop_last, bool):
            raise TypeError(f"{function}: drop_last must be a bool, got {type(drop_last).__name__}")
        rest = 0 if drop_last else batch_size - 1
        return sum((self._length(epoch) + rest) // batch_size for epoch in range(self.epochs))

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one; without this call, epochs follow one another.

        Nothing changes where it is the epoch that runs or was resumed. A first call with 0 behind
        :meth:`load_state_dict` is a loader's (Accelerate's, Lightning Fabric's) that counts epochs
        from there on: its 0 is the resumed epoch, its 1 the next one, as long as it goes on so.

        Raises:
            TypeError: `epoch` is no int.
            ValueError: it is negative.
        """
        self._epochs.name(_checked("EMPSampler.set_epoch", epoch))

    def __iter__(self) -> Iterator[int]:
        epoch = self._epochs.begin(self._order)
        self._writes.begin(epoch, self.state)

        def ended() -> None:
            if epoch is self._epochs.running:
                self.state.epoch = epoch.order.number + 1

        return iterator_of(epoch, self.state, ended)

    def _order(self, epoch: int) -> AnyOrder:
        """What all ranks draw in an epoch that begins."""
        self.state.epoch = max(self.state.epoch, epoch)
        stream, weights = stream_of(self.seed, epoch), None
        keep = None if self._draws_all(epoch) else self.keep
        if isinstance(self.state, distributed.ShardedState):
            return shared_order(self.state, epoch, keep, self.sampling, stream, self.shuffle)
        if self.num_replicas > 1 and distributed.initialised():
            distributed.sync(self.state)
        if keep is None:
            ids = torch.arange(self.state.num_samples, device="cpu")
        else:
            ids, weights = chosen(self.state, keep, self.sampling, stream)
        return Order(epoch, shuffled(ids, stream) if self.shuffle else ids, weights=weights)

    def _draws_all(self, epoch: int) -> bool:
        if epoch < self.warmup_epochs:
            return True
        return self.anneal_epochs > 0 and epoch >= (self.epochs or 0) - self.anneal_epochs

    def _length(self, epoch: int) -> int:
        n, order = self.state.num_samples, self._epochs.fixed(epoch)
        if order is not None:  # the state may have grown since
            count = order.length
        else:
            count = n if self._draws_all(epoch) else kept_count(self.keep, n)
        return (count if self.drop_last else count + self.num_replicas - 1) // self.num_replicas

    def state_dict(self, *, position: int | None = None) -> dict[str, Any]:
        """The epoch, its order, and how much of it is drawn.

        It shares the order's tensor, which nobody changes. With one rank's dictionary, every rank
        of any number of ranks resumes: what one rank has drawn, the others have too. Save the
        EMPState beside it; torch.distributed.checkpoint takes both objects as they are, and
        ``torch.load`` reads both with ``weights_only=True``.

        Args:
            position: how many ids of the last iterator count as drawn, where a loader that
                prefetches has drawn more than were trained on. All of them, or more: its epoch is
                over.

        Raises:
            TypeError: `position` is no int.
            ValueError: it is negative.
        """
        if position is None:
            check_position(self._epochs.running, self.state)
        else:
            position = check_size("EMPSampler.state_dict", "position", position)
        epoch, order, drawn = self._epochs.snapshot(position)
        return {
            "version": _VERSION,
            "num_samples": self.state.num_samples,
            "epoch": epoch,
            **saved_order(order, self.state),
            "position": drawn,
            "num_replicas": self.num_replicas,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Make the next iterator draw exactly what the saved one had not drawn.

        The number of ranks may differ from the saved one.

        Raises:
            TypeError: `state_dict` is no mapping, or an entry has another type.
            ValueError: it lacks an entry, or is of another version or size, or an entry is out of
                range; nothing is changed.
        """
        function = "EMPSampler.load_state_dict"
        entries = ("num_samples", "epoch", "order", "start", "position", "num_replicas")
        check_snapshot(function, state_dict, _VERSION, entries)
        size = self.state.num_samples
        if check_size(function, "num_samples", state_dict["num_samples"]) != size:
            raise ValueError(
                f"{function}: num_samples must be the state's {size}, "
                f"got {state_dict['num_samples']}"
            )
        epoch = _checked(function, state_dict["epoch"])
        order = loaded_order(function, state_dict, epoch, self.state)
        self._epochs.restore(epoch, order)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the copy goes on where this sampler is."""
        return self.__dict__ | {"_epochs": self._epochs.copy()}


def _checked(function: str, epoch: int) -> int:
    """`epoch` as a number that an epoch can have."""
    epoch = check_size(function, "epoch", epoch)
    if epoch >= _EPOCHS:
        raise ValueError(f"{function}: epoch must be below 2**63, got {epoch}")
    return epoch
