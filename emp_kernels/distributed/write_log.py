"""What one rank has written since the ranks last exchanged their entries.

A call's rows stand in the log as the backend wrote them: it is given a block of the log in a
state's place, and the next free rows of it as ids, so that nothing is looked up, nothing is sent,
and a call makes no tensor but a view.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

from .. import backends
from ..validation import as_int64, raise_id_out_of_range

# Rows of a block: few at first, and from `_MANY` on so many that it takes more than 32 MB, which
# the C library gives back to the system when they are freed. (What is not written takes no memory.)
_FEWEST, _MANY, _MOST = 1 << 12, 1 << 16, 1 << 21
_PART = 1 << 17  # rows that a sync sends at a time; only one call's may be more


class Entries(NamedTuple):
    """Rows that were written, oldest first: of sample `ids` (N,), at the call `seen_at` (N,)."""

    ids: torch.Tensor
    score: torch.Tensor
    loss: torch.Tensor
    entropy: torch.Tensor
    seen_at: torch.Tensor


@dataclass(slots=True)
class Rows:
    """A block of the log in a state's place; a row that is not written keeps seen_at 0."""

    score: torch.Tensor
    loss: torch.Tensor
    entropy: torch.Tensor
    updates: torch.Tensor
    selections: torch.Tensor
    seen_at: torch.Tensor
    clock: torch.Tensor
    claims: torch.Tensor
    beta: float
    num_samples: int


@dataclass(slots=True)
class _Block:
    ids: torch.Tensor
    rows: Rows
    size: int
    starts: array[int]  # the first row of each call
    used: int = 0
    selects: bool = False  # whether rows.selections is its own

    def parts(self) -> list[range]:
        """Its rows in parts of about `_PART`, none of which has a call's rows in part."""
        ends = [0]
        while ends[-1] < self.used:
            at = bisect_right(self.starts, ends[-1] + _PART) - 1
            start = self.starts[at] if ends[-1] + _PART < self.used else self.used
            if start <= ends[-1]:  # one call's rows are more
                start = self.starts[at + 1] if at + 1 < len(self.starts) else self.used
            ends.append(start)
        return [range(start, stop) for start, stop in pairwise(ends)]


class WriteLog:
    """Blocks of 20 bytes a row (24 from 2**31 samples on), which grow in number and are never
    copied; 4 more where calls select."""

    def __init__(self, num_samples: int, device: torch.device) -> None:
        self._num_samples = num_samples
        self._id_dtype = torch.int32 if num_samples < 2**31 else torch.int64
        self._device = device
        self._blocks: list[_Block] = []
        self._rows = 0
        self._places = torch.empty(0, dtype=torch.int64, device=device)
        self._scratch = torch.empty(0, dtype=torch.int32, device=device)
        self._logs: Callable[[torch.Tensor, torch.Tensor, int, int], int] | None = None
        if device.type == "cpu":
            self._logs = backends.resolve("ShardedState", None, self._scratch).log_ids

    def __len__(self) -> int:
        """Rows that calls have brought, also those that were not valid."""
        return self._rows

    @property
    def num_parts(self) -> int:
        return sum(len(block.parts()) for block in self._blocks)

    def append(
        self, ids: torch.Tensor, clock: torch.Tensor, beta: float, function: str
    ) -> tuple[Rows, torch.Tensor]:
        """The block that a call of `function` with the sample ids (N,) writes into, and where in
        it, (N,) int64. The call ticks `clock` and, if it selects, counts what it returns.

        Raises:
            ValueError: an id on the CPU is out of range; no row is written.
        """
        n = ids.shape[0]
        block = self._blocks[-1] if self._blocks else None
        if block is None or block.used + n > block.size:
            block = self._add_block(n, clock, beta)
        start, block.used = block.used, block.used + n
        block.starts.append(start)
        if self._logs is None:
            block.ids.narrow(0, start, n).copy_(ids)
        else:  # small batches: each of torch's operations would cost as much as the call
            bad = self._logs(ids, block.ids, start, self._num_samples)
            if bad >= 0:
                raise_id_out_of_range(function, bad, int(as_int64(ids)[bad]), self._num_samples)
        self._rows += n
        if not block.selects and function == "score_and_select":
            block.rows.selections = torch.zeros_like(block.rows.seen_at)
            block.selects = True
        return block.rows, self._places.narrow(0, start, n)

    def _add_block(self, n: int, clock: torch.Tensor, beta: float) -> _Block:
        size = max(n, _MOST if self._rows >= _MANY else max(_FEWEST, self._rows))
        with torch.inference_mode(False):
            words = 1 if self._id_dtype is torch.int32 else 2
            memory = torch.zeros((4 + words) * size, dtype=torch.int32, device=self._device)
            ids = memory[: words * size].view(self._id_dtype)
            seen_at, *values = memory[words * size :].split(size)
            score, loss, entropy = (part.view(torch.float32) for part in values)
            if len(self._places) < size:
                self._places = torch.arange(size, device=self._device)
                self._scratch = torch.zeros_like(seen_at)
            counts = self._scratch[:size]  # which nobody reads
            claims = counts[:0] if self._device.type == "cpu" else torch.empty_like(seen_at)
        fields = score, loss, entropy, counts, counts, seen_at, clock, claims
        rows = Rows(*fields, beta=beta, num_samples=size)
        self._blocks.append(_Block(ids, rows, size, array("q")))
        return self._blocks[-1]

    def entries(self) -> Iterator[Entries]:
        """The rows of each part of a block that were written. No call's rows are in two parts."""
        for block in self._blocks:
            rows = block.rows
            fields = Entries(block.ids, rows.score, rows.loss, rows.entropy, rows.seen_at)
            for part in block.parts():
                used = Entries(*(field[part.start : part.stop] for field in fields))
                written = used.seen_at > 0
                yield used if written.all() else Entries(*(field[written] for field in used))

    def picked(self) -> list[torch.Tensor]:
        """The ids that calls selected, as often as they did, (M,) int64 of each block."""
        found = []
        for block in self._blocks:
            if block.selects:
                picked = block.rows.selections[: block.used] > 0
                found.append(block.ids[: block.used][picked].long())
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._blocks, self._rows = [], 0
