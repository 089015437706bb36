"""The methods in which an unsharded state differs from one sharded among ranks
(:class:`emp_kernels.distributed.ShardedState`)."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from .cautions import caution

# The iterators that count in a state, beside it: a state is pickled without them.
_drawing: weakref.WeakKeyDictionary[Whole, weakref.WeakKeyDictionary[Iterator[int], array[int]]]
_drawing = weakref.WeakKeyDictionary()


class Whole:
    """A state with an entry for every sample."""

    selections: torch.Tensor
    clock: torch.Tensor
    synced_at: int

    def rows_of(
        self, function: str, indices: torch.Tensor | None, n: int
    ) -> tuple[Any, torch.Tensor | None]:
        """Where a call of `function` writes the entries of its `n` rows, and at which ids; None:
        row i at i. `indices` are on the state's device."""
        return self, indices

    def close_window_of(self, start: int) -> None:
        """Called when the first id is drawn from an order of which `start` ids were drawn
        before."""
        if start == 0:
            self.close_window()

    def close_window(self) -> None:
        raise NotImplementedError

    def follow(self, ids: torch.Tensor, progress: array[int], iterator: Iterator[int]) -> None:
        """Register `iterator`, which will draw `ids` (L,) and count them in `progress`."""
        _drawing.setdefault(self, weakref.WeakKeyDictionary())[iterator] = progress

    def fields_moved(self) -> None:
        """The fields are other tensors now: iterators ask anew for what they count in."""
        for progress in _drawing.get(self, {}).values():
            progress[2] = 0

    def counts_of(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Selections (num_samples,) in which an iterator counts the next `ids`; None if they are
        counted here, as on an accelerator."""
        counts = self.selections
        if counts.is_cpu:
            return counts
        ahead = ids.to(counts.device)
        counts.index_add_(0, ahead, torch.ones_like(ahead, dtype=torch.int32))
        return None

    def check_synced(self) -> None:
        """Warn if a snapshot would lack the other ranks' entries."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if several and int(self.clock) > self.synced_at:
            caution(
                f"EMPState.state_dict: {int(self.clock) - self.synced_at} calls wrote into this "
                f"rank's state since the states of {dist.get_world_size()} ranks were merged, so "
                "that a checkpoint of one of them has lost what the others wrote: call "
                "emp.distributed.sync(state) on all ranks before it is saved",
                self,
                "unsynced",
            )

    def counts(self, values: torch.Tensor) -> torch.Tensor:
        """Number of samples with each of `values`, ints from 0 on: (M,) int64 on the CPU."""
        return torch.bincount(values.cpu())

    def total(self, value: float) -> float:
        """The sum of a number over all parts of the state."""
        return value
