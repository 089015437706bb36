"""The rows to keep, from order keys that are read in blocks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from .counted_cuts import Block, Cut, Taking, find_cut
from .keep import Keep, kept_count
from .order_keys import values_of_keys
from .validation import as_int64, raise_label_out_of_range

IGNORED = -1


class Rows(NamedTuple):
    """Consecutive rows.

    Attributes:
        first: id of the first one.
        keys: (n,) order keys of the measure; the key of NaN for invalid and ignored rows.
    """

    first: int
    keys: torch.Tensor


class Chosen(NamedTuple):
    """Consecutive rows, and which of them are kept.

    Attributes:
        first: id of the first one.
        keys: (n,) as in :class:`Rows`.
        kept: (n,) bool.
    """

    first: int
    keys: torch.Tensor
    kept: torch.Tensor


def classes_of(
    function: str, labels: torch.Tensor, num_classes: int, ignore_index: int | None, first: int = 0
) -> torch.Tensor:
    """Labels (n,) of the rows from `first` on as int64, with ignored ones as -1.

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
    """The number of rows of each class, (C,) int64, from `classes` (n,); ignored rows count in
    none."""
    return torch.bincount(classes + 1, minlength=num_classes + 1)[1:]


class RankedRows:
    """The rows to keep.

    K is `keep` of the rows that are not ignored (with `per_class`, of each class), but at most the
    number of valid ones.

    Args:
        blocks: yields all rows in order; may be called repeatedly.
        classes: classes of rows [first, stop), as returned by `classes_of`.
        rows_of_class: (C,) int64, the number of rows per class.
        dtype: of the keys.
        keep, per_class: as in :func:`emp_kernels.rank`.
        shares: the quantiles to compute.

    Attributes:
        valid_of_class: (C,) int64.
        num_kept: K.
        threshold: (1,), with `per_class` (C,): the lowest value kept, NaN if there is none.
        quantiles: for each share the smallest value that at least that share of the valid rows does
            not exceed; NaN without valid rows.
        kept_of_class: (C,) int64, available once `chosen` is exhausted.
    """

    def __init__(
        self,
        blocks: Callable[[], Iterable[Rows]],
        classes: Callable[[int, int], torch.Tensor],
        rows_of_class: torch.Tensor,
        dtype: torch.dtype,
        keep: Keep,
        *,
        per_class: bool = False,
        shares: Sequence[float] = (),
    ) -> None:
        self.blocks, self.classes, self.per_class = blocks, classes, per_class
        self.rows_of_class, self.valid_of_class = rows_of_class, rows_of_class.clone()
        self.kept_of_class = torch.zeros_like(rows_of_class)
        for first, block in blocks():
            invalid = block == torch.iinfo(dtype).min
            if invalid.any():
                found = classes(first, first + len(block))[invalid]
                self.valid_of_class -= counted_classes(found, len(rows_of_class))
        counted = torch.stack([rows_of_class, self.valid_of_class])
        if not per_class:
            counted = counted.sum(1, keepdim=True)
        pairs = zip(*counted.tolist(), strict=True)
        ranks = counted.new_tensor([min(kept_count(keep, n), valid) for n, valid in pairs])
        self.num_kept = int(ranks.sum())

        n = int(self.valid_of_class.sum())
        wanted = ranks.new_tensor([n - round(share * (n - 1)) for share in shares] if n else [])
        if per_class:
            self.cut = find_cut(self._scores, ranks, dtype, grouped=True)
            whole = find_cut(self._all, wanted, dtype, grouped=False).keys
        else:  # one search for all
            keys, ties = find_cut(self._all, torch.cat([ranks, wanted]), dtype, grouped=False)
            self.cut, whole = Cut(keys[:1], ties[:1]), keys[1:]
        self.threshold = values_of_keys(self.cut.keys).masked_fill(ranks == 0, torch.nan)
        self.quantiles = values_of_keys(whole).tolist() or [torch.nan] * len(shares)

    def _all(self) -> Iterator[Block]:
        """Keys without groups. Rows that do not count come last, so that no rank reaches them."""
        for _, keys in self.blocks():
            yield Block(keys, None)

    def _scores(self) -> Iterator[Block]:
        """Keys with their classes; the class of ignored rows is arbitrary."""
        for first, keys in self.blocks():
            yield Block(keys, self.classes(first, first + len(keys)).clamp(min=0))

    def chosen(self) -> Iterator[Chosen]:
        """All rows, and which of them are kept."""
        taking = Taking(self.cut)
        self.kept_of_class.zero_()
        for first, keys in self.blocks():
            classes = self.classes(first, first + len(keys))
            kept = taking.of(Block(keys, classes.clamp(min=0) if self.per_class else None))
            self.kept_of_class += counted_classes(classes[kept], len(self.kept_of_class))
            yield Chosen(first, keys, kept)
