"""The samples of a stream that an epoch keeps, shared with the processes that read the stream."""

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
    """EMPSampler's choice, with errors in the name of EpochMask."""

    _function = "EpochMask"

    def ids(self, epoch: int) -> torch.Tensor:
        """(K,) int64, ascending; nothing is counted."""
        order = self._order(epoch)
        assert isinstance(order, Order)  # as for every unsharded state
        return order.ids


class EpochMask:
    """The samples that an epoch keeps, as one bit each in shared memory.

    For streamed data, which no sampler indexes: the reader tests ``i in mask`` before it decodes
    sample i. An epoch's samples are those that :class:`emp_kernels.EMPSampler` draws, with the same
    arguments, in that epoch: all in the first `warmup_epochs`, then the ids of
    ``state.select(keep)``. Because the bits are in shared memory, a DataLoader's worker processes,
    forked or spawned, see each new epoch's, including persistent workers that received their copy
    of the mask earlier.

    Before the first :meth:`set_epoch` every id is in the mask. So is an id that was added to the
    state after the epoch began (:meth:`emp_kernels.EMPState.grow`): never-seen samples come first.

    With several ranks (an initialised process group) the states are merged at the start of each
    epoch, and all ranks' masks are equal.

    Args:
        state: the scores to choose by.
        keep: a float in (0, 1] keeps K = max(1, round(keep * N)) samples, an int keeps that many.
        sampling: as in EMPSampler.
        seed: any int, the same on all ranks.
        warmup_epochs: number of epochs at the beginning that keep everything.

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
        if isinstance(state, ShardedState):  # each rank knows only a part of the choice
            raise TypeError("EpochMask: state must be a whole EMPState, got ShardedState")
        self._choice: _Choice | None = _Choice(
            state, keep, sampling=sampling, seed=seed, warmup_epochs=warmup_epochs, shuffle=False
        )
        self._bits = SharedBits()

    @property
    def epoch(self) -> int | None:
        """The current epoch; None before the first."""
        epoch = self._bits.epoch
        return None if epoch < 0 else epoch

    @property
    def state(self) -> EMPState | None:
        """The state to choose by; None in a copy in another process."""
        return None if self._choice is None else self._choice.state

    @property
    def num_samples(self) -> int:
        """Number of samples in the state when the epoch began; 0 before the first."""
        return self._bits.size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's samples and count each as selected once. Call it between two epochs:
        readers of the stream see the change immediately.

        Nothing changes if it is the running or the resumed epoch. Collective if the process group
        has several ranks.

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
        """The sampler that chooses; only in the process that created the mask."""
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
        """Which of ids (...), a tensor or anything convertible to one, the epoch keeps: (...) bool,
        on their device.

        Raises:
            TypeError: `ids` are no integers.
            ValueError: an id is negative.
        """
        if isinstance(ids, Sequence | int) and not isinstance(ids, str | bool):
            ids = torch.tensor(ids, dtype=None if ids else torch.int64, device="cpu")
        if not isinstance(ids, torch.Tensor) or ids.dtype not in INTEGER_DTYPES:
            raise TypeError(f"EpochMask: ids must be an integer tensor, got {describe(ids)}")
        values = as_int64(ids.detach().cpu())
        if values.numel() and int(values.min()) < 0:
            raise ValueError(f"EpochMask: ids must be at least 0, got {int(values.min())}")
        size, packed = self._bits.size, self._bits.packed()
        if not size:
            return torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
        bits = packed[(values >> 3).clamp_max(len(packed) - 1)] >> (values & 7).to(torch.uint8) & 1
        return (bits.bool() | (values >= size)).to(ids.device)

    def __len__(self) -> int:
        """Number of samples that the epoch keeps; before the first epoch, of all samples."""
        if self.epoch is None and self._choice is not None:
            return self._choice.state.num_samples
        return self._bits.kept

    def __bool__(self) -> bool:
        return True  # also a mask that keeps nothing

    def ids(self) -> torch.Tensor:
        """The ids (K,) int64 that the epoch keeps, ascending; none before the first epoch."""
        kept = (
            self._bits.packed()[:, None] >> torch.arange(8, dtype=torch.uint8, device="cpu")
        ) & 1
        return kept.flatten().nonzero()[:, 0]

    def __repr__(self) -> str:
        return f"EpochMask(epoch={self.epoch}, kept={len(self)})"

    def state_dict(self) -> dict[str, Any]:
        """The epoch and its bits, so that a resumed epoch keeps the same samples even if the scores
        have changed. Save the EMPState as well."""
        epoch = self.epoch
        return {
            "version": _VERSION,
            "num_samples": self._bits.size,
            "epoch": epoch,
            # In a tuple, so that torch.distributed.checkpoint need not know the length when it
            # loads.
            "bits": None if epoch is None else (self._bits.packed().clone(),),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep what the saved epoch kept, without counting it again.

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
                f"{function}: bits must be 0 after the last sample, got {int(packed[-1]):#x}"
            )
        self._bits.write(packed, size, _ones(packed), epoch)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: only the bits, not the state."""
        return {"_choice": None, "_bits": self._bits}


def _packed(kept: torch.Tensor) -> torch.Tensor:
    """kept (N,) bool as bits: (ceil(N / 8),) uint8, sample 0 in the lowest bit of the first
    byte."""
    padded = torch.nn.functional.pad(kept.view(torch.uint8), (0, -len(kept) % 8)).view(-1, 8)
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device="cpu")
    return (padded * weights).sum(1, dtype=torch.uint8)


def _ones(packed: torch.Tensor) -> int:
    """Number of 1 bits in packed (L,) uint8."""
    counts = torch.tensor([i.bit_count() for i in range(256)], dtype=torch.uint8, device="cpu")
    return int(torch.bincount(packed, minlength=256) @ counts.long())
