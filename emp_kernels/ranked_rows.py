"""Which rows to keep, of values that are read a block at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from .counted_cuts import Block, Cut, Taking, find_cut, value_of_key
from .keep import Keep, kept_count
from .validation import as_int64, raise_label_out_of_range

IGNORED = -1


class Rows(NamedTuple):
    """Rows that follow one another.

    Attributes:
        first: id of the first one.
        values: (n,) what they are ranked by, the highest first; NaN in invalid rows.
        classes: (n,) int64 labels, -1 in ignored rows.
    """

    first: int
    values: torch.Tensor
    classes: torch.Tensor


class Chosen(NamedTuple):
    """Of rows that follow one another, those that count.

    Attributes:
        ids, values, classes: (n,) of each.
        kept: (n,) bool, which of them are kept.
    """

    ids: torch.Tensor
    values: torch.Tensor
    classes: torch.Tensor
    kept: torch.Tensor


def classes_of(
    function: str, labels: torch.Tensor, num_classes: int, ignore_index: int | None, first: int = 0
) -> torch.Tensor:
    """Labels (n,) of the rows from `first` on as int64, those that are ignored as -1.

    Raises:
        ValueError: one is outside [0, num_classes); it names the first such row.
    """
    classes = as_int64(labels)
    outside = (classes < 0) | (classes >= num_classes)
    if ignore_index is not None:
        ignored = classes == ignore_index
        outside &= ~ignored
        classes = classes.masked_fill(ignored, IGNORED)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise_label_out_of_range(function, first + row, int(classes[row]), num_classes)
    return classes


def counted_classes(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(C,) int64: how many of `classes` (n,) are each; what is ignored is none."""
    return torch.bincount(classes + 1, minlength=num_classes + 1)[1:]


class RankedRows:
    """The rows to keep of all, where `blocks` yields them in order, anew with each call.

    K is `keep` of the rows that are not ignored, with `per_class` of those of each class, but no
    more than there are valid ones.

    Attributes:
        rows_of_class, valid_of_class: (C,) int64, how many there are.
        num_kept: K.
        threshold: (1,), with `per_class` (C,): the lowest value kept, NaN where there is none.
        kept_of_class: (C,) int64, once `chosen` has come to its end.
    """

    def __init__(
        self, blocks: Callable[[], Iterable[Rows]], num_classes: int, keep: Keep, *, per_class: bool
    ) -> None:
        self.blocks, self.per_class = blocks, per_class
        self.dtype, counts = torch.float32, torch.zeros(2, num_classes, dtype=torch.int64)
        for rows in blocks():
            self.dtype, counts = rows.values.dtype, counts.to(rows.values.device)
            counts[0] += counted_classes(rows.classes, num_classes)
            counts[1] += counted_classes(rows.classes[~rows.values.isnan()], num_classes)
        self.rows_of_class, self.valid_of_class = counts
        if not per_class:
            counts = counts.sum(1, keepdim=True)
        shares = zip(*counts.tolist(), strict=True)
        ranks = counts.new_tensor([min(kept_count(keep, n), valid) for n, valid in shares])
        self.num_kept = int(ranks.sum())
        self.kept_of_class = torch.zeros_like(self.rows_of_class)
        self.cut = find_cut(self._scores, ranks, self.dtype, grouped=per_class)
        self.threshold = value_of_key(self.cut.keys).masked_fill(ranks == 0, torch.nan)

    def _valid(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Ids, values and classes of the rows that may be kept."""
        for first, values, classes in self.blocks():
            valid = ((classes != IGNORED) & ~values.isnan()).nonzero()[:, 0]
            yield valid + first, values[valid], classes[valid]

    def _scores(self) -> Iterator[Block]:
        for _, values, classes in self._valid():
            yield Block(values, classes if self.per_class else None)

    def chosen(self) -> Iterator[Chosen]:
        """All rows that may be kept, and which of them are."""
        taking = Taking(self.cut)
        self.kept_of_class.zero_()
        for ids, values, classes in self._valid():
            kept = taking.of(Block(values, classes if self.per_class else None))
            self.kept_of_class += counted_classes(classes[kept], len(self.kept_of_class))
            yield Chosen(ids, values, classes, kept)

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """For each share the value that so many of the valid rows do not pass, a row's own; NaN
        without valid rows."""
        n = int(self.valid_of_class.sum())
        if not n:
            return [torch.nan] * len(shares)
        ranks = self.valid_of_class.new_tensor([n - round(share * (n - 1)) for share in shares])
        found = find_cut(
            lambda: (Block(values, None) for _, values, _ in self._valid()),
            ranks,
            self.dtype,
            grouped=False,
        )
        return value_of_key(found.keys).tolist()
