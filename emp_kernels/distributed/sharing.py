"""Synchronisation and checkpoints of a sharded state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .group import agreed, max_equal
from .owners import Message, exchange_messages, messages, raise_counts, write_entries
from .write_log import Memory

if TYPE_CHECKING:
    from .sharded import ShardedState

_DRAWN = 1 << 17  # drawn ids sent at a time


def sync_shared(state: ShardedState, function: str) -> None:
    """Send logged entries to their owners.

    Entries are merged by the rules of :func:`emp_kernels.distributed.sync` for unsharded states.
    Nothing is written before a last message confirms that every rank has received everything, and
    nothing is sent after it: if a rank fails, the others raise with state and log unchanged.
    """
    drawn = state.drawn_ids(_DRAWN)
    rounds = max(state.num_blocks, len(drawn))
    clock, epoch, _, rounds = agreed(function, state, state.group, rounds)
    logged, none = state.logged(), torch.empty(0, dtype=torch.int64, device=state.device)
    pieces, heard, memory = iter(drawn), [], Memory(state.device)
    for _ in range(rounds):
        piece = next(pieces, none).to(state.device)
        sent = messages(state.owners, next(logged, None), piece)
        heard.append(exchange_messages(function, sent, memory, state.group))
    if rounds:
        max_equal(function, torch.zeros(1, dtype=torch.int32, device=state.device), state.group)
    # Nothing is left to fail: what was heard needs no log beside it while it is merged.
    del drawn, logged, pieces, memory
    state.forget_logged()
    if heard:
        _merge(state, heard)
    state.clock.fill_(clock)
    state.epoch = epoch
    state.synced_at = clock


def _merge(state: ShardedState, heard: list[list[Message]]) -> None:
    """Write the messages of each round and rank; of equally recent entries the highest rank's
    wins."""
    ranks = [[message[rank] for message in heard] for rank in range(state.owners.ranks)]
    written = [[(m.entries[:, 0], m.rewritten) for m in rounds] for rounds in ranks]
    raise_counts(state.updates, written)
    raise_counts(state.selections, [[(m.drawn[:, 0], m.redrawn) for m in x] for x in ranks])
    fields = {name: getattr(state, name) for name in ("score", "loss", "entropy", "seen_at")}
    for rounds in ranks:
        for message in rounds:
            write_entries(fields, message.entries)


def _mesh(state: ShardedState) -> Any:
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh.from_group(state.whole_group, state.device.type)


def sharded_tensor(state: ShardedState, part: torch.Tensor) -> Any:
    """A DTensor (num_samples,) of which this rank holds `part` (len(owned),)."""
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size([state.num_samples])
    return DTensor.from_local(
        part, _mesh(state), [Shard(0)], run_check=False, shape=shape, stride=(1,)
    )


def whole_entries(state: ShardedState, entries: dict[str, Any]) -> dict[str, Any]:
    """A snapshot's entries with per-sample parts as DTensors."""
    return {
        name: sharded_tensor(state, entry) if name in state.SHARED else entry
        for name, entry in entries.items()
    }


def own_entries(function: str, state: ShardedState, entries: Any) -> Any:
    """A snapshot's entries with tensors of all samples replaced by this rank's parts; invalid
    entries are left to later checks."""
    size = (state.num_samples,)
    if not isinstance(entries, Mapping) or entries.get("num_samples") != state.num_samples:
        return entries
    own = dict(entries)
    for name in state.SHARED & own.keys():
        if isinstance(own[name], torch.Tensor):
            if own[name].shape != size:
                raise ValueError(
                    f"{function}: {name} must have shape {size}, got {tuple(own[name].shape)}"
                )
            own[name] = own_part(state, own[name])
    return own


def own_part(state: ShardedState, tensor: Any) -> torch.Tensor:
    """This rank's part of a tensor (num_samples,), which may be a DTensor."""
    if hasattr(tensor, "full_tensor"):
        from torch.distributed.tensor import Shard

        mesh = tensor.device_mesh
        alike = mesh.ndim == 1 and tuple(tensor.placements) == (Shard(0),)
        if alike and mesh.get_group() == state.whole_group:
            local: torch.Tensor = tensor.to_local()
            return local
        tensor = tensor.full_tensor()
    return tensor[state.owned.start : state.owned.stop]
