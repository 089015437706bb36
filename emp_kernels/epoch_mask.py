"""Which samples of a stream an epoch keeps, told to the processes that read the stream."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .distributed import ShardedState
from .keep import Keep
from .orders import Order
from .sampler import EMPSampler, _checked
from .shared_bits import SharedBits
from .snapshot import one_tensor
from .state import EMPState
from .validation import INTEGER_DTYPES, as_int64, check_size, check_snapshot, describe

_VERSION = 1


class _Choice(EMPSampler):
    """What EMPSampler chooses, with errors in the mask's name."""

    _function = "EpochMask"

    def ids(self, epoch: int) -> torch.Tensor:
        """(K,) int64, ascending; nothing is counted."""
        order = self._order(epoch)
        assert isinstance(order, Order)  # of a whole state
        return order.ids


class EpochMask:
    """The samples that an epoch keeps, as one bit each that other processes see.

    For data that come as a stream, where no sampler says what to read: what reads the stream asks
    ``i in mask`` before it decodes sample i. An epoch's samples are those that
    :class:`emp_kernels.EMPSampler` draws, with the same arguments, in that epoch: all in the first
    `warmup_epochs`, then the ids of ``state.select(keep)``. The bits lie in shared memory, so a
    DataLoader's worker processes, forked or spawned, see a new epoch's, also persistent ones that
    got their copy of the mask long ago.

    Before the first :meth:`set_epoch` every id is in the mask. So is an id that the state did not
    hold yet when the epoch began (:meth:`emp_kernels.EMPState.grow`): never seen comes first.

    With several ranks (an initialised process group) the states are merged as an epoch begins, and
    the masks of all ranks are alike.

    Args:
        state: its scores choose.
        keep: a float in (0, 1] keeps K = max(1, round(keep * N)) samples, an int keeps that many.
        sampling: as in EMPSampler.
        seed: any int, the same on all ranks.
        warmup_epochs: so many epochs at the beginning keep everything.

    Raises:
        TypeError: a wrong type.
        ValueError: a value out of range.
    """

    def __init__(
        self,
        state: EMPState,
        keep: Keep = 0.3,
        *,
        sampling: str = "top",
        seed: int = 0,
        warmup_epochs: int = 1,
    ) -> None:
        if isinstance(state, ShardedState):  # whose ranks know a part of the choice each
            raise TypeError("EpochMask: state must be a whole EMPState, got ShardedState")
        self._choice: _Choice | None = _Choice(
            state, keep, sampling=sampling, seed=seed, warmup_epochs=warmup_epochs, shuffle=False
        )
        self._bits = SharedBits()

    @property
    def epoch(self) -> int | None:
        """The epoch whose samples these are; None before the first."""
        epoch = self._bits.epoch
        return None if epoch < 0 else epoch

    @property
    def state(self) -> EMPState | None:
        """The state that chooses; None of a copy in another process."""
        return None if self._choice is None else self._choice.state

    @property
    def num_samples(self) -> int:
        """How many samples the state held as the epoch began; 0 before the first."""
        return self._bits.size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's samples and count each as selected once. Between two epochs: what is
        reading the stream sees it at once.

        Nothing changes where it is the epoch that runs or was resumed. Collective where the process
        group has several ranks.

        Raises:
            TypeError: `epoch` is no int.
            ValueError: it is negative.
            RuntimeError: this is a copy in another process, which can only be read.
        """
        function = "EpochMask.set_epoch"
        epoch = _checked(function, epoch)
        choice = self._writer(function)
        if epoch == self.epoch:
            return
        state = choice.state
        ids = choice.ids(epoch)
        state.close_window()
        here = ids.to(state.device)
        state.selections.index_add_(0, here, torch.ones_like(here, dtype=torch.int32))
        kept = torch.zeros(state.num_samples, dtype=torch.bool, device="cpu")
        kept[ids] = True
        self._bits.write(_packed(kept), len(kept), len(ids), epoch)

    def _writer(self, function: str) -> _Choice:
        """What chooses, in the process that made the mask alone: others would tell it nothing."""
        if self._choice is None or os.getpid() != self._bits.owner:
            raise RuntimeError(
                f"{function}: the mask must be written by the process {self._bits.owner} that made "
                f"it, got a copy in process {os.getpid()}"
            )
        return self._choice

    def __contains__(self, index: Any) -> bool:
        """Whether the epoch keeps the sample with this id.

        Raises:
            TypeError: it is no int.
            ValueError: it is negative.
        """
        try:
            i = operator.index(index)
        except TypeError:
            raise TypeError(f"EpochMask: id must be an int, got {describe(index)}") from None
        if i < 0:
            raise ValueError(f"EpochMask: id must be at least 0, got {i}")
        return i >= self._bits.size or self._bits[i]

    def __getitem__(self, ids: torch.Tensor | Sequence[int] | int) -> torch.Tensor:
        """Which of ids (...), a tensor or what makes one, the epoch keeps: (...) bool, on their
        device.

        Raises:
            TypeError: `ids` are no integers.
            ValueError: an id is negative.
        """
        if isinstance(ids, Sequence | int) and not isinstance(ids, str | bool):
            ids = torch.tensor(ids, dtype=None if ids else torch.int64, device="cpu")
        if not isinstance(ids, torch.Tensor) or ids.dtype not in INTEGER_DTYPES:
            raise TypeError(f"EpochMask: ids must be an integer tensor, got {describe(ids)}")
        places = as_int64(ids.detach().cpu())
        if places.numel() and int(places.min()) < 0:
            raise ValueError(f"EpochMask: ids must be at least 0, got {int(places.min())}")
        size, packed = self._bits.size, self._bits.packed()
        if not size:
            return torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
        bits = packed[(places >> 3).clamp_max(len(packed) - 1)] >> (places & 7).to(torch.uint8) & 1
        return (bits.bool() | (places >= size)).to(ids.device)

    def __len__(self) -> int:
        """How many samples the epoch keeps; before the first, how many there are."""
        if self.epoch is None and self._choice is not None:
            return self._choice.state.num_samples
        return self._bits.kept

    def __bool__(self) -> bool:
        return True  # a mask that keeps nothing is one, too

    def ids(self) -> torch.Tensor:
        """The ids (K,) int64 that the epoch keeps, ascending; none before the first epoch."""
        kept = (
            self._bits.packed()[:, None] >> torch.arange(8, dtype=torch.uint8, device="cpu")
        ) & 1
        return kept.flatten().nonzero()[:, 0]

    def __repr__(self) -> str:
        return f"EpochMask(epoch={self.epoch}, kept={len(self)})"

    def state_dict(self) -> dict[str, Any]:
        """The epoch and its bits, so that a resumed epoch keeps the same samples whatever happened
        to the scores. Save the EMPState beside it."""
        epoch = self.epoch
        return {
            "version": _VERSION,
            "num_samples": self._bits.size,
            "epoch": epoch,
            # In a tuple, whose length torch.distributed.checkpoint need not know when it loads.
            "bits": None if epoch is None else (self._bits.packed().clone(),),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep what the saved epoch kept; nothing is counted again.

        Raises:
            TypeError: `state_dict` is no mapping, or an entry has another type.
            ValueError: it lacks an entry, is of another version or of more samples than the state
                has, or holds no such bits; nothing is changed.
            RuntimeError: this is a copy in another process.
        """
        function = "EpochMask.load_state_dict"
        check_snapshot(function, state_dict, _VERSION, ("num_samples", "epoch", "bits"))
        most = self._writer(function).state.num_samples
        size = check_size(function, "num_samples", state_dict["num_samples"])
        if size > most:
            raise ValueError(
                f"{function}: num_samples must be at most the state's {most} (grow it first), "
                f"got {size}"
            )
        if state_dict["epoch"] is None:
            self._bits.write(torch.empty(0, dtype=torch.uint8, device="cpu"), 0, 0, -1)
            return
        epoch = _checked(function, state_dict["epoch"])
        packed = one_tensor(function, "bits", state_dict["bits"], torch.uint8)
        if len(packed) != (size + 7) // 8:
            raise ValueError(
                f"{function}: bits must hold {(size + 7) // 8} bytes for {size} samples, "
                f"got {len(packed)}"
            )
        if size % 8 and int(packed[-1]) >> size % 8:
            raise ValueError(
                f"{function}: bits must be 0 behind the last sample, got {int(packed[-1]):#x}"
            )
        self._bits.write(packed, size, _ones(packed), epoch)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: the bits, not the state behind them."""
        return {"_choice": None, "_bits": self._bits}


def _packed(kept: torch.Tensor) -> torch.Tensor:
    """kept (N,) bool as bits: (ceil(N / 8),) uint8, sample 0 the lowest of the first."""
    padded = torch.nn.functional.pad(kept.view(torch.uint8), (0, -len(kept) % 8)).view(-1, 8)
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device="cpu")
    return (padded * weights).sum(1, dtype=torch.uint8)


def _ones(packed: torch.Tensor) -> int:
    """How many bits of packed (L,) uint8 are 1."""
    counts = torch.tensor([i.bit_count() for i in range(256)], dtype=torch.uint8, device="cpu")
    return int(torch.bincount(packed, minlength=256) @ counts.long())
