"""Ownership of samples, and the messages that bring entries and counts to their owners.

A rank's round of messages is a block of its log and one piece of what it drew. To each owner go
20 bytes for an entry and 4 for a drawn id, and, of ids that were written or drawn more than once,
8 bytes that say how often more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist

from .group import exchange, exchange_counts
from .write_log import Entries, Memory

_WIDTHS = (5, 2, 1, 2)  # int32 per row of each field of Message


class Owners(NamedTuple):
    """Rank r owns the ids [r * share, min((r + 1) * share, num_samples))."""

    num_samples: int
    ranks: int

    @property
    def share(self) -> int:
        return max(1, -(-self.num_samples // self.ranks))

    def range_of(self, rank: int) -> range:
        first, n = rank * self.share, self.num_samples
        return range(min(first, n), min(first + self.share, n))

    def counts(self, ids: torch.Tensor) -> list[int]:
        """Number of ascending ids (N,) that each rank owns."""
        ends = torch.arange(1, self.ranks + 1, device=ids.device) * self.share
        before = torch.searchsorted(ids, ends.clamp(max=self.num_samples).to(ids.dtype))
        counts: list[int] = before.diff(prepend=before.new_zeros(1)).tolist()
        return counts


class Message(NamedTuple):
    """A message between ranks, as int32 with ids relative to the owner's first.

    Attributes:
        entries: (E, 5) id, the bits of score, loss and entropy, and seen_at: each id's last entry.
        rewritten: (R, 2) id, and the number of calls that wrote it before the last one.
        drawn: (D, 1) ids that were drawn or selected.
        redrawn: (S, 2) id, and how many more times than once it was drawn or selected.
    """

    entries: torch.Tensor
    rewritten: torch.Tensor
    drawn: torch.Tensor
    redrawn: torch.Tensor


def messages(owners: Owners, entries: Entries | None, drawn: torch.Tensor) -> list[Message]:
    """For each rank the part that it owns of a block of the log and of ids drawn (M,)."""
    fields = []
    if entries is None:
        empty = torch.empty(0, dtype=torch.int32, device=drawn.device)
        fields += [[empty.view(0, 5)] * owners.ranks, [empty.view(0, 2)] * owners.ranks]
    else:
        ids, order = entries.ids.sort(stable=True)
        seen_at = entries.seen_at[order]
        ended = _ends(ids)
        calls = None if ended is None else _ends(ids, seen_at)
        if ended is not None:
            order, seen_at = order[ended], seen_at[ended]
        values = [field[order].view(torch.int32) for field in entries[1:4]]
        fields += _shared_out(owners, ids, ended, calls, [*values, seen_at])
    ids = drawn.sort().values
    fields += _shared_out(owners, ids, _ends(ids), None, [])
    return [Message(*of_rank) for of_rank in zip(*fields, strict=True)]


def _ends(*columns: torch.Tensor) -> torch.Tensor | None:
    """The ends of runs of equal rows, (N,) bool; None if all rows are distinct."""
    ended = torch.ones(len(columns[0]), dtype=torch.bool, device=columns[0].device)
    if len(ended):
        ended[:-1] = False
        for column in columns:
            ended[:-1] |= column[1:] != column[:-1]
    return None if ended.all() else ended


def _shared_out(
    owners: Owners,
    ids: torch.Tensor,
    ended: torch.Tensor | None,
    counted: torch.Tensor | None,
    columns: list[torch.Tensor],
) -> list[list[torch.Tensor]]:
    """For each rank one row per id, followed by `columns`, and (id, additional count) of repeated
    ids. `ids` are ascending, repeats adjacent; only rows that are `counted` count."""
    more = ids.new_empty(0, 2)
    if ended is not None:
        reached = (
            torch.arange(1, len(ids) + 1, device=ids.device)
            if counted is None
            else (counted.cumsum(0))
        )
        often = reached[ended].diff(prepend=reached.new_zeros(1)) - 1
        ids = ids[ended]
        more = torch.stack([ids, often.to(ids.dtype)], 1)[often > 0]
    rows = torch.stack([(ids % owners.share).int(), *columns], 1)
    more_counts = owners.counts(more[:, 0].contiguous())
    more = torch.stack([more[:, 0] % owners.share, more[:, 1]], 1).int()
    return [list(rows.split(owners.counts(ids))), list(more.split(more_counts))]


def exchange_messages(
    function: str, sent: list[Message], memory: Memory, group: dist.ProcessGroup | None
) -> list[Message]:
    """What the ranks tell this one, in `memory`; sent[r] goes to rank r."""
    sizes = torch.tensor(
        [[len(field) for field in message] for message in sent], device=sent[0].drawn.device
    )
    heard = exchange_counts(function, sizes, group)
    widths = torch.tensor(_WIDTHS, device=sizes.device)
    lengths = (sizes * widths).sum(1).tolist(), (heard * widths).sum(1).tolist()
    words = torch.cat([field.reshape(-1) for message in sent for field in message])
    received = memory.take(sum(lengths[1]))
    received.copy_(exchange(function, words, *lengths, group))
    pieces = iter(received.split((heard * widths).reshape(-1).tolist()))
    return [Message(*(next(pieces).view(-1, width) for width in _WIDTHS)) for _ in range(len(sent))]


# One rank's round: ids (N,) int32 that count once each, and (id, additional count) (M, 2).
Counted = tuple[torch.Tensor, torch.Tensor]


def raise_counts(counts: torch.Tensor, heard: list[list[Counted]]) -> None:
    """Add to `counts` (samples,), in place, each sample's largest count over the ranks, given their
    rounds."""
    seen = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
    reached = []
    for rounds in heard:
        if _repeats(rounds, seen):
            ids, often = _summed(rounds)
            reached.append((ids, counts[ids] + often))
        else:
            reached += [(ids, counts[ids.long()] + 1) for ids, _ in rounds]
    for ids, value in reached:
        places = ids.long()
        counts[places] = torch.maximum(counts[places], value)


def _repeats(rounds: list[Counted], seen: torch.Tensor) -> bool:
    """Whether a rank has sent an id more than once; `seen` (samples,) is False before and after."""
    found = any(len(more) for _, more in rounds)
    if found or len(rounds) == 1:
        return found
    for ids, _ in rounds:
        places = ids.long()
        found = found or bool(seen[places].any())
        seen[places] = True
    for ids, _ in rounds:
        seen[ids.long()] = False
    return found


def _summed(rounds: list[Counted]) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct ids (N,) of a rank's rounds and their total counts, (N,) int32."""
    once, more = (torch.cat(part) for part in zip(*rounds, strict=True))
    ids, place = torch.cat([once, more[:, 0]]).long().unique(return_inverse=True)
    counts = torch.cat([torch.ones_like(once), more[:, 1]])
    return ids, torch.zeros_like(ids, dtype=torch.int32).index_add_(0, place, counts)


def write_entries(state: dict[str, torch.Tensor], entries: torch.Tensor) -> None:
    """Write one rank's entries (E, 5) unless they are older than the state's."""
    ids = entries[:, 0].long()
    newer = entries[:, 4] >= state["seen_at"][ids]
    if not newer.all():
        ids, entries = ids[newer], entries[newer]
    for column, name in enumerate(("score", "loss", "entropy"), 1):
        state[name][ids] = entries[:, column].contiguous().view(torch.float32)
    state["seen_at"][ids] = entries[:, 4]
