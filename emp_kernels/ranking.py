"""Ranking of stored logits: which rows of stored arrays to keep."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from .arrays import as_tensor
from .compiling import outside_compiler
from .keep import Keep, check_keep_of
from .order_keys import order_keys, values_of_keys
from .ranked_rows import RankedRows, Rows, classes_of, counted_classes
from .results import in_brief
from .scoring import sample_statistics, score
from .tracing import check_no_tracing
from .validation import check_beta, check_ignore_index, check_labels, check_logits

MEASURES = ("emp", "loss", "entropy", "el2n", "margin")
BLOCK_BYTES = 1 << 24  # bytes of logits scored at a time
BLOCK_ROWS = 1 << 20


class Ranking(NamedTuple):
    """Result of :func:`emp_kernels.rank`.

    Attributes:
        ids: (K,) int64 rows to keep, ascending.
        values: (N,) the measure of each row, float32 (float64 for float64 logits); NaN for rows
            that do not count.
        threshold: () the lowest-ranked value kept, with `per_class` (C,) that of each class; NaN if
            nothing is kept.
        rows_of_class: (C,) int64, number of rows with each label; ignored ones are not counted.
        kept_of_class: (C,) int64, number of these that are kept.
        num_invalid: () int64 count of invalid rows.
    """

    ids: torch.Tensor
    values: torch.Tensor
    threshold: torch.Tensor
    rows_of_class: torch.Tensor
    kept_of_class: torch.Tensor
    num_invalid: torch.Tensor

    def __repr__(self) -> str:
        return in_brief(self, self.values, **self._asdict())


@outside_compiler
def rank(
    logits: Any,
    labels: Any,
    keep: Keep = 0.3,
    *,
    by: str = "emp",
    beta: float = 1.0,
    per_class: bool = False,
    ignore_index: int | None = None,
    backend: str | None = None,
) -> Ranking:
    """The rows of stored logits to keep: the exact top k by a measure.

    The ids are those of ``select(score(logits, labels).score, keep)``, but logits are read one
    block at a time, so a memory-mapped array need not fit into memory. ``python -m emp_kernels
    rank`` does the same with files.

    Args:
        logits: (N, C) as in :func:`emp_kernels.score`: a tensor, a NumPy array, or anything with
            DLPack or ``__array__``.
        labels: (N,) of any integer dtype, in [0, C) or equal to `ignore_index`; the same kinds.
        keep: a share in (0, 1] or a number of rows, as in :func:`emp_kernels.select`.
        by: "emp" (loss + beta * entropy), "loss", "entropy" or "el2n", keeping the highest, or
            "margin", keeping the smallest. Ties go to the lowest row.
        beta: weight of the memory term of "emp".
        per_class: keep the share `keep` of the rows of each class.
        ignore_index: rows with this label are neither counted nor kept. None ignores nothing.
        backend: as in :func:`emp_kernels.score`.

    Returns:
        A :class:`Ranking`. `keep` is a share of all rows that are not ignored; invalid ones (loss
        or entropy not finite) are never kept, so fewer are returned if fewer are valid.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or measure, a label out of range, `keep` out of range or, with
            `per_class`, not a share.
        RuntimeError: the named backend is not available.
    """
    check_no_tracing("rank")
    logits, labels = as_tensor("rank", "logits", logits), as_tensor("rank", "labels", labels)
    for name, value in (("logits", logits), ("labels", labels)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"rank: {name} must be a tensor, a NumPy array, or anything with DLPack or "
                f"__array__, got {type(value).__name__}"
            )
    check_logits("rank", logits)
    check_labels("rank", labels, logits)
    if logits.dim() != 2:
        raise ValueError(f"rank: logits must have shape (N, C), got {tuple(logits.shape)}")
    check_measure("rank", by)
    beta = check_beta("rank", beta)
    ignore_index = check_ignore_index("rank", ignore_index)
    n, num_classes = logits.shape
    keep = check_keep_of_classes("rank", check_keep_of("rank", keep, n), per_class)

    def classes(first: int, stop: int) -> torch.Tensor:
        return classes_of("rank", labels[first:stop], num_classes, ignore_index, first)

    rows_of_class = torch.zeros(num_classes, dtype=torch.int64, device=logits.device)
    for first, stop in spans(n, BLOCK_ROWS):  # find invalid labels before scoring
        rows_of_class += counted_classes(classes(first, stop), num_classes)
    measured = [
        keys_of(logits[first:stop], labels[first:stop], by, beta, ignore_index, backend)
        for first, stop in spans(n, rows_at_once(logits))
    ]
    keys = torch.cat(measured or [logits.new_empty(0, dtype=torch.int32)])

    def blocks() -> Iterator[Rows]:
        for first, stop in spans(n, BLOCK_ROWS):
            yield Rows(first, keys[first:stop])

    ranked = RankedRows(blocks, classes, rows_of_class, keys.dtype, keep, per_class=per_class)
    ids = [first + kept.nonzero()[:, 0] for first, _, kept in ranked.chosen()]
    threshold = as_measured(by, ranked.threshold)
    return Ranking(
        torch.cat(ids or [rows_of_class.new_empty(0)]),
        as_measured(by, values_of_keys(keys)),
        threshold if per_class else threshold[0],
        rows_of_class,
        ranked.kept_of_class,
        (rows_of_class - ranked.valid_of_class).sum(),
    )


def check_measure(function: str, by: str) -> None:
    """`by` names a measure."""
    if not isinstance(by, str):
        raise TypeError(f"{function}: by must be a str, got {type(by).__name__}")
    if by not in MEASURES:
        raise ValueError(f"{function}: by must be one of {', '.join(MEASURES)}, got {by!r}")


def check_keep_of_classes(function: str, keep: Keep, per_class: bool) -> Keep:
    """With `per_class`, `keep` is a share."""
    if per_class and not isinstance(keep, float):
        raise ValueError(
            f"{function}: keep must be a share in (0, 1], a float, with per_class, got {keep}"
        )
    return keep


def keys_of(
    logits: torch.Tensor,
    labels: torch.Tensor,
    by: str,
    beta: float = 1.0,
    ignore_index: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Order keys (N,) of the measure, the highest to be kept first: margins are negated, and rows
    that do not count have the key of NaN."""
    if by in ("el2n", "margin"):
        found = sample_statistics(logits, labels, ignore_index=ignore_index, backend=backend)
        values = found.el2n if by == "el2n" else -found.margin
        unfit = ~(found.loss.isfinite() & found.entropy.isfinite())
    else:
        scores = score(logits, labels, beta=beta, ignore_index=ignore_index, backend=backend)
        values = {"emp": scores.score, "loss": scores.loss, "entropy": scores.entropy}[by]
        unfit = scores.score.isnan()
    if ignore_index is not None:
        unfit |= labels == ignore_index
    return order_keys(values.masked_fill(unfit, torch.nan))


def as_measured(by: str, values: torch.Tensor) -> torch.Tensor:
    """Undo the sign change of `keys_of`: values of the measure itself."""
    return -values if by == "margin" else values


def rows_at_once(logits: torch.Tensor) -> int:
    """Number of rows of logits (N, C) scored at a time."""
    row = max(1, logits.shape[1] * logits.element_size())
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // row))


def spans(n: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of `size` rows out of `n`."""
    for first in range(0, n, size):
        yield first, min(first + size, n)
