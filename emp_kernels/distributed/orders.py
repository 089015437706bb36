"""The order of an epoch of a sharded state: each rank requests the ids that it draws from their
owners.

The permutation gives, without a table, which of the kept samples (in ascending order) is at each of
a rank's positions of the shuffled order; the numbers of samples kept by each rank give its owner
and its index there.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from .. import backends, choosing
from ..keep import Keep, kept_count
from ..orders import (
    AnyOrder,
    Order,
    loaded_start,
    loaded_weights,
    share_size,
)
from ..orders import loaded_order as whole_loaded_order
from ..orders import saved_order as whole_saved_order
from ..selection import select as select_scores
from ..state import EMPState
from ..validation import check_size
from .group import check_group, exchange, exchange_counts, gather_equal
from .selection import select
from .sharded import ShardedState
from .sharing import own_part, sharded_tensor, sync_shared

_FUNCTION = "EMPSampler"
_PIECE = 1 << 17  # ids requested at a time


class SharedOrder(NamedTuple):
    """The order of an epoch, like Order: the `kept` samples, ascending or shuffled.

    Attributes:
        number, start, resumed, weights: as in Order.
        state: the sharded state.
        kept: (len(state.owned),) bool on the CPU, of this rank's samples; None: all samples of all
            ranks.
        length: number of kept samples, over all ranks.
        stream: the seed of the shuffle; None leaves them ascending.
    """

    number: int
    state: ShardedState
    kept: torch.Tensor | None
    length: int
    stream: int | None
    start: int = 0
    resumed: bool = False
    weights: torch.Tensor | None = None

    def share(self, ranks: int, rank: int, drop_last: bool) -> torch.Tensor:
        """One rank's share of the remaining ids, as in Order. Collective; the ranks also close
        their state's window, as an unsharded state does when its first id is drawn."""
        count = share_size(self, ranks, drop_last)
        if self.start == 0 and count > 0:
            self.state.close_window()
        ids = torch.empty(count, dtype=torch.int64, device="cpu")
        held = None if self.kept is None else _Held.of(self.state, self.kept)
        rounds = max(_gathered(self.state, -(-count // _PIECE))) if held is not None else None
        for start in range(0, max(count, 0 if rounds is None else rounds * _PIECE), _PIECE):
            piece = torch.arange(start, max(start, min(start + _PIECE, count)), device="cpu")
            places = piece * ranks + (self.start + rank)
            behind = places >= self.length
            if behind.any():
                places[behind] = (places[behind] - self.length) % self.length
            if self.stream is not None:
                backend = backends.resolve(_FUNCTION, None, places)
                places = backend.shuffled_at(self.length, self.stream, places)
            ids[start : start + _PIECE] = places if held is None else held.at(places)
        return ids

    def resumed_at(self, start: int) -> SharedOrder:
        """As in Order."""
        return self._replace(start=start, resumed=True)


class _Held(NamedTuple):
    """The kept samples and their owners.

    Attributes:
        own: (K_local,) int32, this rank's kept samples, relative to its first one.
        ends: (ranks,) int64, cumulative numbers of kept samples.
    """

    state: ShardedState
    own: torch.Tensor
    ends: torch.Tensor

    @staticmethod
    def of(state: ShardedState, kept: torch.Tensor) -> _Held:
        own = kept.nonzero()[:, 0].int()
        counts = torch.tensor(_gathered(state, len(own)), dtype=torch.int64, device="cpu")
        return _Held(state, own, counts.cumsum(0))

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """The ids (M,) of the kept samples at `positions` (M,). Collective."""
        owners, group = self.state.owners, self.state.group
        owner = torch.searchsorted(self.ends, positions, right=True)
        owner, by_owner = owner.sort(stable=True)
        before = torch.cat([self.ends.new_zeros(1), self.ends[:-1]])
        wanted = (positions[by_owner] - before[owner]).int()
        counts = torch.bincount(owner, minlength=owners.ranks)
        asked = exchange_counts(_FUNCTION, counts, group).tolist()
        told = exchange(_FUNCTION, wanted, counts.tolist(), asked, group)
        answers = exchange(_FUNCTION, self.own[told.long()], asked, counts.tolist(), group)
        ids = torch.empty_like(positions)
        ids[by_owner] = answers + owner * owners.share
        return ids


def _gathered(state: ShardedState, value: int) -> list[int]:
    """The `value` of each rank."""
    own = torch.tensor([value], device=state.device)
    return [int(part) for part in gather_equal(_FUNCTION, own, state.group)]


def shared_order(
    state: ShardedState,
    epoch: int,
    keep: Keep | None,
    sampling: str,
    stream: int,
    shuffle: bool,
) -> SharedOrder:
    """The order of a new epoch: `keep` samples chosen by `sampling`, or all if None. Collective."""
    sync_shared(state, _FUNCTION)
    kept, weights, length = None, None, state.num_samples
    if keep is not None:
        ids, weights = _chosen(state, keep, sampling, stream)
        kept = torch.zeros(len(state.owned), dtype=torch.bool, device="cpu")
        kept[ids.cpu()] = True
        length = kept_count(keep, state.num_samples)
    seed = stream if shuffle else None
    return SharedOrder(epoch, state, kept, length, seed, weights=weights)


def _chosen(
    state: ShardedState, keep: Keep, sampling: str, stream: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As :func:`choosing.chosen`, for this rank's samples, relative to its first one."""
    score, group = state.score, state.group
    count = kept_count(keep, state.num_samples)
    if count == 0:
        return torch.arange(0, device="cpu"), None
    if sampling not in ("top", "gumbel"):
        return _chosen_of_all(state, keep, sampling, stream)
    unseen = (score == torch.inf).nonzero()[:, 0]
    waiting = _gathered(state, len(unseen))
    if sum(waiting) > count:
        generator = torch.Generator().manual_seed(stream)
        _, rank = check_group(_FUNCTION, group)
        before = sum(waiting[:rank])
        for start in range(0, before, _PIECE):  # skip the random numbers of lower ranks' samples
            _drawn(min(_PIECE, before - start), generator)
        keys = _drawn(len(unseen), generator)
        return unseen[select(keys, count, group=group).to(unseen.device)], None
    if sampling == "gumbel":
        score = choosing.gumbel_keys(score.cpu(), stream, state.owned.start)
    return select(score, count, group=group), None


def _drawn(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float32, device="cpu")


def _chosen_of_all(
    state: ShardedState, keep: Keep, sampling: str, stream: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """For sampling methods that need all scores: 4 bytes per sample on each rank."""
    part = torch.zeros(state.owners.share, dtype=torch.float32, device=state.device)
    part[: len(state.owned)] = state.score
    score = torch.cat(gather_equal(_FUNCTION, part, state.group))[: state.num_samples]
    whole: Any = SimpleNamespace(
        num_samples=state.num_samples, score=score, select=lambda keep: select_scores(score, keep)
    )
    ids, weights = choosing.chosen(whole, keep, sampling, stream)
    first, stop = state.owned.start, state.owned.stop
    return ids[(ids >= first) & (ids < stop)] - first, weights


def saved_order(order: AnyOrder | None, state: EMPState) -> dict[str, Any]:
    """An order for a checkpoint. For a sharded state the kept samples are a DTensor, and the set of
    entries does not depend on the order."""
    if not isinstance(state, ShardedState):
        assert order is None or isinstance(order, Order)
        return whole_saved_order(order, state.num_samples)
    whole = order if isinstance(order, Order) else None
    entries = whole_saved_order(whole, state.num_samples)
    kept, shared = None, None
    if isinstance(order, SharedOrder):
        kept, shared = order.kept, (order.length, order.stream, order.kept is None)
        entries["start"] = order.start
        if order.weights is not None:
            entries["weights"] = (order.weights,)
    if kept is None:
        kept = torch.zeros(len(state.owned), dtype=torch.bool, device="cpu")
    kept = kept.to(state.device, copy=True)
    return entries | {"kept": sharded_tensor(state, kept), "shared": shared}


def loaded_order(
    function: str, saved: Mapping[str, Any], number: int, state: EMPState
) -> AnyOrder | None:
    """The order from a checkpoint of either kind of state, for either kind of state."""
    n = state.num_samples
    if saved.get("shared") is None:
        return whole_loaded_order(function, saved, number, n)
    kept, shared = saved.get("kept"), saved["shared"]
    if not isinstance(shared, tuple | list) or len(shared) != 3:
        raise TypeError(
            f"{function}: shared must be (length, stream, whole) or None, got {shared!r}"
        )
    length, (stream, whole) = check_size(function, "length", shared[0]), shared[1:]
    if stream is not None:
        stream = check_size(function, "stream", stream)
    if not isinstance(whole, bool):
        raise TypeError(f"{function}: whole must be a bool, got {type(whole).__name__}")
    if not isinstance(kept, torch.Tensor) or kept.dtype != torch.bool:
        raise TypeError(f"{function}: kept must be a bool tensor, got {type(kept).__name__}")
    if kept.shape != (n,):
        raise ValueError(f"{function}: kept must have shape ({n},), got {tuple(kept.shape)}")
    start = loaded_start(function, saved, length)
    weights = loaded_weights(function, saved, n)
    if isinstance(state, ShardedState):
        part = None if whole else own_part(state, kept).cpu().clone()
        return SharedOrder(number, state, part, length, stream, start, True, weights)
    kept = kept.full_tensor() if hasattr(kept, "full_tensor") else kept
    ids = torch.arange(n, device="cpu") if whole else kept.cpu().nonzero()[:, 0]
    if len(ids) != length:
        raise ValueError(f"{function}: kept must hold {length} samples, got {len(ids)}")
    if stream is not None:
        ids = backends.resolve(_FUNCTION, None, ids).shuffle(ids, stream)
    return Order(number, ids, start, True, weights)
