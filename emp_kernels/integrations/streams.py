"""Streams whose samples are mappings, as in WebDataset and Hugging Face's ``datasets``: a filter
for their workers, and the ids of a batch's samples for the training process."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist

import emp_kernels as emp

from ..distributed.group import check_group, gather_equal, initialised, per_rank
from ..validation import check_size

NAME = "__name__"


def named(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A WebDataset sample with a name that is unique over all shards: ``__url__``, a slash,
    ``__key__``.

    For ``.map(named)`` before ``.select`` and ``.decode``.
    """
    return {**sample, NAME: f"{sample['__url__']}/{sample['__key__']}"}


class Kept:
    """Whether an epoch keeps a sample: for WebDataset's ``.select`` and ``datasets``' ``.filter``.

    Workers get a copy when they start; persistent ones see later epochs through the mask. With
    `ids`, a sample whose key has no id yet is kept, as never seen. Before an epoch is pruned, all
    keys must have ids or the workers must be restarted (no ``persistent_workers``).

    Args:
        mask: the samples that an epoch keeps.
        column: the entry with a sample's id or, with `ids`, its key.
        ids: the ids of keys.

    Raises:
        TypeError: `mask` is not an EpochMask or `ids` not a KeyIds.
        RuntimeError: when called in a worker that was started before keys of the epoch got their
            ids.
    """

    def __init__(
        self, mask: emp.EpochMask, column: str = NAME, ids: emp.KeyIds | None = None
    ) -> None:
        if not isinstance(mask, emp.EpochMask):
            raise TypeError(f"Kept: mask must be an EpochMask, got {type(mask).__name__}")
        if ids is not None and not isinstance(ids, emp.KeyIds):
            raise TypeError(f"Kept: ids must be KeyIds or None, got {type(ids).__name__}")
        self.mask, self.column, self.ids = mask, column, ids

    def __call__(self, sample: Mapping[str, Any]) -> bool:
        key = sample[self.column]
        if self.ids is None:
            return key in self.mask
        number = self.ids.get(key)
        if number is not None:
            return number in self.mask
        if len(self.ids) < self.mask.num_samples:
            raise RuntimeError(
                "Kept: ids must be those among which the epoch chose (number all keys before "
                "persistent workers start, or use persistent_workers=False), got a copy with "
                f"{len(self.ids)} of {self.mask.num_samples}"
            )
        return True


def indices_of(keys: Iterable[str], ids: emp.KeyIds, state: emp.EMPState) -> torch.Tensor:
    """The ids (N,) int64 of a batch's keys, in the training process: new keys get ids, and the
    state grows to hold them.

    Raises:
        TypeError: a key is no str.
    """
    indices = torch.tensor([ids[key] for key in keys], dtype=torch.int64)
    if len(ids) > state.num_samples:
        state.grow(len(ids))
    return indices


def epoch_steps(
    mask: emp.EpochMask,
    ids: emp.KeyIds,
    urls: Collection[str],
    batch_size: int,
    *,
    group: dist.ProcessGroup | None = None,
) -> int:
    """Number of batches per rank in this epoch when the ranks' shards keep different numbers of
    samples: the largest any rank needs. For WebLoader's ``.with_epoch(steps)``, where ranks with
    fewer start over.

    Collective if a process group is initialised.

    Args:
        mask: the epoch's.
        ids: of all samples' names (:func:`named`), the same on all ranks.
        urls: this rank's shards.
        batch_size: of a rank's batches, formed by the loader (not its workers).
        group: a process group; None is the default one.

    Raises:
        TypeError: `batch_size` is no int.
        ValueError: it is below 1; a rank keeps no sample, on all ranks.
    """
    function = "epoch_steps"
    if check_size(function, "batch_size", batch_size) < 1:
        raise ValueError(f"{function}: batch_size must be at least 1, got {batch_size}")
    here = set(urls)
    own = torch.tensor([name.rsplit("/", 1)[0] in here for name in ids], dtype=torch.bool)
    kept = int((mask[torch.arange(len(ids))] & own).sum())
    all_kept = [kept]
    if initialised():
        check_group(function, group)
        told = gather_equal(function, torch.tensor([kept]), group)
        all_kept = [int(count) for count in told]
    if min(all_kept) == 0:
        raise ValueError(
            f"{function}: mask must keep a sample of each rank's shards, got {per_rank(all_kept)}"
        )
    return -(-max(all_kept) // batch_size)
