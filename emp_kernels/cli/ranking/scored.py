"""Rows that were scored elsewhere: Parquet files of ids and scores, as Ray Data writes them."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ... import ranking
from ...keep import Keep
from ...order_keys import order_keys
from ...ranked_rows import RankedRows, Rows
from .file_arrays import InputError
from .inputs import open_shards
from .outputs import write_ids
from .progress import Progress
from .summary import SHARES, Summary

COLUMNS = {"emp": "score", "loss": "loss", "entropy": "entropy"}


class Run:
    """One ranking of files of scores.

    Attributes:
        rows: how many they have.
    """

    def __init__(self, options: argparse.Namespace, files: list[Path]) -> None:
        self.options = options
        for path in files:
            if path.suffix != ".parquet":
                raise InputError(f"{path} must end in .parquet where LABELS are not given")
        if options.by not in COLUMNS:
            raise InputError(f"--by must be one of {', '.join(COLUMNS)} without LABELS")
        defaults = {"beta": 1.0, "per_class": False, "ignore_index": None}
        for name, value in defaults.items():
            if getattr(options, name) != value:
                raise InputError(f"--{name.replace('_', '-')} needs LOGITS with LABELS")
        self.ids = open_shards("id", files)
        self.scores = open_shards(COLUMNS[options.by], files)
        self.rows = self.ids.rows
        sample = [array.read(0, min(1, array.shape[0])) for array in self.scores.arrays]
        wide = any(values.dtype == torch.float64 for values in sample)
        self.dtype = torch.float64 if wide else torch.float32

    def write(self, keep: Keep, progress: Progress) -> Summary:
        """Choose and write the ids, once it is sure that they ascend."""
        last = torch.tensor([-1])
        for first, stop in progress.follow("ids", self._spans(), self.rows):
            ids = torch.cat([last, self.ids.read(first, stop).long()])
            wrong = (ids.diff() <= 0).nonzero()[:, 0]
            if len(wrong):
                before, here = ids[wrong[0] : wrong[0] + 2].tolist()
                told = f"{here} behind {before}" if before >= 0 else f"{here} first"
                raise InputError(
                    f"{self.options.logits} must hold ids that ascend from 0 on, got {told}"
                )
            last = ids[-1:]

        def blocks() -> Iterator[Rows]:
            for first, stop in progress.follow("choosing", self._spans(), self.rows):
                yield Rows(first, order_keys(self.scores.read(first, stop).to(self.dtype)))

        def one_class(first: int, stop: int) -> torch.Tensor:
            return torch.zeros(stop - first, dtype=torch.int64)

        keys = torch.int64 if self.dtype == torch.float64 else torch.int32
        counts = torch.tensor([self.rows])
        ranked = RankedRows(blocks, one_class, counts, keys, keep, shares=SHARES)
        summary = Summary(ranked, self.options.by, self.rows)
        self.options.out.parent.mkdir(parents=True, exist_ok=True)
        chosen = self._named(summary.noting(ranked.chosen()))
        write_ids(self.options.out, chosen, ranked.num_kept)
        return summary

    def _spans(self) -> Iterator[tuple[int, int]]:
        return ranking.spans(self.rows, ranking.BLOCK_ROWS)

    def _named(self, positions: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The ids of ascending positions, block by block."""
        for block in positions:
            if len(block):
                first = int(block[0])
                ids = self.ids.read(first, int(block[-1]) + 1).long()
                yield ids[block - first]
