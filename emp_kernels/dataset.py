"""A data set that yields each item's id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset


class IndexedDataset(Dataset):
    """Map-style data set whose items are ``(index, item)``.

    The index is the sample's id in an :class:`emp_kernels.EMPState`: a Python int, which the
    default collate function turns into an int64 tensor. A negative index counts from the end,
    and its id is the non-negative one.

    Args:
        dataset: a map-style data set. Its ``__getitems__``, if it has one, is used for batches.

    Raises:
        TypeError: `dataset` is iterable-style or has no ``__getitem__`` or ``__len__``.
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise TypeError(
                "IndexedDataset: dataset must be map-style (__getitem__ and __len__; streams are "
                "pruned with an emp.EpochMask: "
                "emp_kernels.integrations.streams.Kept, or .mosaicml for StreamingDataset), got "
                f"{type(dataset).__name__}"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def _id(self, index: Any) -> int:
        index = int(index)
        return index + len(self.dataset) if index < 0 else index

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return self._id(index), self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[int, Any]]:
        fetch = getattr(self.dataset, "__getitems__", None)
        items = fetch(indices) if callable(fetch) else [self.dataset[i] for i in indices]
        if len(items) != len(indices):
            raise ValueError(
                f"IndexedDataset: __getitems__ must return {len(indices)} items, got {len(items)}"
            )
        return [(self._id(i), item) for i, item in zip(indices, items, strict=True)]
