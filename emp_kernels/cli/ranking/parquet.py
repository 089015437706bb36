"""Columns of Parquet files, read sequentially in batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...arrays import as_tensor
from ...terminal.requirements import require_packages
from .file_arrays import NAMES, Array, InputError

BATCH = 1 << 15  # rows decoded at a time


class Columns(Array):
    """One column, of numbers or of lists of equal length, or several columns side by side."""

    def __init__(self, path: Path, kind: str) -> None:
        require_packages("a .parquet file", "pyarrow")
        import pyarrow.parquet

        self.path = path
        try:
            self.file: Any = pyarrow.parquet.ParquetFile(
                path, pre_buffer=False, buffer_size=1 << 20
            )
        except pyarrow.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} must be a Parquet file ({reason})") from None
        schema = self.file.schema_arrow
        self.columns = _columns(path, kind, schema)
        self.lists = kind == "logits" and _is_list(schema.field(self.columns[0]).type)
        self.classes: int | None = None  # length of the lists, once a row was read
        self.batches: Iterator[np.ndarray] = iter(())
        self.left = np.empty(0)  # decoded rows from `next` on
        self.next = -1
        rows = self.file.metadata.num_rows
        self.shape = (rows, *self.read(0, min(1, rows)).shape[1:])

    def read(self, start: int, stop: int) -> torch.Tensor:
        if start < self.next or self.next < 0:
            self._begin(start)
        parts = []
        while self.next < stop:
            if not len(self.left):
                self.left = next(self.batches)
            first = min(len(self.left), max(0, start - self.next))
            last = min(len(self.left), stop - self.next)
            parts.append(self.left[first:last])
            self.left, self.next = self.left[last:], self.next + last
        if not parts:
            tabular = self.lists or len(self.columns) > 1
            parts = [np.empty((0, self.classes or len(self.columns)) if tabular else 0, np.float32)]
        found: torch.Tensor = as_tensor("rank", "rows", np.concatenate(parts))
        return found

    def _begin(self, start: int) -> None:
        """Go to the row group that holds row `start`."""
        groups, first, here = self.file.metadata.num_row_groups, 0, 0
        for first in range(groups):
            size = self.file.metadata.row_group(first).num_rows
            if start < here + size or first == groups - 1:
                break
            here += size
        wanted = self.file.iter_batches(
            BATCH, row_groups=list(range(first, groups)), columns=self.columns
        )
        self.batches = (self._rows(batch) for batch in wanted)
        self.left, self.next = np.empty(0), here

    def _rows(self, batch: Any) -> np.ndarray:
        found = [self._column(batch.column(name)) for name in self.columns]
        return found[0] if len(found) == 1 else np.stack(found, axis=1)

    def _column(self, column: Any) -> np.ndarray:
        column = getattr(column, "storage", column)  # tensors of one shape
        numbers = column.flatten() if self.lists else column
        if column.null_count and (self.lists or len(self.columns) == 1):
            raise InputError(f"{self.path} must have a value in every row, got nulls")
        found = np.asarray(numbers.to_numpy(zero_copy_only=False))
        if not self.lists:
            return found
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if self.classes is None and len(lengths):
            self.classes = int(lengths[0])
        if (lengths != self.classes).any():
            raise InputError(f"{self.path} must hold lists of one length, got several")
        return found.reshape(len(column), self.classes or 0)


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    kind = getattr(kind, "storage_type", kind)
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _columns(path: Path, kind: str, schema: Any) -> list[str]:
    """Names of the columns that hold the `kind`, "logits", "labels" or a column's own name."""
    import pyarrow.types as types

    for name in NAMES.get(kind, (kind,)):
        if name in schema.names:
            return [name]
    if kind not in NAMES:
        raise InputError(f"{path} must hold a column named {kind}, got {', '.join(schema.names)}")
    if kind == "labels":
        integers = [field.name for field in schema if types.is_integer(field.type)]
        if len(integers) == 1:
            return integers
        raise InputError(
            f"{path} must hold a column named labels, or one of integers, "
            f"got {', '.join(schema.names)}"
        )
    lists = [field.name for field in schema if _is_list(field.type)]
    if len(lists) == 1:
        return lists
    floats = [field.name for field in schema if types.is_floating(field.type)]
    if not lists and len(floats) > 1:
        return floats
    raise InputError(
        f"{path} must hold a column of lists, named logits where there are several, or a column "
        f"of floats for each class, got {', '.join(schema.names)}"
    )
