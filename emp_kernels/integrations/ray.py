"""Scoring and selecting past one machine, on Ray Data: actors score, Parquet files keep ids and
scores, and tasks count histograms where the scores are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.types
import ray.data
import torch

import emp_kernels as emp

from ..arrays import as_tensor
from ..counted_cuts import DIGIT_BITS, Block, count_digits, find_counted_cut
from ..keep import Keep, check_keep, check_keep_of, kept_count
from ..order_keys import order_keys, values_of_keys
from ..tokens import sequence_means
from ..validation import check_beta, check_ignore_index, check_size

# What scores a batch: logits (n, C) or (n, T, C), or with a head the hidden states (n, [T,] D).
Model = Callable[[Mapping[str, np.ndarray]], torch.Tensor]
ROWS_AT_ONCE = 1 << 20  # that a task counts: blocks have many more


def write_scores(
    dataset: ray.data.Dataset,
    make: Callable[[], tuple[Model, torch.nn.Linear | None]],
    path: str,
    *,
    id_column: str = "id",
    label_column: str = "labels",
    beta: float = 1.0,
    ignore_index: int | None = None,
    batch_size: int = 1024,
    actors: int = 1,
    **options: Any,
) -> ray.data.Dataset:
    """Score every row of a data set on actors, and write ids and scores into Parquet files.

    Args:
        dataset: rows with an id, labels and what the model reads.
        make: called once on each actor, makes the model and its output head, or None where the
            model has its own. The model is called without autograd with a batch, its columns as
            NumPy arrays, and returns logits (n, C), or with a head hidden states (n, D), whose
            logits ``hidden @ head.weightᵀ + head.bias`` are never materialised. Of sequences
            (n, T, C) or (n, T, D): a row's score is the mean of those of its tokens that count.
        path: of a folder that is not there yet, on storage that all nodes reach.
        id_column: integers, each row's own.
        label_column: integers, (n,) or of sequences (n, T).
        beta, ignore_index: as in :func:`emp_kernels.score`. Rows that are ignored, of sequences
            those without a token that counts, are left out.
        batch_size: rows that are scored at a time.
        actors: how many there are.
        options: others of ``Dataset.map_batches``, as ``num_gpus``.

    Returns:
        The files as a data set, in the order of `dataset`: the id column, ``score``, ``loss`` and
        ``entropy``, float32. Invalid rows have score NaN.

    Raises:
        TypeError: a wrong type; on the actors ids or labels that are no integers, too.
        ValueError: a column is missing, a number is out of range, `path` exists; on the actors
            a label out of range or a wrong shape.
    """
    function = "write_scores"
    _check_columns(function, dataset, id_column, label_column)
    beta, ignore_index = check_beta(function, beta), check_ignore_index(function, ignore_index)
    for name, size in (("batch_size", batch_size), ("actors", actors)):
        if check_size(function, name, size) < 1:
            raise ValueError(f"{function}: {name} must be at least 1, got {size}")
    scored = dataset.map_batches(
        Scorer,
        fn_constructor_args=(make, id_column, label_column, beta, ignore_index),
        batch_size=batch_size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=actors),
        **options,
    )
    execution = scored.context.execution_options  # which `dataset` shares
    before, execution.preserve_order = execution.preserve_order, True
    try:
        scored.write_parquet(path, mode=ray.data.SaveMode.ERROR)
    finally:
        execution.preserve_order = before
    return ray.data.read_parquet(path)


class Scorer:
    """What :func:`write_scores` runs on its actors, for a ``map_batches`` of one's own."""

    def __init__(
        self,
        make: Callable[[], tuple[Model, torch.nn.Linear | None]],
        id_column: str = "id",
        label_column: str = "labels",
        beta: float = 1.0,
        ignore_index: int | None = None,
    ) -> None:
        self.model, self.head = make()
        self.id_column, self.label_column = id_column, label_column
        self.options: dict[str, Any] = {"beta": beta, "ignore_index": ignore_index}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids = _integers("write_scores", self.id_column, batch[self.id_column])
        labels = _integers("write_scores", self.label_column, batch[self.label_column])
        with torch.no_grad():
            found = self.model(batch)
            given = as_tensor("write_scores", "labels", labels).to(found.device)
            if self.head is None:
                scores = emp.score(found, given, **self.options)
            else:
                weight, bias = self.head.weight, self.head.bias
                scores = emp.score_linear(found, weight, given, bias=bias, **self.options)
        if given.dim() == 2:
            scores = sequence_means(scores)
        counted = (scores.score != -torch.inf).cpu().numpy()
        columns = {name: getattr(scores, name) for name in ("score", "loss", "entropy")}
        written = {name: values.float().cpu().numpy()[counted] for name, values in columns.items()}
        return {self.id_column: ids[counted], **written}


class Kept(NamedTuple):
    """Result of :func:`select`.

    Attributes:
        rows: the rows kept, with all their columns: a data set that is read when it is asked for.
        num_kept: how many they are.
        threshold: the lowest score kept; NaN where nothing is kept.
        num_invalid: how many scores are NaN.
    """

    rows: ray.data.Dataset
    num_kept: int
    threshold: float
    num_invalid: int


def select(
    scores: ray.data.Dataset, keep: Keep = 0.3, *, by: str = "score", id_column: str = "id"
) -> Kept:
    """The rows with the exact K highest scores, which are never collected in one place.

    Tasks count the leading 16 bits of all scores as integers of the same order, where the blocks
    are, and then the next 16 bits of those that may be the last one kept (of float64 four times):
    what travels are the counts, at most 65,536 of a million rows. Where
    several scores equal the last one kept, those of the lowest ids are: two more passes count ids
    below 2^32 in the same way.

    Args:
        scores: rows with ids and scores, in blocks of any sizes and order. Each pass reads them
            anew: what computes them should have been written first, as :func:`write_scores` does.
        keep: a share in (0, 1] or a number of rows, as in :func:`emp_kernels.select`. Invalid rows
            (NaN or null) are counted but not kept: where fewer are valid, fewer come back.
        by: the column of scores, float32, float64 or float16.
        id_column: integers from 0 on, each row's own.

    Raises:
        TypeError: a wrong type, of a column too.
        ValueError: `keep` is out of range, a column is missing, an id is negative.
    """
    function = "select"
    keep = check_keep(function, keep)
    _check_columns(function, scores, id_column, by)
    counted = _Counted(scores.select_columns([id_column, by]), by, id_column)
    if counted.lowest_id < 0:
        raise ValueError(f"{function}: ids must be at least 0, got {counted.lowest_id}")
    n, num_invalid = int(counted.first.sum()), int(counted.first[0, 0])
    count = min(kept_count(check_keep_of(function, keep, n), n), n - num_invalid)
    rank = torch.tensor([count])
    cut = find_counted_cut(counted, rank, counted.dtype, counted.width, grouped=False)
    key, last_id = int(cut.keys), counted.highest_id  # of no rows a key that no score has
    if count and int(cut.ties) < counted.of_key(key):
        ties = counted.of_ties(key)
        width = counted.highest_id.bit_length() + 1  # of what ids are below the highest one
        last = find_counted_cut(ties, cut.ties, torch.int64, width, grouped=False)
        last_id -= int(last.keys)
    rows = scores.map_batches(
        _kept,
        fn_kwargs={"by": by, "id_column": id_column, "key": key, "last_id": last_id},
        batch_size=ROWS_AT_ONCE,
        batch_format="pyarrow",
    )
    threshold = values_of_keys(cut.keys).item() if count else float("nan")
    return Kept(rows, count, threshold, num_invalid)


class _Counted:
    """The passes over all scores, each a histogram that tasks count block by block.

    Attributes:
        first: (1, 2^16) the first pass, in whose lowest place invalid scores are alone.
        lowest_id, highest_id: of all rows; 0 without rows.
    """

    def __init__(self, scores: ray.data.Dataset, by: str, id_column: str) -> None:
        kind = scores.schema().base_schema.field(by).type
        if not pyarrow.types.is_floating(kind):
            raise TypeError(f"select: {by} must be a column of floats, got {kind}")
        wide = pyarrow.types.is_float64(kind)
        self.scores, self.columns = scores, {"by": by, "id_column": id_column}
        self.dtype, self.width = (torch.int64, 64) if wide else (torch.int32, 32)
        begin = torch.tensor([-(1 << (DIGIT_BITS - 1))], dtype=self.dtype)
        shift = self.width - DIGIT_BITS
        self.first, self.lowest_id, self.highest_id = self._pass(begin, DIGIT_BITS, shift)

    def __call__(self, lowest: torch.Tensor, bits: int, shift: int) -> torch.Tensor:
        """As :data:`emp_kernels.counted_cuts.CountDigits` says."""
        known = shift + bits == self.width
        self.last = self.first if known else self._pass(lowest, bits, shift)[0]
        self.last_begin = int(lowest)
        return self.last

    def of_key(self, key: int) -> int:
        """How many scores have the key that the last pass found."""
        return int(self.last[0, key - self.last_begin])

    def of_ties(self, key: int) -> Callable[[torch.Tensor, int, int], torch.Tensor]:
        """The passes over the ids of the scores that have `key`, the lowest id first."""
        tied = {"tied": key, "highest_id": self.highest_id}
        return lambda lowest, bits, shift: self._pass(lowest, bits, shift, **tied)[0]

    def _pass(
        self, lowest: torch.Tensor, bits: int, shift: int, **tied: int
    ) -> tuple[torch.Tensor, int, int]:
        """The counts (1, 2^bits), and the bounds of the ids of the blocks that had any."""
        what = {"lowest": lowest.numpy(), "bits": bits, "shift": shift}
        options = {"batch_size": ROWS_AT_ONCE, "batch_format": "pyarrow"}
        found = self.scores.map_batches(_count, fn_kwargs=what | self.columns | tied, **options)
        counts, ids = torch.zeros(1, 1 << bits, dtype=torch.int64), []
        for part in found.iter_batches(batch_size=None, batch_format="numpy"):
            ids += [*part["lowest_id"][:1], *part["highest_id"][:1]]
            counts[0].index_add_(0, torch.tensor(part["digit"]), torch.tensor(part["count"]))
        return counts, int(min(ids, default=0)), int(max(ids, default=0))


def _count(
    block: pyarrow.Table,
    by: str,
    id_column: str,
    lowest: np.ndarray,
    bits: int,
    shift: int,
    tied: int | None = None,
    highest_id: int = 0,
) -> dict[str, np.ndarray]:
    """How often each digit that occurs does, of the block's scores or, with `tied`, of the ids of
    those that have this key; and the block's ids' bounds, in each row."""
    ids, keys = _ids_and_keys(block, by, id_column)
    bounds = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if tied is not None:
        keys = highest_id - ids[keys == tied]
    begin = torch.from_numpy(lowest.copy())
    counts = count_digits([Block(keys, None)], begin, bits, shift, grouped=False)[0]
    digits = counts.nonzero()[:, 0]
    return {
        "digit": digits.numpy(),
        "count": counts[digits].numpy(),
        "lowest_id": np.full(len(digits), bounds[0]),
        "highest_id": np.full(len(digits), bounds[1]),
    }


def _kept(block: pyarrow.Table, by: str, id_column: str, key: int, last_id: int) -> pyarrow.Table:
    """The rows of a block that are above the cut, or at it and not behind the last id."""
    ids, keys = _ids_and_keys(block, by, id_column)
    kept = (keys > key) | ((keys == key) & (ids <= last_id))
    return block.filter(pyarrow.array(kept.numpy()))


def _ids_and_keys(
    block: pyarrow.Table, by: str, id_column: str
) -> tuple[torch.Tensor, torch.Tensor]:
    ids = _integers("select", id_column, block.column(id_column).to_numpy())
    scores = as_tensor("select", by, block.column(by).to_numpy())
    return as_tensor("select", id_column, ids.astype(np.int64)), order_keys(scores)


def _integers(function: str, name: str, values: np.ndarray) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"{function}: {name} must be a column of integers, got {values.dtype}")
    return values


def _check_columns(function: str, dataset: ray.data.Dataset, *names: str) -> None:
    if not isinstance(dataset, ray.data.Dataset):
        kind = type(dataset).__name__
        raise TypeError(f"{function}: dataset must be a ray.data.Dataset, got {kind}")
    there = dataset.columns() or []
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(
            f"{function}: dataset must have the column {missing[0]}, got {', '.join(there)}"
        )
