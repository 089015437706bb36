"""Merging the states of many ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ..state import EMPState
from .group import check_group, gather_equal, message_device, per_rank

_ROWS = 1 << 20  # entries that a rank sends at a time, 28 bytes each


def sync(state: EMPState, group: dist.ProcessGroup | None = None) -> None:
    """Make the states of all ranks equal: every sample's entry is its most recent one.

    An entry (score, loss, entropy, updates, seen_at) is more recent when its `seen_at`, the state's
    clock at the call that wrote it, is larger; of equally recent ones the highest rank's counts, as
    the last row would if the ranks' batches were one. Clocks tick once a call that writes, so ranks
    that train in step agree, and all leave with the largest clock. `selections` and `updates`
    become the largest of any rank, which counts all exactly where, between two calls, a sample is
    drawn by one rank only, as :class:`emp_kernels.EMPSampler` arranges.

    Only entries written since the last call travel, as int64 ids and float32 bits, so that ids
    above 2**24 and scores arrive unrounded; besides them, 4 bytes a sample of `selections`.

    Args:
        state: of the same num_samples and beta on all ranks; all of them must call.
        group: a process group; None is the default one.

    Raises:
        TypeError: `state` is no EMPState.
        ValueError: the ranks' states are of different sizes or betas; raised on all ranks, before
            anything is written.
        RuntimeError: torch.distributed is not initialised.
    """
    function = "distributed.sync"
    if not isinstance(state, EMPState):
        raise TypeError(f"{function}: state must be an EMPState, got {type(state).__name__}")
    ranks, _ = check_group(function, group)
    if ranks == 1:
        return
    clock, epoch, base = _agree(function, state, group)
    changed = (state.seen_at > base).nonzero()[:, 0]
    counts = gather_equal(function, torch.tensor([len(changed)], device=state.device), group)
    for start in range(0, max(int(count) for count in counts), _ROWS):
        ids = changed[start : start + _ROWS]
        rows = min(_ROWS, max(int(count) for count in counts) - start)
        for entries, count in zip(
            gather_equal(function, _packed(state, ids, rows), group), counts, strict=True
        ):
            _merge(state, entries[: max(0, int(count) - start)])
    selections = state.selections.to(message_device(state.selections, group))
    if selections is state.selections:
        selections = selections.clone()
    dist.all_reduce(selections, dist.ReduceOp.MAX, group=group)
    state.selections.copy_(selections)
    state.clock.fill_(clock)
    state.epoch = epoch
    state.synced_at = clock


def _agree(function: str, state: EMPState, group: dist.ProcessGroup | None) -> tuple[int, int, int]:
    """(largest clock, largest epoch, the clock up to which all states are equal)."""
    beta = torch.tensor([state.beta], dtype=torch.float64, device="cpu").view(torch.int64)
    own = [state.num_samples, int(beta), int(state.clock), state.epoch, state.synced_at]
    facts = torch.stack(gather_equal(function, torch.tensor(own, device=state.device), group)).cpu()
    sizes, betas = facts[:, 0].tolist(), facts[:, 1].contiguous().view(torch.float64).tolist()
    for name, values in (("num_samples", sizes), ("beta", betas)):
        if len(set(values)) > 1:
            raise ValueError(
                f"{function}: state must have one {name} on all ranks, got {per_rank(values)}"
            )
    return int(facts[:, 2].max()), int(facts[:, 3].max()), int(facts[:, 4].min())


def _packed(state: EMPState, ids: torch.Tensor, rows: int) -> torch.Tensor:
    """Entries at `ids` (K,) as bits: (rows, 7) int32, padded with zeros."""
    entries = torch.zeros(rows, 7, dtype=torch.int32, device=ids.device)
    entries[: len(ids), :2] = ids.view(torch.int32).reshape(-1, 2)
    for column, name in enumerate(("score", "loss", "entropy"), 2):
        entries[: len(ids), column] = getattr(state, name)[ids].view(torch.int32)
    entries[: len(ids), 5] = state.seen_at[ids]
    entries[: len(ids), 6] = state.updates[ids]
    return entries


def _merge(state: EMPState, entries: torch.Tensor) -> None:
    """Write one rank's entries where they are no older than the state's."""
    ids = entries[:, :2].reshape(-1).clone().view(torch.int64)
    counts = torch.maximum(state.updates[ids], entries[:, 6])
    state.updates[ids] = counts
    newer = entries[:, 5] >= state.seen_at[ids]
    ids, entries = ids[newer], entries[newer]
    for column, name in enumerate(("score", "loss", "entropy"), 2):
        getattr(state, name)[ids] = entries[:, column].clone().view(torch.float32)
    state.seen_at[ids] = entries[:, 5]
