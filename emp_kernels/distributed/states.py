"""Merging the states of many ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ..state import EMPState
from .group import agreed, check_group, gather_equal, max_equal
from .sharded import ShardedState
from .sharing import sync_shared

_ROWS = 1 << 20  # entries sent at a time, 28 bytes each


def sync(state: EMPState, group: dist.ProcessGroup | None = None) -> None:
    """Make the states of all ranks equal: every sample's entry is its most recent one.

    An entry (score, loss, entropy, updates, seen_at) is more recent if its `seen_at`, the state's
    clock at the call that wrote it, is larger; ties go to the highest rank, like the last row if
    the ranks' batches were one. Clocks advance once per writing call, so ranks that train in step
    agree, and all end with the largest clock. `selections` and `updates` become the largest of any
    rank, which is exact if each sample is drawn by only one rank between two calls, as with
    :class:`emp_kernels.EMPSampler`.

    Only entries written since the last call are sent, as int64 ids and float32 bits, so that ids
    above 2**24 and scores are not rounded; and 4 bytes per sample of `selections`. Nothing is
    written before everything has arrived: if a rank dies or does not call, the others raise an
    error that names it, with their states unchanged.

    A :class:`emp_kernels.distributed.ShardedState` sends its entries to the ranks that own their
    samples instead, 20 bytes per entry and 4 per drawn id, and merges them by the same rules.

    Args:
        state: with the same num_samples and beta on all ranks, all of which must call.
        group: a process group; None is the default one, or that of a ShardedState.

    Raises:
        TypeError: `state` is not an EMPState.
        ValueError: the ranks' states are of different sizes or betas; raised on all ranks, before
            anything is written.
        RuntimeError: torch.distributed is not initialised; a rank died or did not call within the
            group's timeout.
    """
    function = "distributed.sync"
    if not isinstance(state, EMPState):
        raise TypeError(f"{function}: state must be an EMPState, got {type(state).__name__}")
    if isinstance(state, ShardedState):
        if group is not None and group != state.whole_group:
            raise ValueError(
                f"{function}: group must be the state's own or None, got another one of "
                f"{dist.get_world_size(group)} ranks"
            )
        sync_shared(state, function)
        return
    ranks, _ = check_group(function, group)
    if ranks == 1:
        return
    clock, epoch, base, _ = agreed(function, state, group)
    changed = (state.seen_at > base).nonzero()[:, 0]
    counts = gather_equal(function, torch.tensor([len(changed)], device=state.device), group)
    most = max(int(count) for count in counts)
    heard = []  # each rank's entries per round, kept until nothing can fail any more
    for start in range(0, most, _ROWS):
        sent = _packed(state, changed[start : start + _ROWS], min(_ROWS, most - start))
        heard.append(gather_equal(function, sent, group))
    selections = max_equal(function, state.selections, group)
    for rank, count in enumerate(counts):
        for start, entries in zip(range(0, most, _ROWS), heard, strict=True):
            _merge(state, entries[rank][: max(0, int(count) - start)])
    state.selections.copy_(selections)
    state.clock.fill_(clock)
    state.epoch = epoch
    state.synced_at = clock


def _packed(state: EMPState, ids: torch.Tensor, rows: int) -> torch.Tensor:
    """The entries of `ids` (K,) as bits: (rows, 7) int32, padded with zeros."""
    entries = torch.zeros(rows, 7, dtype=torch.int32, device=ids.device)
    entries[: len(ids), :2] = ids.view(torch.int32).reshape(-1, 2)
    for column, name in enumerate(("score", "loss", "entropy"), 2):
        entries[: len(ids), column] = getattr(state, name)[ids].view(torch.int32)
    entries[: len(ids), 5] = state.seen_at[ids]
    entries[: len(ids), 6] = state.updates[ids]
    return entries


def _merge(state: EMPState, entries: torch.Tensor) -> None:
    """Write one rank's entries unless they are older than the state's."""
    ids = entries[:, :2].reshape(-1).clone().view(torch.int64)
    counts = torch.maximum(state.updates[ids], entries[:, 6])
    state.updates[ids] = counts
    newer = entries[:, 5] >= state.seen_at[ids]
    ids, entries = ids[newer], entries[newer]
    for column, name in enumerate(("score", "loss", "entropy"), 2):
        getattr(state, name)[ids] = entries[:, column].clone().view(torch.float32)
    state.seen_at[ids] = entries[:, 5]
