"""The entries that one rank has written since the last sync.

A backend writes a call's rows straight into the log: it is given a block of the log instead of a
state, and the block's next free rows as ids. Nothing is looked up or sent, and a call allocates
only a view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

_FEWEST, _MOST = 1 << 12, 1 << 20  # rows of a block, unless a single call has more


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
    used: int = 0
    selects: bool = False  # whether rows.selections belongs to this block


class WriteLog:
    """Blocks of 20 bytes per row (24 from 2**31 samples on), plus 4 if calls select. More blocks
    are added as needed; none is ever copied."""

    def __init__(self, num_samples: int, device: torch.device) -> None:
        self._id_dtype = torch.int32 if num_samples < 2**31 else torch.int64
        self._device = device
        self._blocks: list[_Block] = []
        self._rows = 0
        self._places = torch.empty(0, dtype=torch.int64, device=device)
        self._scratch = torch.empty(0, dtype=torch.int32, device=device)

    def __len__(self) -> int:
        """Number of rows passed to calls, including invalid ones."""
        return self._rows

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    def append(
        self, ids: torch.Tensor, clock: torch.Tensor, beta: float, selects: bool
    ) -> tuple[Rows, torch.Tensor]:
        """The block that a call with the sample ids (N,) writes into, and its rows there, (N,)
        int64. The call advances `clock` and, if it `selects`, counts its selections."""
        n = len(ids)
        if not self._blocks or self._blocks[-1].used + n > len(self._blocks[-1].ids):
            self._add_block(n, clock, beta)
        block = self._blocks[-1]
        start, block.used = block.used, block.used + n
        self._rows += n
        block.ids.narrow(0, start, n).copy_(ids)
        if selects and not block.selects:
            block.rows.selections = torch.zeros_like(block.rows.seen_at)
            block.selects = True
        return block.rows, self._places.narrow(0, start, n)

    def _add_block(self, n: int, clock: torch.Tensor, beta: float) -> None:
        size = max(n, min(_MOST, max(_FEWEST, self._rows)))
        with torch.inference_mode(False):
            ids = torch.empty(size, dtype=self._id_dtype, device=self._device)
            score, loss, entropy = (
                torch.empty(size, dtype=torch.float32, device=self._device) for _ in range(3)
            )
            seen_at = torch.zeros(size, dtype=torch.int32, device=self._device)
            if len(self._places) < size:
                self._places = torch.arange(size, device=self._device)
                self._scratch = torch.zeros_like(seen_at)
            counts = self._scratch[:size]  # never read
            claims = counts[:0] if self._device.type == "cpu" else torch.empty_like(seen_at)
        fields = score, loss, entropy, counts, counts, seen_at, clock, claims
        self._blocks.append(_Block(ids, Rows(*fields, beta=beta, num_samples=size)))

    def entries(self) -> Iterator[Entries]:
        """The written rows of each block. A call's rows are all in one block."""
        for block in self._blocks:
            rows = block.rows
            fields = Entries(block.ids, rows.score, rows.loss, rows.entropy, rows.seen_at)
            used = Entries(*(field[: block.used] for field in fields))
            written = used.seen_at > 0
            yield used if written.all() else Entries(*(field[written] for field in used))

    def picked(self) -> torch.Tensor:
        """The ids that calls selected, with repetitions, (M,) int64."""
        found = [self._places[:0]]
        for block in self._blocks:
            if block.selects:
                picked = block.rows.selections[: block.used] > 0
                found.append(block.ids[: block.used][picked].long())
        return torch.cat(found)

    def clear(self) -> None:
        """Forget everything."""
        self._blocks, self._rows = [], 0
