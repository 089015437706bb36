"""What a state does by itself that holds all of its samples, where one that is shared out among
ranks (:class:`emp_kernels.distributed.ShardedState`) does otherwise."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import torch


class Whole:
    """A state with an entry for every sample."""

    selections: torch.Tensor

    def rows_of(
        self, function: str, indices: torch.Tensor | None, n: int
    ) -> tuple[Any, torch.Tensor | None]:
        """What a call of `function` writes the entries of its `n` rows into, and at which ids;
        None: row i at i. `indices` are on the state's device."""
        return self, indices

    def close_window_of(self, start: int) -> None:
        """Called as the first id of an order is drawn that `start` ids were drawn of before."""
        if start == 0:
            self.close_window()

    def close_window(self) -> None:
        raise NotImplementedError

    def follow(self, ids: torch.Tensor, progress: array[int], iterator: Iterator[int]) -> None:
        """`iterator` will draw `ids` (L,), and says how many in `progress`."""

    def counts_of(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Selections (num_samples,) for an iterator to count the next `ids` in; None: it need not.
        On an accelerator they are counted now."""
        counts = self.selections
        if counts.is_cpu:
            return counts
        ahead = ids.to(counts.device)
        counts.index_add_(0, ahead, torch.ones_like(ahead, dtype=torch.int32))
        return None

    def total(self, value: float) -> float:
        """The sum of a number over all who hold a part of the state."""
        return value
