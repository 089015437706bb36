"""Training batches of the Hugging Face Trainer that say which samples they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from ..dataset import IndexedDataset

IDS = "sample_ids"  # the batch's key of the sample ids
LENGTHS = "sample_lengths"  # of the samples' lengths, where a collator joins them into one row


class IdCollator:
    """A data collator that keeps sample ids: items ``(id, features)`` of an
    :class:`emp_kernels.IndexedDataset` become what `collator` makes of the features, and their ids
    (B,) int64 under ``sample_ids``. Where `collator` joins the B samples into one row, as for
    attention without padding, their lengths (a list of B ints) stand under ``sample_lengths``.
    Other items, as in evaluation, go to `collator` untouched."""

    def __init__(self, collator: Callable[[list[Any]], Any]) -> None:
        self.collator = collator

    def __call__(self, items: Sequence[Any]) -> Any:
        if not items or not isinstance(items[0], tuple):
            return self.collator(list(items))
        lengths = [_length(features) for _, features in items]  # collators may change features
        batch = self.collator([features for _, features in items])
        batch[IDS] = torch.tensor([i for i, _ in items], dtype=torch.int64)
        tokens = batch.get("input_ids")
        if isinstance(tokens, torch.Tensor) and len(tokens) == 1 < len(items):
            batch[LENGTHS] = lengths
        return batch


def _length(features: Any) -> int:
    tokens = features.get("input_ids", ()) if isinstance(features, Mapping) else ()
    return len(tokens) if hasattr(tokens, "__len__") else 0


def with_ids(loader: Any, sampler: Sampler[int], drop_last: bool, times: int) -> DataLoader:
    """The loader that a Trainer made for training, drawing from `sampler` and telling ids.

    What the Trainer decided stays: the data set and the collator (both without the columns that
    its options remove), the workers, and the batch size, `times` as large.
    """
    names = (
        *("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context"),
        *("generator", "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order"),
    )
    return DataLoader(
        IndexedDataset(loader.dataset),
        batch_size=times * loader.batch_sampler.batch_size,
        sampler=sampler,
        collate_fn=IdCollator(loader.collate_fn),
        drop_last=drop_last,
        **{name: getattr(loader, name) for name in names},
    )
