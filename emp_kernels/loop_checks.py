"""Mistakes in training loops that a sampler can detect, checked at most once per epoch and never
per id.

They would otherwise train without an error: scores that never reach the state, a data set of
another size, items without ids, a checkpoint that counts prefetched batches as trained.
"""

from __future__ import annotations

import sys
from array import array
from typing import Any

import torch
from torch.utils.data import DistributedSampler, StackDataset, Subset, TensorDataset

from .cautions import caution
from .dataset import IndexedDataset
from .epochs import Epoch
from .keep import Keep
from .loaders import asked_by_loader, dataset_of, prefetches
from .state import EMPState

_ONE_OF = 100  # from this many samples on, keep=1 is assumed to mean 1.0
_WRAPPING = frozenset({DistributedSampler.__init__.__code__, DistributedSampler.__iter__.__code__})
_UNINDEXED = ("torchvision", "torchaudio")  # packages whose data sets yield no ids


class Writes:
    """Checks that a state was written between the starts of two epochs."""

    def __init__(self) -> None:
        self._number = -1  # of the last epoch
        self._progress = array("q", [0])
        self._clock = 0  # of the state at its start

    def begin(self, epoch: Epoch, state: EMPState) -> None:
        """Called at the start of an epoch; warns if it is pruned and no scores were written since
        the last one."""
        order, clock, last = epoch.order, int(state.clock), self._number
        if order.number == last:  # started again, as by a peek at a batch
            return
        unwritten = self._progress[0] > 0 and clock == self._clock
        self._number, self._progress, self._clock = order.number, epoch.progress, clock
        if unwritten and order.length < state.num_samples:
            caution(
                f"EMPSampler: epoch {order.number} keeps {order.length} of {state.num_samples} "
                f"samples, and nothing was written into the state since epoch {last} began, so "
                "that it chooses by old scores or by chance: pass state, indices=ids to "
                "emp.cross_entropy or emp.score_and_select with every batch",
                state,
                "unwritten",
            )


def check_keep_of_one(keep: Keep, state: EMPState) -> Keep:
    """Return `keep`; warn of an int 1, most likely meant as the share 1.0."""
    if isinstance(keep, int) and keep == 1 and state.num_samples >= _ONE_OF:
        caution(
            f"EMPSampler: keep=1 keeps one of {state.num_samples} samples: pass keep=1.0 for all "
            "of them (a float is a share, an int a number of samples)",
            state,
            "keep",
        )
    return keep


def check_loader(loader: Any, state: EMPState) -> None:
    """Warn if the data set of the `loader` does not match the state."""
    dataset = dataset_of(loader)
    if dataset is None:
        return
    inner = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    if inner is not dataset and isinstance(inner, IndexedDataset):
        caution(
            "EMPSampler: a Subset of an IndexedDataset is drawn by its positions, and yields the "
            "whole data set's ids: wrap it the other way round, "
            "IndexedDataset(Subset(dataset, ids)), with EMPState(len(ids))",
            state,
            "subset",
        )
    elif _without_ids(inner):
        caution(
            f"EMPSampler: the loader's data set ({type(inner).__name__}) yields no sample ids: "
            "wrap it, DataLoader(emp.IndexedDataset(dataset), ...), and unpack its batches as "
            "ids, batch",
            state,
            "ids",
        )
    try:
        size = len(dataset)
    except (TypeError, NotImplementedError):
        return
    if size != state.num_samples:
        never = f"samples from {state.num_samples} on are never drawn"
        if size < state.num_samples:
            never = f"ids from {size} on are not in it"
        caution(
            f"EMPSampler: state must hold as many samples as the loader's data set, {size}, got "
            f"{state.num_samples}: {never}; make it EMPState(len(dataset)), of the data set or "
            "Subset that the loader is given",
            state,
            "size",
        )


def _without_ids(dataset: Any) -> bool:
    """Whether the items of a data set certainly contain no ids; for most types this is unknown."""
    if isinstance(dataset, TensorDataset | StackDataset):
        parts = dataset.tensors if isinstance(dataset, TensorDataset) else dataset.datasets
        return not any(map(_numbers, parts.values() if isinstance(parts, dict) else parts))
    if type(dataset) in (list, tuple) and len(dataset) > 0:
        return not _holds(dataset[-1], len(dataset) - 1)
    return type(dataset).__module__.partition(".")[0] in _UNINDEXED


def _numbers(part: Any) -> bool:
    """Whether `part` may contain the ids: 0, 1, 2, ..., or not a tensor."""
    if not isinstance(part, torch.Tensor):
        return True
    if part.dim() != 1 or part.is_floating_point() or part.dtype == torch.bool:
        return False
    return bool((part == torch.arange(len(part), device=part.device)).all())


def _holds(item: Any, number: int) -> bool:
    """Whether an item, or anything nested in it, is `number`."""
    if isinstance(item, dict):
        item = list(item.values())
    if isinstance(item, list | tuple):
        return any(_holds(part, number) for part in item)
    if isinstance(item, torch.Tensor):
        return item.dim() == 0 and int(item) == number
    return isinstance(item, int) and item == number


def check_not_wrapped() -> None:
    """Raise if the caller's caller is a DistributedSampler, which would use the sampler as a data
    set."""
    if sys._getframe(2).f_code in _WRAPPING:
        raise TypeError(
            "EMPSampler: sampler must be given to the DataLoader as it is (it shares each epoch "
            "among the ranks itself), got one inside a DistributedSampler, which would draw the "
            "positions 0, 1, 2, ... in the place of its ids"
        )


def check_not_prefetched(epoch: Epoch | None, state: EMPState) -> None:
    """Warn of a mid-epoch checkpoint that counts prefetched ids as drawn, unless the loader itself
    requests it and corrects for them."""
    if epoch is None or epoch.hold is None or asked_by_loader():
        return
    if prefetches(epoch.hold):
        caution(
            "EMPSampler.state_dict: the loader's worker processes have prefetched ids, which count "
            "as drawn and would never be trained after a resume: use torchdata's "
            "StatefulDataLoader and save its state_dict(), or pass "
            "state_dict(position=ids trained since the epoch began or was last resumed)",
            state,
            "position",
        )


def check_drawn(function: str, position: int, epoch: Epoch | None, state: EMPState) -> None:
    """Warn of ids up to `position` that cannot have been trained because they were not drawn, as
    where they are counted from the epoch's start and not from its last resume."""
    if epoch is not None and epoch.position < position < len(epoch.ids):
        caution(
            f"{function}: position counts the ids trained since the epoch began or was last "
            f"resumed; {epoch.position} of {len(epoch.ids)} were drawn since, got {position}: "
            "the ids in between would never be trained",
            state,
            "undrawn",
        )
