"""The order of an epoch's samples, and how it is saved in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch

from .snapshot import one_tensor
from .validation import check_size, raise_id_out_of_range


class Order(NamedTuple):
    """The order of an epoch's samples.

    Attributes:
        number: the epoch's.
        ids: (L,) int64, of all ranks, on the CPU.
        start: number of ids drawn before the epoch was resumed.
        resumed: whether it comes from a checkpoint and must not be chosen anew.
        weights: (num_samples,) float32 weights of the samples' losses; None if all are 1.
    """

    number: int
    ids: torch.Tensor
    start: int = 0
    resumed: bool = False
    weights: torch.Tensor | None = None

    @property
    def length(self) -> int:
        return len(self.ids)

    def share(self, ranks: int, rank: int, drop_last: bool) -> torch.Tensor:
        """One rank's share of the remaining ids: every R-th, equally many for all ranks."""
        rest = self.ids[self.start :]
        if ranks == 1:
            return rest
        count = share_size(self, ranks, drop_last)
        missing = count * ranks - len(rest)
        if missing > 0:
            padding = torch.arange(missing, device=rest.device) % len(self.ids)
            rest = torch.cat([rest, self.ids[padding]])
        return rest[: count * ranks][rank::ranks].contiguous()

    def resumed_at(self, start: int) -> Order:
        """The order as restored from a checkpoint, with `start` ids drawn."""
        return self._replace(start=start, resumed=True)


class AnyOrder(Protocol):
    """The interface of Order, also implemented for a sharded state."""

    @property
    def number(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def resumed(self) -> bool: ...
    @property
    def weights(self) -> torch.Tensor | None: ...
    @property
    def length(self) -> int: ...
    def share(self, ranks: int, rank: int, drop_last: bool) -> torch.Tensor: ...
    def resumed_at(self, start: int) -> AnyOrder: ...


def share_size(order: AnyOrder, ranks: int, drop_last: bool) -> int:
    """Number of remaining ids that each rank draws."""
    left = order.length - order.start
    return left // ranks if drop_last else -(-left // ranks)


def grown_weights(weights: torch.Tensor, num_samples: int) -> torch.Tensor:
    """An order's weights, with 1 for each sample that came after it was made: it draws none."""
    new = num_samples - len(weights)
    return weights if new == 0 else torch.cat([weights, weights.new_ones(new)])


def saved_order(order: Order | None, num_samples: int) -> dict[str, Any]:
    """An order in a checkpoint, of a state that holds `num_samples` now."""
    entries: dict[str, Any] = {
        # In a tuple, so that torch.distributed.checkpoint need not know the length when it loads.
        "order": None if order is None else (order.ids,),
        "start": 0 if order is None else order.start,
    }
    if order is not None and order.weights is not None:
        entries["weights"] = (grown_weights(order.weights, num_samples),)
    return entries


def loaded_order(
    function: str, saved: Mapping[str, Any], number: int, num_samples: int
) -> Order | None:
    """The order from a checkpoint, starting after the ids that all ranks have drawn; fully
    validated."""
    if saved["order"] is None:
        loaded_start(function, saved, None)
        return None
    ids = one_tensor(function, "order", saved["order"], torch.int64)
    if len(ids) > num_samples:
        raise ValueError(
            f"{function}: order must hold at most the {num_samples} samples, got {len(ids)}"
        )
    outside = ((ids < 0) | (ids >= num_samples)).nonzero()
    if len(outside):
        position = int(outside[0])
        raise_id_out_of_range(function, position, int(ids[position]), num_samples, "order")
    seen = torch.zeros(num_samples, dtype=torch.bool, device="cpu")
    seen[ids] = True
    if int(seen.sum()) != len(ids):
        raise ValueError(f"{function}: order must hold each id once, got one of them twice")
    start = loaded_start(function, saved, len(ids))
    return Order(number, ids, start, True, loaded_weights(function, saved, num_samples))


def loaded_start(function: str, saved: Mapping[str, Any], length: int | None) -> int:
    """How many ids of a checkpoint's order, of `length` ids or None, all ranks had drawn."""
    start, position, ranks = (
        check_size(function, name, saved[name]) for name in ("start", "position", "num_replicas")
    )
    if ranks < 1:
        raise ValueError(f"{function}: num_replicas must be at least 1, got {ranks}")
    if length is None:
        for name, drawn in (("start", start), ("position", position)):
            if drawn:
                raise ValueError(f"{function}: {name} must be 0 where order is None, got {drawn}")
        return 0
    if start > length:
        raise ValueError(
            f"{function}: start must be at most the order's length {length}, got {start}"
        )
    longest = -(-(length - start) // ranks)
    if position > longest:
        raise ValueError(
            f"{function}: position must be at most the {longest} ids that a rank draws, "
            f"got {position}"
        )
    return min(start + position * ranks, length)


def loaded_weights(
    function: str, saved: Mapping[str, Any], num_samples: int
) -> torch.Tensor | None:
    """The samples' weights from a checkpoint."""
    weights = saved.get("weights")
    if weights is not None:
        weights = one_tensor(function, "weights", weights, torch.float32)
        if len(weights) != num_samples:
            raise ValueError(
                f"{function}: weights must have shape ({num_samples},), got {tuple(weights.shape)}"
            )
        wrong = (~weights.isfinite()).nonzero()
        if len(wrong):
            at = int(wrong[0])
            raise ValueError(
                f"{function}: weights must be finite, got {float(weights[at])} at position {at}"
            )
    return weights
