"""The entries that one rank has written since the last sync.

A backend writes a call's rows straight into the log: it is given a block of the log instead of a
state, and the block's next free rows as ids. Nothing is looked up or sent, and a call allocates
only a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .. import backends
from ..validation import as_int64, raise_id_out_of_range

_FEWEST, _MOST = 1 << 12, 1 << 17  # rows of a block, which a sync sends at a time;
# only one call's rows may be more
_WORDS = 10 << 20  # int32 of memory at a time, on the CPU


class Memory:
    """Memory for what waits until a sync has succeeded: on the CPU in pieces of more than 32 MB,
    which the C library gives back to the system when they are freed (small ones would lie between
    what is freed and what stays), and of which what is not written takes none."""

    def __init__(self, device: torch.device) -> None:
        self._least = _WORDS if device.type == "cpu" else 0
        self._free = torch.empty(0, dtype=torch.int32, device=device)

    def take(self, words: int) -> torch.Tensor:
        """(words,) int32, of any content."""
        if words > len(self._free):
            with torch.inference_mode(False):
                self._free = self._free.new_empty(max(words, self._least))
        taken, self._free = self._free[:words], self._free[words:]
        return taken


class Entries(NamedTuple):
    """Written rows, oldest first: sample `ids` (N,) and the clock `seen_at` (N,) of the call."""

    ids: torch.Tensor
    score: torch.Tensor
    loss: torch.Tensor
    entropy: torch.Tensor
    seen_at: torch.Tensor


@dataclass(slots=True)
class Rows:
    """A block of the log with the interface of a state; unwritten rows keep seen_at 0."""

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
    used: int = 0
    selects: bool = False  # whether rows.selections belongs to this block


class WriteLog:
    """Blocks of 20 bytes per row (24 from 2**31 samples on), plus 4 if calls select. More blocks
    are added as needed; none is ever copied."""

    def __init__(self, num_samples: int, device: torch.device) -> None:
        self._num_samples = num_samples
        self._id_dtype = torch.int32 if num_samples < 2**31 else torch.int64
        self._device = device
        self._blocks: list[_Block] = []
        self._rows = 0
        self._memory = Memory(device)
        self._places = torch.empty(0, dtype=torch.int64, device=device)
        self._scratch = torch.empty(0, dtype=torch.int32, device=device)
        self._logs: Callable[[torch.Tensor, torch.Tensor, int, int], int] | None = None
        if device.type == "cpu":
            self._logs = backends.resolve("ShardedState", None, self._scratch).log_ids

    def __len__(self) -> int:
        """Number of rows passed to calls, including invalid ones."""
        return self._rows

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

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
        size = max(n, min(_MOST, max(_FEWEST, self._rows)))
        with torch.inference_mode(False):
            words = 1 if self._id_dtype is torch.int32 else 2
            memory = self._memory.take((4 + words) * size)
            ids = memory[: words * size].view(self._id_dtype)
            seen_at, *values = memory[words * size :].split(size)
            score, loss, entropy = (part.view(torch.float32) for part in values)
            seen_at.zero_()
            if len(self._places) < size:
                self._places = torch.arange(size, device=self._device)
                self._scratch = torch.zeros_like(seen_at)
            counts = self._scratch[:size]  # never read
            claims = counts[:0] if self._device.type == "cpu" else torch.empty_like(seen_at)
        fields = score, loss, entropy, counts, counts, seen_at, clock, claims
        rows = Rows(*fields, beta=beta, num_samples=size)
        self._blocks.append(_Block(ids, rows, size))
        return self._blocks[-1]

    def entries(self) -> Iterator[Entries]:
        """The written rows of each block. A call's rows are all in one block."""
        for block in self._blocks:
            rows = block.rows
            fields = Entries(block.ids, rows.score, rows.loss, rows.entropy, rows.seen_at)
            used = Entries(*(field[: block.used] for field in fields))
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
        self._blocks, self._rows, self._memory = [], 0, Memory(self._device)
