"""A state sharded among ranks, each of which holds a part of the samples."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
import torch.distributed as dist

from ..compiling import outside_compiler
from ..keep import Keep, check_keep_of
from ..state import EMPState
from ..tracing import records
from ..validation import check_beta, check_size
from . import sharing
from .group import check_group, max_equal, named, sum_equal
from .owners import Owners
from .selection import select
from .write_log import Entries, WriteLog

_LARGEST_SHARE = 2**31  # an owner's ids are sent as int32


class ShardedState(EMPState):
    """An :class:`emp_kernels.EMPState` sharded over the ranks of a process group.

    Of R ranks, rank r owns the ids [r * s, min((r + 1) * s, num_samples)), s = ceil(num_samples /
    R), and stores 29 bytes for each of these only. Scores are written into a local log, 20 bytes
    per row (24 from 2**31 samples on), without communication: `update`,
    :func:`emp_kernels.score_and_select` and :func:`emp_kernels.cross_entropy` accept the ids of any
    samples. :func:`emp_kernels.distributed.sync` sends logged entries to their owners; it,
    `select`, `close_window`, `diagnostics` and `state_dict` are *collective*: every rank of the
    group must call them.

    After a sync, the state, its selection and the order of an :class:`emp_kernels.EMPSampler`
    (which takes this state like any other and syncs it at each epoch's start) are bit for bit those
    of unsharded states. Before it, `score` and the other fields lack the logged entries.

    The log grows with the rows trained between two syncs and is emptied by each sync. A rank cannot
    empty it alone: if it gets too large (``state.pending`` rows), call ``sync(state)`` at regular
    steps on all ranks.

    Calls cannot be captured in a CUDA graph, which would write into the same part of the log at
    every replay. A state cannot be pickled, because its group belongs to this process.

    Args:
        num_samples: size of the data set, the same on all ranks.
        group: the process group; None is the default one.
        beta, device: as in EMPState.

    Attributes:
        owned: range of the ids that this rank owns.
        score, loss, entropy, updates, selections, seen_at: (len(owned),), of these ids, as in
            EMPState, like clock, epoch and beta.
        num_samples: size of the data set.
        pending: rows in this rank's log.

    Raises:
        TypeError: a wrong type.
        ValueError: a value out of range, 2**31 samples or more to a rank, or a process that is not
            in the group.
        RuntimeError: torch.distributed is not initialised.
    """

    SHARED: ClassVar = frozenset(
        {"score", "loss", "entropy", "updates", "selections", "seen_at", "counted", "drawn"}
    )

    def __init__(
        self,
        num_samples: int,
        group: dist.ProcessGroup | None = None,
        *,
        beta: float = 1.0,
        device: torch.device | str | int | None = None,
    ) -> None:
        function = "ShardedState"
        num_samples = check_size(function, "num_samples", num_samples)
        beta = check_beta(function, beta)
        ranks, rank = check_group(function, group)
        self.group = group
        self.owners = Owners(num_samples, ranks)
        if self.owners.share >= _LARGEST_SHARE:
            raise ValueError(
                f"{function}: num_samples must give each of {ranks} ranks fewer than "
                f"{_LARGEST_SHARE}, got {num_samples}"
            )
        self.owned = self.owners.range_of(rank)
        super().__init__(len(self.owned), beta=beta, device=device)
        self.num_samples = num_samples
        self._log = WriteLog(num_samples, self.device)
        self._draws: list[_Draw] = []

    def _make_claims(self) -> None:
        """A block of the log has its own claims."""
        self.claims = torch.empty(0, dtype=torch.int32, device=self.device)

    def __repr__(self) -> str:
        return (
            f"ShardedState(num_samples={self.num_samples}, owned={self.owned}, beta={self.beta}, "
            f"epoch={self.epoch}, device='{self.device}')"
        )

    @property
    def whole_group(self) -> dist.ProcessGroup:
        """The group, resolved if it is the default one."""
        return named(self.group)

    @property
    def pending(self) -> int:
        return len(self._log)

    @outside_compiler
    def rows_of(
        self, function: str, indices: torch.Tensor | None, n: int
    ) -> tuple[Any, torch.Tensor | None]:
        """A block of the log, and the rows of it that the call may write."""
        if records(function):
            raise RuntimeError(
                f"{function}: state must be an EMPState where the call is recorded (the log of a "
                "ShardedState goes on with each call), got a ShardedState"
            )
        if indices is None:
            indices = torch.arange(n, device=self.device)
        on_cpu = indices.is_cpu
        if not on_cpu and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{function}: state must be an EMPState in a CUDA graph (the log of a ShardedState "
                "goes on with each call), got a ShardedState"
            )
        rows, places = self._log.append(indices, self.clock, self.beta, function)
        if not on_cpu:  # ids out of range make invalid rows there
            outside = (indices < 0) | (indices >= self.num_samples)
            places = places.masked_fill(outside, -1)
        return rows, places

    def follow(self, ids: torch.Tensor, progress: array[int], iterator: Iterator[int]) -> None:
        """Draws are counted at the next sync."""
        self._draws.append(_Draw(ids, progress, array("q", [0]), weakref.ref(iterator)))

    def counts_of(self, ids: torch.Tensor) -> None:
        return None

    def close_window_of(self, start: int) -> None:
        """The ranks closed it together when their shares were made."""

    def logged(self) -> Iterator[Entries]:
        """The entries not yet sent to their owners, one block at a time."""
        return self._log.entries()

    @property
    def num_blocks(self) -> int:
        return self._log.num_blocks

    def drawn_ids(self, most: int) -> list[torch.Tensor]:
        """The ids that were drawn or selected since the last sync, as often, in pieces (M,) int64
        of at most `most`."""
        found = [draw.ids[draw.taken[0] : draw.progress[0]] for draw in self._draws]
        found += self._log.picked()
        return [piece for ids in found if len(ids) for piece in ids.split(most)]

    def forget_logged(self) -> None:
        """Clear the log, after its entries have reached their owners."""
        self._log.clear()
        for draw in self._draws:
            draw.taken[0] = draw.progress[0]
        self._draws = [draw for draw in self._draws if draw.goes_on]

    def select(self, keep: Keep) -> torch.Tensor:
        """The owned part of the samples to train on: ascending ids. Collective.

        Equal to :meth:`emp_kernels.EMPState.select` of the whole state after a sync. Nothing is
        counted. `keep` must be the same on all ranks.
        """
        keep = check_keep_of("ShardedState.select", keep, self.num_samples)
        sharing.sync_shared(self, "ShardedState.select")
        return select(self.score, keep, group=self.group) + self.owned.start

    def check_synced(self) -> None:
        """Nothing to warn of: a snapshot syncs first."""

    def counts(self, values: torch.Tensor) -> torch.Tensor:
        own, function = torch.bincount(values), "ShardedState.diagnostics"
        size = max_equal(function, torch.tensor([len(own)], device=self.device), self.group)
        padded = torch.zeros(int(size), dtype=torch.int64, device=self.device)
        padded[: len(own)] = own
        return sum_equal(function, padded, self.group).cpu()

    def total(self, value: float) -> float:
        own = torch.tensor([value], dtype=torch.float64, device=self.device)
        return float(sum_equal("ShardedState", own, self.group))

    def grow(self, num_samples: int) -> NoReturn:
        """Not supported: another size would move samples between ranks.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "ShardedState.grow: a state must be held whole to grow (load its state_dict() into an "
            f"EMPState, and a larger one's into a new ShardedState), got num_samples={num_samples}"
        )

    def to(self, device: torch.device | str | int) -> ShardedState:
        """Move this rank's part to `device`, in place, and return it; its log must be empty.

        Raises:
            TypeError: `device` is no device; a state's dtypes are fixed.
            RuntimeError: the log holds entries; :func:`emp_kernels.distributed.sync` empties it.
        """
        if self.pending or self.drawn_ids(1):
            raise RuntimeError(
                f"ShardedState.to: the log must be empty (call emp.distributed.sync(state) first), "
                f"got {self.pending} rows in it"
            )
        super().to(device)
        self._log = WriteLog(self.num_samples, self.device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of the whole state after a sync, like that of an EMPState, but with DTensors
        sharded on dimension 0 for the per-sample tensors. Collective."""
        sharing.sync_shared(self, "ShardedState.state_dict")
        return sharing.whole_entries(self, super().state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore this rank's part of a snapshot: of a ShardedState on equally many ranks, or of an
        EMPState, from plain tensors. With DTensors of any other layout it is collective
        (``torch.distributed.checkpoint`` loads them in this layout). The log is cleared.

        Raises:
            TypeError, ValueError: as :meth:`EMPState.load_state_dict`; nothing has been written on
                this rank.
        """
        function = "ShardedState.load_state_dict"
        super()._load(function, sharing.own_entries(function, self, state_dict))
        self.forget_logged()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "ShardedState: a state must stay in its process (save its state_dict() with "
            "torch.distributed.checkpoint), got pickle or copy"
        )


class _Draw(NamedTuple):
    """The draws of a sampler's iterator: ids (L,), how many are drawn, how many of these a sync has
    counted, and the iterator."""

    ids: torch.Tensor
    progress: array[int]
    taken: array[int]
    iterator: weakref.ref[Iterator[int]]

    @property
    def goes_on(self) -> bool:
        return self.iterator() is not None and self.taken[0] < len(self.ids)
