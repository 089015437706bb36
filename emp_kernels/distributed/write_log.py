"""What one rank has written since the ranks last exchanged their entries.

A call's rows stand in the log as the backend wrote them: it is given a piece of the log in a
state's place, in which row i is sample i, so that nothing is looked up and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

_FEWEST, _MOST = 1 << 12, 1 << 20  # rows of a block; only one call's rows may be more
_PICKS = 1 << 10  # selecting calls whose rows are kept as they are


class Entries(NamedTuple):
    """Rows that were written, oldest first: of sample `ids` (N,), at the call `seen_at` (N,)."""

    ids: torch.Tensor
    score: torch.Tensor
    loss: torch.Tensor
    entropy: torch.Tensor
    seen_at: torch.Tensor


@dataclass(slots=True)
class Rows:
    """A call's piece of the log, in a state's place; a row that is not written keeps seen_at 0."""

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


class WriteLog:
    """Blocks of entries, `bytes_per_row` each, that grow in number and are never copied."""

    def __init__(self, num_samples: int, device: torch.device) -> None:
        self._id_dtype = torch.int32 if num_samples < 2**31 else torch.int64
        self._device = device
        self._blocks: list[Entries] = []
        self._used: list[int] = []
        self._rows = 0
        self._scratch = torch.zeros(0, dtype=torch.int32, device=device)
        self._nothing = torch.empty(0, dtype=torch.int32, device=device)
        self._picks: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def bytes_per_row(self) -> int:
        return 16 + self._id_dtype.itemsize

    def __len__(self) -> int:
        """Rows that calls have brought, also those that were not valid."""
        return self._rows

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    def rows(self, ids: torch.Tensor, clock: torch.Tensor, beta: float, selects: bool) -> Rows:
        """A piece for a call with the sample ids (N,), which ticks `clock` and, if it `selects`,
        counts what it returns."""
        n = len(ids)
        if not self._blocks or self._used[-1] + n > len(self._blocks[-1].ids):
            self._add_block(n)
        block, start = self._blocks[-1], self._used[-1]
        id_rows, score, loss, entropy, seen_at = (field.narrow(0, start, n) for field in block)
        id_rows.copy_(ids)
        self._used[-1] += n
        self._rows += n
        if len(self._scratch) < n:
            self._scratch = torch.zeros(n, dtype=torch.int32, device=self._device)
        counted = selections = self._scratch.narrow(0, 0, n)
        if selects:
            selections = torch.zeros(n, dtype=torch.int32, device=self._device)
            if len(self._picks) >= _PICKS:
                picked = self.picked()
                self._picks = [(picked, torch.ones_like(picked, dtype=torch.int32))]
            self._picks.append((id_rows, selections))
        claims = self._nothing if self._device.type == "cpu" else torch.empty_like(counted)
        return Rows(
            *(score, loss, entropy, counted, selections, seen_at, clock, claims),
            beta=beta,
            num_samples=n,
        )

    def _add_block(self, n: int) -> None:
        size = max(n, min(_MOST, max(_FEWEST, self._rows)))
        with torch.inference_mode(False):
            ids = torch.empty(size, dtype=self._id_dtype, device=self._device)
            score, loss, entropy = (
                torch.empty(size, dtype=torch.float32, device=self._device) for _ in range(3)
            )
            seen_at = torch.zeros(size, dtype=torch.int32, device=self._device)
        self._blocks.append(Entries(ids, score, loss, entropy, seen_at))
        self._used.append(0)

    def entries(self) -> Iterator[Entries]:
        """The rows of each block that were written. No call's rows are in two blocks."""
        for block, used in zip(self._blocks, self._used, strict=True):
            written = block.seen_at[:used] > 0
            if written.all():
                yield Entries(*(field[:used] for field in block))
            else:
                yield Entries(*(field[:used][written] for field in block))

    def picked(self) -> torch.Tensor:
        """The ids that calls selected, as often as they did, (M,) int64."""
        found = [ids[counts > 0].long() for ids, counts in self._picks]
        return torch.cat(found) if found else self._nothing.long()

    def clear(self) -> None:
        """Forget everything."""
        self._blocks, self._used, self._rows, self._picks = [], [], 0, []
