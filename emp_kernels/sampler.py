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
from .loop_checks import (
    Writes,
    check_drawn,
    check_keep_of_one,
    check_not_prefetched,
    check_not_wrapped,
)
from .orders import AnyOrder, Order, grown_weights
from .state import EMPState
from .validation import check_int, check_size, check_snapshot

_VERSION = 2
_EPOCHS = 2**63  # limit of epoch numbers, which ranks exchange as int64


class EMPSampler(Sampler[int]):
    """Draws all samples in the first and last epochs, and the state's selection in between.

    An epoch's order is fixed when ``__iter__`` is called, from (seed, epoch, state): the ids of
    ``state.select(keep)``, never-seen samples first among them (or, with `sampling`, a random draw
    by score), in an order that depends on `seed` and the epoch's number. If more samples were never
    seen than are kept, the choice among them is random, by the same two numbers. No global random
    generator is used.

    Epochs are numbered from 0. After an iterator is exhausted, the next one draws the next epoch.
    If it is dropped earlier, or its loader is dropped while it holds prefetched batches, the same
    epoch is drawn again, chosen by the scores at that time (the same ids in the same order if no
    score has changed): ``next(iter(loader))`` consumes nothing. :meth:`set_epoch` overrides this.
    Several iterators of one epoch may coexist; the first to be exhausted ends the epoch.

    With several ranks, rank r of R draws the ids r, r + R, r + 2R, ... of an order that all ranks
    share: at each epoch's start their states are merged (:func:`emp_kernels.distributed.sync`, in
    the default process group), so R ranks with batches of B draw the same as one process with
    batches of R * B.

    The state's `selections` counts each id when it is drawn (on an accelerator up to 1023 ids
    ahead), which includes ids that worker processes have prefetched. An EMPWarning is given for
    loops that do not train as intended (no scores written, another data set's state).

    Args:
        state: of the data set's size; its scores determine the ids.
        keep: a float in (0, 1] keeps K = max(1, round(keep * N)) samples, an int keeps that many.
        sampling: the sampling method. All but the last take never-seen samples first.

            - "top": the highest scores.
            - "gumbel": K draws without replacement, each with probability proportional to the score
              (:func:`choosing.gumbel_keys`), anew each epoch: no sample is excluded permanently,
              and samples that cannot be fitted are not in every epoch.
            - "pool": the highest scores of a pool of sqrt(K * N) samples, drawn at random each
              epoch, so that a sample is in at most about sqrt(K / N) of the epochs.
            - "importance": each with probability proportional to its score plus the mean score,
              with `weights` that correct for it (:func:`choosing.importance_draw`): with
              ``sample_weight=sampler.weights[ids]`` the expected loss is that of the full data.
        shuffle: False draws ascending ids.
        seed: any int, the same on all ranks; all bits matter, however large.
        warmup_epochs: number of epochs at the beginning that draw everything.
        anneal_epochs: number of the last `epochs` that draw everything.
        epochs: total number, needed by `anneal_epochs` and :meth:`total_steps`. Later epochs are
            like the last one.
        num_replicas, rank: number of ranks that share an epoch and this one's; by default those of
            the initialised process group, else 1 and 0.
        drop_last: with several ranks, drop the last ids so that all ranks draw equally many;
            otherwise the first ids are repeated.

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
        """The running epoch's number or, once all its ids are drawn, the next one's."""
        return self._epochs.coming

    @property
    def weights(self) -> torch.Tensor:
        """The factor (num_samples,) of each sample's loss in the running epoch, float32 on the
        state's device; 1 unless the sampling method has weights. Read-only."""
        running = self._epochs.running
        if running is not None and running.order.weights is not None:
            weights = grown_weights(running.order.weights, self.state.num_samples)
            return weights.to(self.state.device)
        one = torch.ones((), dtype=torch.float32, device=self.state.device)
        return one.expand(self.state.num_samples)

    def __len__(self) -> int:
        """Number of ids that this rank draws in the running epoch (all of them, also if it was
        resumed), as long as its iterator or its loader's is held; else in the coming epoch. The
        running epoch's order stays as it is where the state grows; later ones draw of what there is
        then.

        A loader with ``persistent_workers`` holds its iterator between epochs; :meth:`epoch_length`
        gives any epoch's length.
        """
        check_not_wrapped()
        return self._length(self._epochs.current)

    def epoch_length(self, epoch: int) -> int:
        """Number of ids that this rank draws in `epoch`, counted from 0.

        Raises:
            TypeError: `epoch` is no int.
            ValueError: it is negative.
        """
        return self._length(_checked("EMPSampler.epoch_length", epoch))

    def total_steps(
        self, batch_size: int, *, drop_last: bool = False, accumulation: int = 1
    ) -> int:
        """Optimiser steps of all epochs on this rank, for a learning-rate schedule.

        An epoch has ceil(len / batch_size) batches, or floor with `drop_last`, and
        ceil(batches / accumulation) steps.

        Args:
            batch_size: of the loader.
            drop_last: the loader's: whether it drops an epoch's last, smaller batch.
            accumulation: number of batches whose gradients one step adds up; an epoch's last step
                may have fewer.

        Raises:
            TypeError: `batch_size` or `accumulation` is no int, `drop_last` no bool.
            ValueError: one is below 1, or the sampler was not given `epochs`.
        """
        function = "EMPSampler.total_steps"
        for name, size in (("batch_size", batch_size), ("accumulation", accumulation)):
            if check_size(function, name, size) < 1:
                raise ValueError(f"{function}: {name} must be at least 1, got {size}")
        if self.epochs is None:
            raise ValueError(f"{function}: epochs must be given to EMPSampler, got None")
        if not isinstance(drop_last, bool):
            raise TypeError(f"{function}: drop_last must be a bool, got {type(drop_last).__name__}")
        rest = 0 if drop_last else batch_size - 1
        batches = [(self._length(epoch) + rest) // batch_size for epoch in range(self.epochs)]
        return sum(-(-count // accumulation) for count in batches)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one; without this call, epochs follow one another.

        Nothing changes if it is the running or the resumed epoch. A first call with 0 after
        :meth:`load_state_dict` is assumed to come from a loader with its own counter (Accelerate's,
        Lightning Fabric's): its 0 means the resumed epoch, its 1 the next one, as long as it counts
        on like this.

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
        """The order of a new epoch, of all ranks."""
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

        It shares the order's tensor, which is never modified. One rank's dictionary resumes every
        rank, also with another number of ranks, because all ranks have drawn equally many ids. Save
        the EMPState as well; torch.distributed.checkpoint accepts both objects, and ``torch.load``
        reads both with ``weights_only=True``.

        Args:
            position: how many ids of the last iterator count as drawn, if a prefetching loader has
                drawn more than were trained: those that this rank has trained since the epoch
                began or, if it was resumed, since it was last resumed. With all of the iterator's
                ids, or more, the epoch is over.

        Raises:
            TypeError: `position` is no int.
            ValueError: it is negative.
        """
        function = "EMPSampler.state_dict"
        if position is None:
            check_not_prefetched(self._epochs.running, self.state)
        else:
            position = check_size(function, "position", position)
            check_drawn(function, position, self._epochs.running, self.state)
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
        """Make the next iterator draw exactly the ids that the saved one had not drawn.

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
        """For pickle and copy: the copy continues from the same position."""
        return self.__dict__ | {"_epochs": self._epochs.copy()}


def _checked(function: str, epoch: int) -> int:
    """Return `epoch` if it is a valid epoch number."""
    epoch = check_size(function, "epoch", epoch)
    if epoch >= _EPOCHS:
        raise ValueError(f"{function}: epoch must be below 2**63, got {epoch}")
    return epoch
